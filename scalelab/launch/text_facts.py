"""Facts about the text of a sweep: of prepared data, or, in a dry run, estimated from files."""

from __future__ import annotations

from collections.abc import Callable

from scalelab.corpus.dataset import Dataset, find_prepared, prepare
from scalelab.corpus.mixing import find_mixture, of_source, prepare_mixture
from scalelab.corpus.source import DataSource, find_files
from scalelab.corpus.token_dataset import describe_tokens
from scalelab.corpus.token_files import find_tokens
from scalelab.corpus.tokenizer import ByteTokenizer
from scalelab.corpus.tokenizer_files import source_tokenizer
from scalelab.corpus.tokenizer_names import END_TOKEN, short_name
from scalelab.errors import UsageError
from scalelab.records.sweep_dir import Results
from scalelab.sweep.planned_run import DataFacts, SourceFacts
from scalelab.sweep.spec import SweepSpec

BYTES_PER_BPE_TOKEN = 4.0
UNPACKED = 3
"""Bytes of text per byte of a compressed file, where it was not unpacked yet."""
UNPREPARED = "unprepared"

Progress = Callable[[str, int, int], None]


def text_facts(
    sweep: SweepSpec, results: Results, *, is_dry_run: bool, progress: Progress | None
) -> DataFacts:
    """Return the facts about the text of ``[data]``, which is prepared unless in a dry run."""
    if sweep.data.mix:
        return _mixture_facts(sweep, results, is_dry_run=is_dry_run, progress=progress)
    source = sweep.data.source()
    if sweep.program is not None and find_tokens(source, results.path) is not None:
        raise UsageError(
            f"token files {source.describe()} in [data] for a program",
            "text in [data], or token files that the program opens itself",
            'Name them in [program], for example train_data = "train.bin" and eval_data = '
            '"val.bin", and leave out --data.',
        )
    dataset = (
        find_prepared(source, results.path)
        if is_dry_run
        else prepare(source, results.path, progress=progress)
    )
    return _estimated_facts(source, results) if dataset is None else _facts(dataset)


def _mixture_facts(
    sweep: SweepSpec, results: Results, *, is_dry_run: bool, progress: Progress | None
) -> DataFacts:
    """Return the facts about the sources of ``[data.mix]``, prepared unless in a dry run."""
    sources = sweep.data.sources()
    mixed = (
        find_mixture(sources, results.path)
        if is_dry_run
        else prepare_mixture(sources, results.path, progress=progress)
    )
    if mixed is not None:
        found = {name: _facts(dataset) for name, dataset in mixed.sources.items()}
    else:
        found = {}
        for name, source in sources.items():
            with of_source(name):
                found[name] = _estimated_facts(source, results)
    first = next(iter(found.values()))
    ends = {facts.end_token for facts in found.values()}
    return DataFacts(
        fingerprint=UNPREPARED if mixed is None else mixed.fingerprint,
        eval_fingerprint=UNPREPARED if mixed is None else mixed.eval_fingerprint,
        tokenizer=first.tokenizer,
        vocab_size=max(facts.vocab_size for facts in found.values()),
        n_train_tokens=sum(facts.n_train_tokens or 0 for facts in found.values()),
        n_eval_tokens=sum(facts.n_eval_tokens for facts in found.values()),
        is_estimated=mixed is None,
        end_token=first.end_token if len(ends) == 1 else None,
        warnings=() if mixed is None else tuple(mixed.warnings()),
        sources=tuple(
            SourceFacts(
                name=name,
                fingerprint=found[name].fingerprint,
                n_train_tokens=found[name].n_train_tokens or 0,
                n_eval_tokens=found[name].n_eval_tokens,
                weight=sweep.data.mix[name].weight,
            )
            for name in sorted(found)
        ),
    )


def _facts(dataset: Dataset) -> DataFacts:
    return DataFacts(
        fingerprint=dataset.fingerprint,
        eval_fingerprint=dataset.eval_fingerprint,
        tokenizer=dataset.tokenizer,
        vocab_size=dataset.vocab_size,
        n_train_tokens=dataset.n_train_tokens,
        n_eval_tokens=dataset.n_eval_tokens,
        end_token=dataset.end_token,
        warnings=tuple(dataset.warnings()),
    )


def _estimated_facts(source: DataSource, results: Results) -> DataFacts:
    tokens = describe_tokens(source, results.path)
    if tokens is not None:
        return DataFacts(
            fingerprint=UNPREPARED,
            eval_fingerprint=UNPREPARED,
            tokenizer=tokens.tokenizer,
            vocab_size=tokens.vocab_size,
            n_train_tokens=tokens.n_train_tokens,
            n_eval_tokens=tokens.n_eval_tokens,
            end_token=tokens.end_token,
            is_estimated=True,
        )
    n_bytes = sum(
        file.path.stat().st_size * (UNPACKED if file.is_packed else 1)
        for file in find_files(source, results.path)
    )
    made = source_tokenizer(source)
    vocab_size = made.vocab_size if made else source.bpe_size or ByteTokenizer.vocab_size
    per_token = 1.0 if source.tokenizer == "bytes" else BYTES_PER_BPE_TOKEN
    n_tokens = round(n_bytes / per_token)
    n_held_out = min(source.eval_tokens, n_tokens // 2)
    return DataFacts(
        fingerprint=UNPREPARED,
        eval_fingerprint=UNPREPARED,
        tokenizer=short_name(source.tokenizer),
        vocab_size=vocab_size,
        end_token=made.end_token if made else END_TOKEN,
        n_train_tokens=max(n_tokens - n_held_out, 1),
        n_eval_tokens=source.eval_tokens,
        is_estimated=True,
    )

"""Facts about the text and the evaluation sets of a sweep: prepared, or estimated in a dry run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from scalelab.corpus.dataset import Dataset, find_prepared, ignore_progress, prepare
from scalelab.corpus.eval_sets import (
    Trained,
    find_eval_set,
    naming_set,
    prepare_eval_sets,
    set_source,
)
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
from scalelab.sweep.run_spec import EvalSetRef
from scalelab.sweep.spec import SweepSpec

BYTES_PER_BPE_TOKEN = 4.0
UNPACKED = 3
"""Bytes of text per byte of a compressed file, where it was not unpacked yet."""
UNPREPARED = "unprepared"

Progress = Callable[[str, int, int], None]


def text_facts(
    sweep: SweepSpec, results: Results, *, is_dry_run: bool, progress: Progress | None
) -> DataFacts:
    """Return the facts about the text of ``[data]``, which is prepared unless in a dry run.

    Raises
    ------
    UsageError, DataError
        If the text or an evaluation set cannot be used.
    """
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
        else prepare(source, results.path, progress=progress, keeps_documents=bool(sweep.data.eval))
    )
    facts = _estimated_facts(source, results) if dataset is None else _facts(dataset)
    trained = () if dataset is None else ((source, dataset),)
    return _with_sets(facts, sweep, trained, results, is_dry_run=is_dry_run, progress=progress)


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
    facts = DataFacts(
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
    trained: Trained = ()
    if mixed is not None:
        trained = tuple((sources[name], each) for name, each in mixed.sources.items())
    return _with_sets(facts, sweep, trained, results, is_dry_run=is_dry_run, progress=progress)


def _with_sets(
    facts: DataFacts,
    sweep: SweepSpec,
    trained: Trained,
    results: Results,
    *,
    is_dry_run: bool,
    progress: Progress | None,
) -> DataFacts:
    """Return the facts with the named evaluation sets, which a dry run estimates."""
    texts, source = sweep.data.eval, sweep.data.source()
    if not texts:
        return facts
    if not is_dry_run:
        sets = prepare_eval_sets(texts, source, trained, results.path, progress or ignore_progress)
        return replace(
            facts,
            eval_sets=tuple(_ref(each.name, each.dataset) for each in sets),
            warnings=(*facts.warnings, *(text for each in sets for text in each.warnings())),
        )
    refs, is_estimated = [], facts.is_estimated
    for name, text in texts.items():
        own = set_source(source, text)
        with naming_set(name):
            found = find_eval_set(text, source, trained[0][1], results.path) if trained else None
            if found is not None:
                refs.append(_ref(name, found))
                continue
            is_estimated = True
            tokens = find_tokens(own, results.path)
            expected = tokens.n_tokens if tokens else _expected_tokens(own, results)
        refs.append(EvalSetRef(name, UNPREPARED, max(1, min(own.eval_tokens, expected))))
    return replace(facts, eval_sets=tuple(refs), is_estimated=is_estimated)


def _ref(name: str, dataset: Dataset) -> EvalSetRef:
    return EvalSetRef(name, dataset.fingerprint, dataset.n_eval_tokens)


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
    made = source_tokenizer(source)
    vocab_size = made.vocab_size if made else source.bpe_size or ByteTokenizer.vocab_size
    n_tokens = _expected_tokens(source, results)
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


def _expected_tokens(source: DataSource, results: Results) -> int:
    """Return the tokens of a text, estimated from the sizes of its files."""
    n_bytes = sum(
        file.path.stat().st_size * (UNPACKED if file.is_packed else 1)
        for file in find_files(source, results.path)
    )
    return round(n_bytes / (1.0 if source.tokenizer == "bytes" else BYTES_PER_BPE_TOKEN))

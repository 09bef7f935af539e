"""``scalelab data prepare``: tokenize text before a sweep."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalelab.cli.options import DEFAULT_RESULTS, JsonOption, ResultsOption
from scalelab.cli.output import console, emit_json, warn
from scalelab.cli.progress import preparing
from scalelab.units import format_count, plural

if TYPE_CHECKING:
    from scalelab.corpus.dataset import Dataset
    from scalelab.corpus.mixed import MixedDataset
    from scalelab.corpus.shards import Manifest
    from scalelab.corpus.source import DataSource


def prepare(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATHS]...", help="Files, folders and globs of text."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Same as PATHS; repeatable.")
    ] = None,
    tokenizer: Annotated[
        str,
        typer.Option(
            help="bytes, bpe:SIZE trained on the text, a file of a tokenizer, or hf:NAME."
        ),
    ] = "bytes",
    field: Annotated[
        str,
        typer.Option(help="Field of the text in JSON files; nested: meta.text."),
    ] = "text",
    column: Annotated[
        str,
        typer.Option(help="Column of the text in CSV and Parquet files; nested: meta.text."),
    ] = "text",
    eval_tokens: Annotated[
        str | None, typer.Option(help="Tokens of the evaluation set; default 262,144.")
    ] = None,
    data_format: Annotated[
        str,
        typer.Option(
            help="How the files are read: auto (by ending and content), text (each file is one "
            "document, markup included), json, csv, parquet, or the format of token files."
        ),
    ] = "auto",
    max_rejects: Annotated[
        float | None,
        typer.Option(
            help="Largest share of documents that may be unusable (null, NUL, cut, not UTF-8); "
            "they are left out and listed. Default 0.1."
        ),
    ] = None,
    eval_data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Token files of the evaluation set; repeatable."),
    ] = None,
    token_dtype: Annotated[
        str, typer.Option(help="Type of a token in files without a header; auto is uint16.")
    ] = "auto",
    vocab_size: Annotated[
        str | None, typer.Option(help="Vocabulary of token files; default: largest token + 1.")
    ] = None,
    end_token: Annotated[
        int | None, typer.Option(min=0, help="Token that ends a document; default: by the files.")
    ] = None,
    fingerprint: Annotated[
        str,
        typer.Option(help="Identify token files by samples, or by all tokens: whole."),
    ] = "sampled",
    tokenizer_pattern: Annotated[
        str | None,
        typer.Option(help="Pattern of a *.tiktoken tokenizer: gpt2, cl100k, o200k or a regex."),
    ] = None,
    special_tokens: Annotated[
        bool, typer.Option(help="Read special tokens that the text spells as such.")
    ] = False,
    bpe_sample: Annotated[
        str | None,
        typer.Option(help="Bytes of text that a bpe:SIZE tokenizer is trained on; default 16M."),
    ] = None,
    mix_source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="Source of a mixture; repeatable. Each has its own held-out part, and all have "
            "one tokenizer.",
        ),
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Tokenize text, or check token files, before a sweep.

    Without PATHS, the text is the source code of Python's standard library. Folders are read
    recursively. JSON, CSV and Parquet hold one document per row. Any other file is one
    document of UTF-8 text. Files of gzip, zstd, bzip2 and xz are unpacked. Of one long text, a
    stretch at its end is held out. With the same text as before, the prepared data is checked
    against its hashes and repaired if needed. A long preparation that was stopped continues where
    it was: run the same command again.

    Example: scalelab data prepare book.txt --eval-tokens 20K

    Example: scalelab data prepare 'shards/*.jsonl.zst' --field meta.text --max-rejects 0.02

    Token files of nanoGPT, llm.c, Megatron, OLMo, NumPy, Hugging Face and MosaicML are read where
    they are; only the evaluation tokens are copied.

    Example: scalelab data prepare train.bin --eval-data val.bin --vocab-size 50257

    Example: scalelab data prepare corpus/ 'more/**/*.jsonl' --field body --tokenizer bpe:4096

    Example: scalelab data prepare --mix-source code=src/ --mix-source web=pages/
    """
    from scalelab.corpus.dataset import prepare as prepare_dataset
    from scalelab.corpus.source import (
        DEFAULT_BPE_SAMPLE,
        DEFAULT_EVAL_TOKENS,
        DEFAULT_MAX_REJECTS,
        DataSource,
    )
    from scalelab.units import parse_quantity

    source = DataSource(
        paths=(*(data or ()), *(paths or ())),
        tokenizer=tokenizer,
        field=field,
        column=column,
        eval_tokens=DEFAULT_EVAL_TOKENS
        if eval_tokens is None
        else int(parse_quantity(eval_tokens, what="--eval-tokens")),
        format=data_format,
        max_rejects=DEFAULT_MAX_REJECTS if max_rejects is None else max_rejects,
        eval_paths=tuple(eval_data or ()),
        dtype=token_dtype,
        vocab_size=None
        if vocab_size is None
        else int(parse_quantity(vocab_size, what="--vocab-size")),
        end_token=end_token,
        fingerprint=fingerprint,
        tokenizer_pattern=tokenizer_pattern,
        special_tokens=special_tokens,
        bpe_sample=DEFAULT_BPE_SAMPLE
        if bpe_sample is None
        else int(parse_quantity(bpe_sample, what="--bpe-sample")),
    )
    if mix_source:
        mixed = _prepare_mixture(source, mix_source, results)
        if as_json:
            emit_json(_mixture_summary(mixed))
            return
        for name, each in mixed.sources.items():
            console().print(f"source {name}", style="bold")
            _print_table(each)
        return
    with preparing() as progress:
        dataset = prepare_dataset(source, results, progress=progress, checks_hashes=True)
    if as_json:
        emit_json(_summary(dataset))
    else:
        _print_table(dataset)


def _prepare_mixture(source: DataSource, pairs: list[str], results: Path) -> MixedDataset:
    """Return the prepared sources of ``NAME=PATH`` texts, which are read as ``source`` says."""
    from scalelab.corpus.mixing import prepare_mixture
    from scalelab.errors import UsageError
    from scalelab.sweep.mix_table import read_mix, split_named

    given = source.paths or source.eval_paths
    if given:
        raise UsageError(
            f"--mix-source with {given[0]}",
            "either one text, or a mixture of sources, each with its own held-out part",
            f"Remove {given[0]}, or name its source: --mix-source NAME={given[0]}.",
        )
    named = split_named(pairs, "--mix-source", "--mix-source code=src/")
    mix = read_mix({name: {"paths": found} for name, found in named.items()})
    sources = {name: replace(source, paths=each.paths) for name, each in mix.items()}
    with preparing() as progress:
        return prepare_mixture(sources, results, progress=progress, checks_hashes=True)


def _mixture_summary(mixed: MixedDataset) -> dict[str, Any]:
    return {
        "schema": 1,
        "command": "data prepare",
        "folder": mixed.folder,
        "fingerprint": mixed.fingerprint,
        "eval_fingerprint": mixed.eval_fingerprint,
        "n_train_tokens": mixed.n_train_tokens,
        "n_eval_tokens": mixed.n_eval_tokens,
        "sources": {name: _summary(each) for name, each in mixed.sources.items()},
        "warnings": mixed.warnings(),
    }


def _summary(dataset: Dataset) -> dict[str, Any]:
    return {
        "schema": 1,
        "command": "data prepare",
        "folder": dataset.folder,
        "n_train_tokens": dataset.n_train_tokens,
        "n_eval_tokens": dataset.n_eval_tokens,
        **asdict(dataset.manifest),
        "rejects": dataset.rejects,
        "warnings": dataset.warnings(),
    }


def _print_table(dataset: Dataset) -> None:
    from rich.table import Table

    manifest = dataset.manifest
    left_out = [
        f"{plural(count, what)}{more}"
        for count, what, more in (
            (manifest.n_duplicates, "duplicate", ""),
            (manifest.n_empty, "empty document", ""),
            (manifest.n_rejected, "document", " that cannot be used"),
            (manifest.n_skipped_files, "file", " without UTF-8 text"),
        )
        if count
    ]
    table = Table.grid(padding=(0, 2))
    per_token = (
        "bytes per token unknown"
        if manifest.bytes_per_token is None
        else f"{manifest.bytes_per_token:.2f} bytes per token"
    )
    vocabulary = f"{manifest.tokenizer}, vocabulary {format_count(manifest.vocab_size)}"
    training = f"{format_count(dataset.n_train_tokens)} tokens"
    evaluation = f"{format_count(dataset.n_eval_tokens)} tokens"
    if manifest.files:
        rows: tuple[tuple[str, str], ...] = (
            ("tokens", manifest.source),
            ("tokenizer", f"{vocabulary}, {per_token}"),
            ("end of document", _end_text(manifest)),
            ("training", f"{training}, {_where(manifest)}"),
            ("evaluation", f"{evaluation}, copied"),
        )
    else:
        rows = (
            ("text", manifest.source),
            ("documents", f"{format_count(manifest.n_documents or 0)} distinct"),
            (
                "left out",
                ", ".join(left_out) or ("a cut character" if dataset.rejects else "nothing"),
            ),
            *([("listed in", str(dataset.rejects))] if dataset.rejects else []),
            ("tokenizer", f"{vocabulary}, {per_token}"),
            ("training", f"{training} of {plural(manifest.n_train_documents or 0, 'document')}"),
            ("evaluation", f"{evaluation} {_held_out(manifest)}"),
        )
    for name, value in (
        *rows,
        ("fingerprint", manifest.fingerprint),
        ("folder", str(dataset.folder)),
    ):
        table.add_row(name, value)
    console().print(table)
    if text := dataset.markup_warning():
        warn(text)


def _held_out(manifest: Manifest) -> str:
    """Return what was held out: whole documents, or a stretch."""
    n = manifest.n_held_out_documents or 0
    if manifest.split == "documents":
        return f"of {plural(n, 'held-out document')}"
    share = f"the last {100 * manifest.held_out_share:.2g} %"
    if manifest.n_documents == 1:
        return f"from {share} of the document"
    return f"from {share} of the text, at the end of {plural(n, 'document')}"


def _where(manifest: Manifest) -> str:
    files = plural(len(manifest.files), "file")
    is_converted = all(not Path(file.path).is_absolute() for file in manifest.files)
    return f"converted to {files} of the folder" if is_converted else f"read in place from {files}"


def _end_text(manifest: Manifest) -> str:
    if manifest.end_token is None:
        return "unknown; give it with --end-token to hold out whole documents"
    return f"token {manifest.end_token}"

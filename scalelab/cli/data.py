"""``scalelab data prepare``: tokenize text before a sweep."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalelab.cli.options import DEFAULT_RESULTS, JsonOption, ResultsOption
from scalelab.cli.output import console, emit_json
from scalelab.cli.progress import preparing

if TYPE_CHECKING:
    from scalelab.corpus.dataset import Dataset


def prepare(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATHS]...", help="Files, folders and globs of text."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Same as PATHS; repeatable.")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="bytes, or bpe:SIZE trained on the text, such as bpe:4096.")
    ] = "bytes",
    field: Annotated[str, typer.Option(help="Field of the text in JSONL files.")] = "text",
    column: Annotated[str, typer.Option(help="Column of the text in Parquet files.")] = "text",
    eval_tokens: Annotated[
        str | None, typer.Option(help="Tokens of the evaluation set; default 262,144.")
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Tokenize text before a sweep.

    Without PATHS, the text is the source code of Python's standard library. Folders are read
    recursively. *.jsonl and *.parquet hold one document per row; any other file is one document of
    UTF-8 text. With the same text as before, the prepared data is checked against its hashes and
    repaired if needed.

    Example: scalelab data prepare corpus/ 'more/**/*.jsonl' --field body --tokenizer bpe:4096
    """
    from scalelab.corpus.dataset import prepare as prepare_dataset
    from scalelab.corpus.source import DEFAULT_EVAL_TOKENS, DataSource
    from scalelab.units import parse_quantity

    source = DataSource(
        paths=(*(data or ()), *(paths or ())),
        tokenizer=tokenizer,
        field=field,
        column=column,
        eval_tokens=DEFAULT_EVAL_TOKENS
        if eval_tokens is None
        else int(parse_quantity(eval_tokens, what="--eval-tokens")),
    )
    with preparing() as progress:
        dataset = prepare_dataset(source, results, progress=progress, checks_hashes=True)
    if as_json:
        emit_json(_summary(dataset))
    else:
        _print_table(dataset)


def _summary(dataset: Dataset) -> dict[str, Any]:
    return {
        "schema": 1,
        "command": "data prepare",
        "folder": dataset.folder,
        "n_train_tokens": dataset.n_train_tokens,
        "n_eval_tokens": dataset.n_eval_tokens,
        **asdict(dataset.manifest),
    }


def _print_table(dataset: Dataset) -> None:
    from rich.table import Table

    from scalelab.units import format_count, plural

    manifest = dataset.manifest
    left_out = [
        f"{plural(count, what)}{more}"
        for count, what, more in (
            (manifest.n_duplicates, "duplicate", ""),
            (manifest.n_empty, "empty document", ""),
            (manifest.n_skipped_files, "file", " without UTF-8 text"),
        )
        if count
    ]
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("text", manifest.source),
        ("documents", f"{format_count(manifest.n_documents)} distinct"),
        ("left out", ", ".join(left_out) or "nothing"),
        (
            "tokenizer",
            f"{manifest.tokenizer}, vocabulary {format_count(manifest.vocab_size)}, "
            f"{manifest.bytes_per_token:.2f} bytes per token",
        ),
        (
            "training",
            f"{format_count(dataset.n_train_tokens)} tokens of "
            f"{format_count(manifest.n_train_documents)} documents",
        ),
        (
            "evaluation",
            f"{format_count(dataset.n_eval_tokens)} tokens of "
            f"{format_count(manifest.n_held_out_documents)} held-out documents",
        ),
        ("fingerprint", manifest.fingerprint),
        ("folder", str(dataset.folder)),
    ):
        table.add_row(name, value)
    console().print(table)

"""Read documents from files: one per text file, JSONL line or Parquet row.

A document is UTF-8 text as bytes, without NUL; it may be empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from scalelab.corpus.source import DataSource, SourceFile, unreadable
from scalelab.errors import DataError

PARQUET_ROWS = 1024


class NotTextError(Exception):
    """A file is not UTF-8 text, or contains NUL as binary files do."""


def read_documents(file: SourceFile, source: DataSource) -> Iterator[bytes]:
    """Yield the documents of a file in order; a null in Parquet gives an empty document.

    Raises
    ------
    NotTextError
        When a text file is not UTF-8 text.
    DataError
        When the file cannot be read, a row is malformed, or the field or column is missing.
    """
    readers = {
        "text": lambda: _read_text(file.path),
        "jsonl": lambda: _read_jsonl(file.path, source.field),
        "parquet": lambda: _read_parquet(file.path, source.column),
    }
    try:
        yield from readers[file.kind]()
    except OSError as error:
        raise unreadable(file.path, error) from error


def _read_text(path: Path) -> Iterator[bytes]:
    text = path.read_bytes()
    if b"\0" in text:
        raise NotTextError
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotTextError from error
    yield text


def _read_jsonl(path: Path, field: str) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            place = f"line {number} of {path}"
            try:
                row = json.loads(line.decode("utf-8" if number > 1 else "utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise _bad_row(place, f"is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise _bad_row(place, f"is a {type(row).__name__}, not an object")
            if field not in row:
                raise DataError(
                    f"no field {field!r} in {place}, which has {sorted(row)}",
                    "the name of the text field, present in every line",
                    "Give its name, for example --field content.",
                )
            text = row[field]
            if not isinstance(text, str):
                raise _bad_row(place, f"has a {type(text).__name__} as {field!r}")
            yield _encoded(text, place)


def _read_parquet(path: Path, column: str) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            schema = table.schema_arrow
            if column not in schema.names:
                raise DataError(
                    f"no column {column!r} in {path}, which has {sorted(schema.names)}",
                    "the name of the text column",
                    "Give its name, for example --column content.",
                )
            kind = schema.field(column).type
            value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(value_kind) or pa.types.is_large_string(value_kind)):
                raise DataError(
                    f"column {column!r} of {path}, which holds {kind}",
                    "a column of strings",
                    "Name a column of text, for example --column text.",
                )
            number = 0
            for rows in table.iter_batches(PARQUET_ROWS, columns=[column]):
                for text in rows.column(0).to_pylist():
                    number += 1
                    yield _encoded(text or "", f"row {number} of {path}")
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}, which is not Parquet ({str(error).splitlines()[0]})",
            "a complete Parquet file",
            "Write the file again, or rename it to the ending of its real format.",
        ) from error


def _encoded(text: str, place: str) -> bytes:
    """Return the bytes of a row's text; DataError if it is not valid in a document."""
    try:
        document = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _bad_row(place, "has half of a surrogate pair") from error
    if b"\0" in document:
        raise _bad_row(place, "contains the character U+0000, which marks the end of documents")
    return document


def _bad_row(place: str, problem: str) -> DataError:
    return DataError(
        f"{place}, which {problem}",
        "one text per row; in JSONL one object per line with its text as a string",
        'Fix that row, for example: {"text": ".."}, or remove it.',
    )

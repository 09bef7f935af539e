"""Rows of a CSV or TSV file: the text is in a named column, and a cell may have several lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Generator, Iterator

from scalelab.corpus.fields import NUL
from scalelab.corpus.json_rows import MOST_ROW_BYTES
from scalelab.corpus.rejects import Reject

DELIMITERS = ",;\t|"


def header_of(head: bytes) -> list[str]:
    """Return the column names in the first line of a table."""
    line = head.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].decode("utf-8", "replace")
    return _names(line)


def read_csv(stream: io.BufferedReader, column: str) -> Generator[bytes | Reject]:
    """Yield the text of each row, or why it has none; the first row names the columns."""
    csv.field_size_limit(MOST_ROW_BYTES)
    # Bytes that are not UTF-8 become half surrogate pairs, so that they are seen in their row only.
    lines = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield from _read(lines, column)
    finally:
        lines.detach()  # or it closes the stream, which is the caller's


def _read(lines: io.TextIOWrapper, column: str) -> Iterator[bytes | Reject]:
    first = lines.readline(MOST_ROW_BYTES)
    header = _names(first)
    index = header.index(column) if column in header else None
    rows = csv.reader(lines, delimiter=_delimiter(first), strict=True)
    while True:
        place = f"line {rows.line_num + 2}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield Reject(place=place, reason=f"is not CSV, or is cut ({error})", has_field=True)
            continue
        if row is None:
            return
        if not row:
            continue
        start = ",".join(row)[:80].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if index is None:
            reason = f"has no column {column!r}"
            has = tuple(header)
            yield Reject(place="line 1", reason=reason, start=start, missing="column", has=has)
        elif len(row) != len(header):
            reason = f"has {len(row)} cells instead of {len(header)}"
            yield Reject(place=place, reason=reason, start=start, has_field=True)
        else:
            yield _document(row[index], place, start)


def _names(line: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=_delimiter(line)), [])
    except csv.Error:
        return []


def _document(text: str, place: str, start: str) -> bytes | Reject:
    try:
        document = text.encode("utf-8")
    except UnicodeEncodeError:
        return Reject(place=place, reason="is not UTF-8", start=start, has_field=True)
    if b"\0" in document:
        return Reject(place=place, reason=NUL, start=start, has_field=True)
    return document


def _delimiter(line: str) -> str:
    return max(DELIMITERS, key=line.count)

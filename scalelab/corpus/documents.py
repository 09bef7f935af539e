"""Read documents from files: one per text file, or per row of JSON, CSV or Parquet.

A document is UTF-8 text as bytes, without NUL; it may be empty.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import json
import re
from collections.abc import Iterator

from scalelab.corpus.csv_rows import header_of, read_csv
from scalelab.corpus.fields import document_of, is_missing
from scalelab.corpus.json_rows import HEAD_BYTES, NESTED, RawRow, parse, read_raw_rows
from scalelab.corpus.opening import BLOCK_BYTES, open_stream
from scalelab.corpus.parquet_rows import read_parquet
from scalelab.corpus.rejects import SHOWN_BYTES, Reject, shown
from scalelab.corpus.source import (
    AUTO,
    CSV,
    JSON,
    LINES,
    PARQUET,
    TEXT,
    DataSource,
    SourceFile,
    unreadable,
)

SNIFF_BYTES = 1 << 16
MARKUP = re.compile(
    rb"""\s*(?:<!doctype\b|<html\b|<\?xml\b|<mediawiki\b|[\[\s]*\{\s*(["'])[^"'\n]{1,200}\1\s*:)""",
    re.IGNORECASE,
)
"""The start of HTML, XML and JSON."""


class NotTextError(Exception):
    """A file is not UTF-8 text, or contains NUL as binary files do; the message says which."""


class CutTextError(Exception):
    """The last character of a text is cut; all before it was read."""


def kind_of(file: SourceFile, source: DataSource) -> tuple[str, bool]:
    """Return how a file is read, ``text``, ``json``, ``csv`` or ``parquet``, and if it is markup.

    The content decides where the ending does not: a file of JSON rows with the field of the text is
    read as rows under any name. Other markup is text, and the caller says so.

    Raises
    ------
    DataError
        When the file cannot be read.
    """
    if source.format != AUTO:
        return source.format, False
    if file.kind in (LINES, PARQUET):
        return (JSON if file.kind == LINES else PARQUET), False
    try:
        with open_stream(file.path) as (stream, _):
            head = stream.read(SNIFF_BYTES).removeprefix(codecs.BOM_UTF8)
            if head.lstrip()[:1] in (b"{", b"["):
                head += stream.read(HEAD_BYTES)  # a long row
    except OSError as error:
        raise unreadable(file.path, error) from error
    if head.startswith(b"PAR1"):
        return PARQUET, False
    if file.kind == JSON and head.lstrip()[:1] in (b"{", b"[", b'"', b""):
        return JSON, False
    if file.kind == CSV and source.column in header_of(head):
        return CSV, False
    if head.lstrip()[:1] in (b"{", b"[") and _may_have(head, source.field):
        stream = io.BufferedReader(io.BytesIO(head))
        first = next(read_raw_rows(stream, head, file.path, is_lines=False), None)
        with contextlib.suppress(ValueError, RecursionError):
            row = None if first is None else parse(first.content)
            if isinstance(row, dict) and not is_missing(row, source.field):
                return JSON, False
    return TEXT, file.kind != TEXT or MARKUP.match(head) is not None


def _may_have(head: bytes, field: str) -> bool:
    """Return whether the start of a JSON file can have this field; far faster than reading it."""
    return f'{field.rpartition(".")[2]}"'.encode() in head or b"\\" in head


def read_text(file: SourceFile) -> Iterator[tuple[bytes, int]]:
    """Yield the text of a file in blocks, and the bytes of the file that were read.

    Raises
    ------
    NotTextError
        When the file is not UTF-8 text.
    CutTextError
        After the last block, when the file ends inside a character.
    DataError
        When the file cannot be read.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = n_characters = 0
    held = b""
    try:
        with open_stream(file.path) as (stream, n_packed):
            while block := stream.read(BLOCK_BYTES):
                if b"\0" in block:
                    where = at + block.index(b"\0") + 1
                    raise NotTextError(f"byte {where:,} is NUL, as in binary files and UTF-16")
                n_characters += len(decoder.decode(block))
                at += len(block)
                whole = held + block
                held = decoder.getstate()[0]
                yield whole[: len(whole) - len(held)], n_packed()
    except UnicodeDecodeError as error:
        where = at - len(held) + error.start + 1
        raise NotTextError(f"byte {where:,} is not UTF-8") from error
    except OSError as error:
        raise unreadable(file.path, error) from error
    if held and n_characters == at - len(held):
        # Only ASCII before it, so this is no character of UTF-8: Latin-1 ends like this.
        raise NotTextError(f"byte {at - len(held) + 1:,} is not UTF-8")
    if held:
        raise CutTextError


def read_rows(
    file: SourceFile, source: DataSource, kind: str
) -> Iterator[tuple[bytes | Reject, int]]:
    """Yield the text of each row or why it has none, and the bytes of the file that were read.

    Raises
    ------
    DataError
        When the file cannot be read, or has no such column.
    """
    try:
        if kind == PARQUET:
            size = file.path.stat().st_size
            for document in read_parquet(file.path, source.column):
                yield document, size
            return
        with open_stream(file.path) as (stream, n_packed):
            if kind == CSV:
                with contextlib.closing(read_csv(stream, source.column)) as documents:
                    for document in documents:
                        yield document, n_packed()
                return
            head = stream.peek(BLOCK_BYTES)[:HEAD_BYTES]
            rows = read_raw_rows(stream, head, file.path, is_lines=file.kind == LINES)
            first = list(itertools.islice(rows, 2))
            if len(first) == 1 and file.kind == JSON:
                for document in _members(first[0], source.field):
                    yield document, n_packed()
                return
            for row in itertools.chain(first, rows):
                yield _document(row, source.field), n_packed()
    except OSError as error:
        raise unreadable(file.path, error) from error


def _members(row: RawRow, field: str) -> Iterator[bytes | Reject]:
    """Yield the documents of a file with one object: those of its list, if the field is in one."""
    key, _, rest = field.partition(".")
    try:
        members = parse(row.content)[key] if rest else None
    except (ValueError, TypeError, KeyError):
        members = None
    if not isinstance(members, list):
        yield _document(row, field)
        return
    for number, member in enumerate(members, start=1):
        place = f"member {number} of {key}"
        try:
            content = json.dumps(member).encode()[:SHOWN_BYTES]
            yield document_of(member, rest, place, content)
        except RecursionError:
            yield Reject(place=place, reason=NESTED, has_field=True)


def _document(row: RawRow, field: str) -> bytes | Reject:
    problem = row.problem
    if not problem:
        try:
            return document_of(parse(row.content), field, row.place, row.content)
        except ValueError as error:
            problem = str(error)
        except RecursionError:
            problem = NESTED
    return Reject(place=row.place, reason=problem, start=shown(row.content))

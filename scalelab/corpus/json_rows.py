"""Rows of a JSON file of any size: JSON Lines, a list of rows, or objects one after the other.

Rows come as bytes, so that one bad row does not end the file. In JSON Lines a line is a row. In the
other layouts a row ends where its brackets close; only one row is in memory at a time.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalelab.corpus.opening import BLOCK_BYTES
from scalelab.errors import DataError

MOST_ROW_BYTES = 256 << 20
HEAD_BYTES = 1 << 20
_HEAD_LINES = 20
NESTED = "is nested too deeply"
_SPACE = b" \t\r\n"

# A string, a bracket or a comma; a lone quote is a string that the buffer cuts.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as bytes; ``problem`` says why it cannot be read."""

    place: str
    content: bytes
    problem: str = ""


class TooLongError(DataError):
    """A value is too long to be a row."""


def parse(content: bytes) -> Any:
    """Return the value of a row.

    Raises
    ------
    ValueError
        When it is not JSON, not UTF-8, or nested too deeply.
    """
    from pydantic_core import from_json  # a machine that only trains has no pydantic

    try:
        return from_json(content)  # in half the time
    except ValueError:
        pass  # or half of a surrogate pair, or nested deeply; json says what is wrong
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {content[error.start]:#04x})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON, or is cut ({error.msg})") from error
    except RecursionError as error:
        raise ValueError(NESTED) from error
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"is not JSON ({error})") from error


def is_in_lines(head: bytes) -> bool:
    """Return whether a file that starts with ``head`` has a row in each line."""
    if head.lstrip(b"\xef\xbb\xbf" + _SPACE)[:1] != b"{":
        return False
    lines = [line for line in head.splitlines()[:_HEAD_LINES] if line.strip()]
    if len(lines) > 1 and len(head) >= HEAD_BYTES:
        lines = lines[:-1]
    is_object = [_is_object(line) for line in lines]
    # An indented object may begin with a whole one: {} or the last member of a list inside it.
    return 2 * sum(is_object) >= len(lines) + (not is_object[0])


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(parse(line.removeprefix(b"\xef\xbb\xbf")), dict)
    except ValueError:
        return False


def read_raw_rows(
    stream: io.BufferedReader, head: bytes, path: Path, *, is_lines: bool
) -> Iterator[RawRow]:
    """Yield the rows of a JSON file that starts with ``head``, in the layout that it has.

    ``is_lines`` says that the ending promises one row per line.

    Raises
    ------
    TooLongError
        When a value is too long to be a row.
    """
    if is_in_lines(head):
        return read_lines(stream)
    lines = head.strip().splitlines()
    is_indented = len(lines) > 1 and not any(map(_is_object, lines[:_HEAD_LINES]))
    is_list = head.lstrip(b"\xef\xbb\xbf" + _SPACE)[:1] == b"["
    if is_lines and not is_list and not is_indented:
        return read_lines(stream)
    return read_values(stream, path)


def read_lines(stream: io.BufferedReader) -> Iterator[RawRow]:
    """Yield the lines that are not blank."""
    number = 0
    while line := stream.readline(MOST_ROW_BYTES):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) == MOST_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(BLOCK_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield RawRow(f"line {number}", line[:80], f"is longer than {MOST_ROW_BYTES >> 20} MiB")
        elif not line.isspace():
            yield RawRow(f"line {number}", line)


def read_values(stream: io.BufferedReader, path: Path) -> Iterator[RawRow]:
    """Yield the members of a list, or the values of a file that are not in a list.

    Raises
    ------
    TooLongError
        When a value is too long to be a row.
    """
    buffer = stream.read(BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf")
    is_end = not buffer
    scanned = number = depth = base = 0
    start: int | None = None  # of the row that is open
    after = 0  # the end of the last row, comma or bracket of the list
    while True:
        resume = len(buffer)
        for token in _TOKEN.finditer(buffer, scanned):
            kind, at = buffer[token.start()], token.start()
            if kind == 0x22:
                if token.end() == at + 1 and not is_end:
                    resume = at
                    break
                if depth == base and start is None:
                    number += 1
                    yield RawRow(f"row {number}", buffer[after : token.end()].strip())
                    after = token.end()
                continue
            if depth == base and start is None:
                if gap := buffer[after:at].strip():
                    number += 1
                    yield RawRow(f"row {number}", gap)
                after = token.end()
                if kind == 0x5B and base == 0:
                    depth = base = 1
                elif kind == 0x5D and base == 1:
                    depth = base = 0
                elif kind in b"[{":
                    start, depth = at, depth + 1
                continue
            if kind in b"[{":
                depth += 1
            elif kind in b"]}":
                depth -= 1
                if depth == base and start is not None:
                    number += 1
                    yield RawRow(f"row {number}", buffer[start : token.end()])
                    start, after = None, token.end()
        if is_end:
            break
        kept = after if start is None else start
        buffer, scanned = buffer[kept:], resume - kept
        start, after = (None if start is None else 0), 0
        if len(buffer) > MOST_ROW_BYTES:
            raise TooLongError(
                f"{path}, in which a value is longer than {MOST_ROW_BYTES >> 20} MiB",
                "JSON with one text per row",
                "Split it into rows, or remove it. A bracket or a quote may be missing.",
            )
        # As much again as is open, so that a long row is not scanned many times.
        more = stream.read(max(BLOCK_BYTES, len(buffer)))
        is_end = not more
        buffer += more
    rest = buffer[after if start is None else start :].strip()
    if rest or base:
        problem = "the file ends before the row ends" if rest else "the list does not end"
        yield RawRow(f"row {number + 1}", rest[:MOST_ROW_BYTES], "" if _is_value(rest) else problem)


def _is_value(content: bytes) -> bool:
    try:
        parse(content)
    except ValueError:
        return False
    return True

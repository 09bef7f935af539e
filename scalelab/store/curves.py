"""Read the new complete lines of a growing ``metrics.jsonl``."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic_core import from_json

from scalelab.records.types import MetricRow

CHUNK_BYTES = 8 << 20
MAX_STEP = 2**63 - 1

_FIELDS = tuple(item.name for item in fields(MetricRow))
_NUMBERS = {int, float, type(None)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How much of an attempt's curve was read.

    Attributes
    ----------
    token : str
        Token of the attempt; another token under the same number is another file.
    bytes_read : int
        Offset after the last line read.
    last_step : int
        Highest step read, 0 before the first.
    torn : int
        Lines dropped because they are not a row, or their step is not above that of the row before.
    """

    token: str
    bytes_read: int = 0
    last_step: int = 0
    torn: int = 0


@dataclass(slots=True)
class CurveRows:
    """Rows of curves for one insertion."""

    run_id: list[str] = field(default_factory=list)
    attempt: list[int] = field(default_factory=list)
    rows: list[Mapping[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, run_id: str, attempt: int, rows: list[Mapping[str, Any]]) -> None:
        """Add rows of one attempt."""
        self.run_id += [run_id] * len(rows)
        self.attempt += [attempt] * len(rows)
        self.rows += rows

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of ``attempt_metrics``."""
        return {
            "run_id": self.run_id,
            "attempt": self.attempt,
            **{name: self._column(name) for name in _FIELDS},
        }

    def _column(self, name: str) -> list[Any]:
        try:
            return list(map(operator.itemgetter(name), self.rows))
        except KeyError:
            return [row.get(name) for row in self.rows]


def read_new_rows(path: str, progress: Progress) -> tuple[list[Mapping[str, Any]], Progress]:
    """Return the rows after ``progress``, at most `CHUNK_BYTES` of them, and the new progress.

    Reads only lines that end in a newline. Drops and counts lines that are not a row (torn by a
    full disk or a power failure) and lines whose step is not above that of the row before.

    ``path`` is that of ``metrics.jsonl``, which may be missing.
    """
    data = _read_from(path, progress.bytes_read)
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) >= CHUNK_BYTES:
        # No row of a trainer is that long: skip the chunk.
        end = len(data)
    rows: list[Mapping[str, Any]] = []
    last_step, torn = progress.last_step, progress.torn
    for line in data[:end].removesuffix(b"\n").split(b"\n") if end else ():
        row = _parse_row(line)
        if row is None or row["step"] <= last_step:
            torn += 1
            continue
        last_step = row["step"]
        rows.append(row)
    return rows, Progress(
        token=progress.token, bytes_read=progress.bytes_read + end, last_step=last_step, torn=torn
    )


def _parse_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = from_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict):
        return None
    step, tokens = row.get("step"), row.get("tokens")
    is_row = (
        type(step) is int
        and 0 < step <= MAX_STEP
        and type(tokens) is int
        and "loss_nats" in row
        # The first test is fast and nearly always true; unknown fields may have any type.
        and (
            _NUMBERS.issuperset(map(type, row.values()))
            or _NUMBERS.issuperset([type(row.get(name)) for name in _FIELDS])
        )
    )
    return row if is_row else None


def _read_from(path: str, offset: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    try:
        # Limit the buffer to the bytes left: allocating a whole chunk takes longer than reading.
        left = os.fstat(descriptor).st_size - offset
        return os.pread(descriptor, min(left, CHUNK_BYTES), offset) if left > 0 else b""
    finally:
        os.close(descriptor)

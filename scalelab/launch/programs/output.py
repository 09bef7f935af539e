"""What a program says about its training: rows of ``metrics.jsonl``, or of its own logs.

`OwnOutput` follows the file that a program writes for scalelab. `LogOutput` reads what another
trainer leaves behind, through the readers of `scalelab.logs`. Both give new rows while the program
runs, and the final loss, N and FLOPs as far as the program states them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from scalelab.errors import DataError
from scalelab.logs.values import as_count, as_number, as_step
from scalelab.records.run_dir import Attempt
from scalelab.records.types import MetricRow
from scalelab.sweep.program import LOSS_UNITS
from scalelab.sweep.run_spec import RunSpec

CHUNK_BYTES = 4 << 20
MOST_LINE_BYTES = 1 << 20
"""A longer line is no row; it is skipped, so that memory stays bounded."""


REPORTED_FILE = "reported.jsonl"
"""Rows that a program writes for scalelab, in the attempt's folder; its curve is made of them."""


def reported_path(attempt: Attempt) -> Path:
    """Return the file for ``{metrics}`` of an attempt."""
    return attempt.path / REPORTED_FILE


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalLoss:
    """The loss on held-out data that a program states last.

    Attributes
    ----------
    step : int
        Optimizer steps taken before it.
    tokens : int or None
        Training tokens seen before it; None if the program does not count them.
    loss_nats : float
        Nats per token; may be NaN.
    loss_se_nats : float or None
        Its standard error.
    evals : Mapping
        Other values that the program measured at the end, by name, as it wrote them.
    source : str
        Where it was read, for messages.
    """

    step: int
    tokens: int | None
    loss_nats: float
    loss_se_nats: float | None = None
    evals: Mapping[str, float]
    source: str


class ProgramOutput(Protocol):
    """What a program has written so far.

    Attributes
    ----------
    last_step : int or None
        Highest step of all rows.
    final : FinalLoss or None
        The last loss on held-out data.
    n_params : int or None
        All parameters, as the program reports them.
    flops_per_token : float or None
        Training FLOPs per token, as the program reports them.
    problem : str
        Why the output cannot be used; empty if it can.
    """

    last_step: int | None
    final: FinalLoss | None
    n_params: int | None
    flops_per_token: float | None
    problem: str

    def read(self, *, is_last: bool = False) -> list[MetricRow]:
        """Return the rows since the last call; ``is_last`` reads all that is left."""
        ...


def in_nats(value: float, unit: str, bytes_per_token: float) -> float:
    """Return a loss in nats per token.

    Parameters
    ----------
    value : float
        Loss in the unit.
    unit : str
        One of `scalelab.sweep.program.LOSS_UNITS`.
    bytes_per_token : float
        For bits per byte.
    """
    if unit == "bits":
        return value * math.log(2)
    if unit == "bits_per_byte":
        return value * math.log(2) * bytes_per_token
    if unit == "perplexity":
        return math.log(value) if value > 0 else math.nan
    return value


class OwnOutput:
    """Follows the ``metrics.jsonl`` that a program writes for scalelab.

    Parameters
    ----------
    path : Path
        The file; it may not exist yet.
    spec : RunSpec
        The run, with the declared unit of the loss.
    """

    def __init__(self, path: Path, spec: RunSpec) -> None:
        assert spec.program is not None
        self.last_step: int | None = None
        self.final: FinalLoss | None = None
        self.n_params: int | None = None
        self.flops_per_token: float | None = None
        self.problem = ""
        self._n_unreadable = 0
        self._tail = _Tail(path)
        self._per_step = spec.tokens_per_step
        self._declared = spec.program.loss_unit
        self._unit = spec.program.loss_unit
        self._bytes_per_token = spec.program.bytes_per_token
        self._tokens: int | None = None
        self._step = 0

    def read(self, *, is_last: bool = False) -> list[MetricRow]:
        """Return the rows since the last call; ``is_last`` reads all that is left."""
        rows = []
        for line in self._tail.lines(is_last=is_last):
            try:
                content = json.loads(line)
            except (ValueError, RecursionError):
                content = None
            if not isinstance(content, dict):
                self._n_unreadable += bool(line.strip())
            elif "scalelab" in content:
                self._take_header(content)
            elif content.get("final"):
                self._take_final(content)
            elif (row := self._row(content)) is not None:
                rows.append(row)
        return rows

    @property
    def n_unreadable(self) -> int:
        """Number of lines that are neither a row nor a header nor the final line."""
        return self._n_unreadable + self._tail.n_skipped

    def _take_header(self, content: Mapping[str, Any]) -> None:
        if content["scalelab"] != 1:
            self.problem = f"a header of version {content['scalelab']!r}; this scalelab reads 1"
        self.n_params = as_count(content.get("n_params")) or self.n_params
        flops = as_number(content.get("flops_per_token"))
        self.flops_per_token = flops if flops and math.isfinite(flops) else self.flops_per_token
        per_token = as_number(content.get("bytes_per_token"))
        if per_token and math.isfinite(per_token):
            self._bytes_per_token = per_token
        unit = str(content.get("unit") or self._declared).replace("-", "_")
        if unit not in LOSS_UNITS:
            self.problem = f"unit {unit!r} of the loss; accepted: {', '.join(LOSS_UNITS)}"
        elif self._declared not in ("nats", unit):
            self.problem = f"a loss in {unit}, where the sweep file says {self._declared}"
        elif unit == "bits_per_byte" and not self._bytes_per_token > 0:
            self.problem = "a loss in bits_per_byte without bytes_per_token"
        self._unit = unit

    def _row(self, content: Mapping[str, Any]) -> MetricRow | None:
        step, loss = as_step(content.get("step")), as_number(content.get("loss"))
        eval_loss = as_number(content.get("eval_loss"))
        if step is None or (loss is None and eval_loss is None):
            self._n_unreadable += 1
            return None
        tokens = as_step(content.get("tokens"))
        self._step, self._tokens = step, tokens
        self.last_step = max(step, self.last_step or 0)
        if loss is None:
            return None  # The curve has a training loss at each of its steps.
        return MetricRow(
            step=step,
            tokens=step * self._per_step if tokens is None else tokens,
            loss_nats=self._in_nats(loss),
            lr=as_number(content.get("lr")),
            grad_norm=as_number(content.get("grad_norm")),
            tokens_per_s=as_number(content.get("tokens_per_s")),
            eval_loss_nats=None if eval_loss is None else self._in_nats(eval_loss),
            time_s=time.time(),
        )

    def _take_final(self, content: Mapping[str, Any]) -> None:
        loss = as_number(content.get("eval_loss"))
        step, tokens = as_step(content.get("step")), as_step(content.get("tokens"))
        error = as_number(content.get("loss_se"))
        if loss is None:
            self.problem = "a final line without eval_loss"
            return
        nats = self._in_nats(loss)
        if error is not None:
            # The derivative of the conversion.
            error *= 1 / loss if self._unit == "perplexity" else self._in_nats(1.0)
        evals = content.get("evals")
        found = evals.items() if isinstance(evals, dict) else ()
        self.final = FinalLoss(
            step=self._step if step is None else step,
            tokens=self._tokens if tokens is None else tokens,
            loss_nats=nats,
            loss_se_nats=error if error is not None and math.isfinite(error) else None,
            evals={
                str(name): value
                for name, entry in found
                if (value := as_number(entry)) is not None and math.isfinite(value)
            },
            source="the line with final in metrics.jsonl",
        )

    def _in_nats(self, value: float) -> float:
        return in_nats(value, self._unit, self._bytes_per_token)


class _Tail:
    """New lines of a file, in bounded memory; a file that was replaced is read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._inode = 0
        self._rest = b""
        self._is_skipping = False
        self.n_skipped = 0
        """Lines that were too long."""

    def lines(self, *, is_last: bool = False) -> Iterator[bytes]:
        """Yield new complete lines; at the last call all, and an unfinished one."""
        while True:
            data = self._chunk()
            *whole, self._rest = (self._rest + data).split(b"\n")
            for line in whole:
                if self._is_skipping or len(line) > MOST_LINE_BYTES:
                    self.n_skipped += 1
                else:
                    yield line
                self._is_skipping = False
            if len(self._rest) > MOST_LINE_BYTES:
                self._rest, self._is_skipping = b"", True
            if not is_last or not data:
                break
        if is_last and self._rest and not self._is_skipping:
            yield self._rest
            self._rest = b""

    def _chunk(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._inode or found.st_size < self._offset:
                    self._inode, self._offset, self._rest = found.st_ino, 0, b""
                    self._is_skipping = False
                data = os.pread(file.fileno(), CHUNK_BYTES, self._offset)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise DataError(
                f"{self.path}, which cannot be read ({error.strerror})",
                "a file that the program writes",
                "Let the program write its rows to the file {metrics}.",
            ) from error
        self._offset += len(data)
        return data

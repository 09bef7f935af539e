"""The training curve of a program's attempt: its new rows, their speed, and whether it diverged."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from scalelab.records.divergence import DivergenceDetector
from scalelab.records.run_dir import Attempt, RunDir
from scalelab.records.types import MetricRow
from scalelab.sweep.run_size import run_size
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.hardware import match_hardware

MOST_NOT_FINITE = 2
"""Rows in a row without a finite loss at which a run has diverged: one may be a skipped step."""
TERA = 1e12


class ProgramCurve:
    """Appends the rows of a program to the curve of an attempt.

    Parameters
    ----------
    attempt : Attempt
    spec : RunSpec
    n_devices : int
        Devices of the run.
    device_name : str
        Name of the GPU or CPU, for its peak.
    """

    def __init__(self, attempt: Attempt, spec: RunSpec, n_devices: int, device_name: str) -> None:
        self.attempt = attempt
        self.last_step = 0
        """Highest step that this attempt has shown."""
        self.resumed_step = 0
        self._n_not_finite = 0
        self._n_devices = n_devices
        self._size = run_size(spec)
        self._hardware = match_hardware(device_name)
        self._detector = DivergenceDetector()
        self._since: tuple[float, int] | None = None

    @property
    def has_row(self) -> bool:
        """Whether the attempt has shown a row after the checkpoint that it resumed."""
        return self.last_step > self.resumed_step

    def resume(self, run: RunDir, source: int, step: int) -> None:
        """Set the step of the checkpoint; what the run showed before decides about spikes too."""
        self.resumed_step = step
        for row in rows_before(run, source, step):
            if math.isfinite(row.loss_nats):
                self._detector.observe(row.loss_nats, 0.0)

    def add(self, rows: Sequence[MetricRow]) -> str | None:
        """Append rows with new steps; return why the run has diverged, or None."""
        now_s = time.monotonic()
        new = []
        for row in rows:
            if row.step > max(self.last_step, self.resumed_step):
                self.last_step = row.step
                new.append(row)
        if new:
            self.attempt.append_metrics([self._with_speed(row, new, now_s) for row in new])
            self._since = (now_s, new[-1].tokens)
        return self._divergence(rows)

    def _with_speed(self, row: MetricRow, rows: Sequence[MetricRow], now_s: float) -> MetricRow:
        """Return a row with the speed since the rows read before, and what follows from it."""
        speed = row.tokens_per_s
        if speed is None and self._since is not None:
            since_s, tokens = self._since
            if now_s > since_s and rows[-1].tokens > tokens:
                speed = (rows[-1].tokens - tokens) / (now_s - since_s)
        if speed is None or not math.isfinite(speed):
            return replace(row, tokens_per_s=None)
        each_per_s = speed / self._n_devices
        palm = self._size.flops_per_token.get("palm")
        mfu = None
        if self._hardware is not None and palm is not None:
            mfu = each_per_s * palm / self._hardware.peak_flops_per_s
        tflops_per_s = each_per_s * self._size.planned_per_token / TERA
        return replace(row, tokens_per_s=speed, tflops_per_s=tflops_per_s, mfu=mfu)

    def _divergence(self, rows: Sequence[MetricRow]) -> str | None:
        for row in rows:
            if not math.isfinite(row.loss_nats):
                self._n_not_finite += 1
                if self._n_not_finite >= MOST_NOT_FINITE:
                    return f"the training loss is {row.loss_nats} at step {row.step}"
                continue
            self._n_not_finite = 0
            if reason := self._detector.observe(row.loss_nats, 0.0):
                return reason
        return None


def rows_before(run: RunDir, source: int, step: int) -> Iterator[MetricRow]:
    """Yield the curve up to a checkpoint, over the attempts that led to it.

    Parameters
    ----------
    run : RunDir
    source : int
        Number of the attempt that saved the checkpoint.
    step : int
        Step of the checkpoint.
    """
    attempts = {attempt.number: attempt for attempt in run.attempts()}
    if source not in attempts:
        return
    earlier = attempts[source].read_note().get("resumed_from")
    if isinstance(earlier, dict) and earlier.get("attempt", source) < source:
        yield from rows_before(run, earlier["attempt"], min(earlier["step"], step))
    for row in read_rows(attempts[source]):
        if row.step > step:
            break
        yield row


def read_rows(attempt: Attempt) -> Iterator[MetricRow]:
    """Yield the complete rows of an attempt's curve."""
    with contextlib.suppress(FileNotFoundError), attempt.metrics_path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError):
                yield MetricRow(**json.loads(line))

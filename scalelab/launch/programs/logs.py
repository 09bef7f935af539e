"""Read the logs of a trainer while it runs, with the readers of `scalelab.logs`."""

from __future__ import annotations

import math
import time
from pathlib import Path

from scalelab.errors import DataError
from scalelab.launch.programs.output import (
    FinalLoss,
    OwnOutput,
    ProgramOutput,
    in_nats,
    reported_path,
)
from scalelab.logs.derive import derive
from scalelab.logs.losses import NATS, is_held_out, rank_losses, unit_of
from scalelab.logs.registry import read_raw
from scalelab.logs.types import RawRun
from scalelab.records.run_dir import PROGRAM_OUTPUT_FILE, Attempt
from scalelab.records.types import MetricRow
from scalelab.sweep.program import OWN_READER
from scalelab.sweep.run_spec import RunSpec

READING_INTERVAL_S = 2.0
READING_SHARE = 0.05
"""Largest share of the time for reading logs: they are read whole, and may become long."""
RATES = ("learning_rate", "lr", "optim/lr", "optim/learning_rate", "train/learning_rate")
NORMS = ("grad_norm", "grad-norm", "optim/grad_norm", "train/grad_norm", "norm")
_UNITS = {"bits-per-byte": "bits_per_byte"}


def output_of(attempt: Attempt, out_dir: Path, spec: RunSpec) -> ProgramOutput:
    """Return what an attempt's program says, by the format of the run.

    Parameters
    ----------
    attempt : Attempt
    out_dir : Path
        Folder of the program's files.
    spec : RunSpec
    """
    if spec.program is not None and spec.program.reader != OWN_READER:
        return LogOutput(out_dir, attempt.path / PROGRAM_OUTPUT_FILE, spec)
    return OwnOutput(reported_path(attempt), spec)


class LogOutput:
    """Reads logs below the program's folder, or its standard output where there are none.

    Parameters
    ----------
    out_dir : Path
        Folder of the program's files.
    output : Path
        File of its standard output.
    spec : RunSpec
        The run, with the name of the reader and the declared unit of the loss.
    """

    def __init__(self, out_dir: Path, output: Path, spec: RunSpec) -> None:
        assert spec.program is not None
        self.last_step: int | None = None
        self.final: FinalLoss | None = None
        self.n_params: int | None = None
        self.flops_per_token: float | None = None
        self.problem = ""
        self._program = spec.program
        self._out_dir, self._output = out_dir, output
        self._per_step = spec.tokens_per_step
        self._shown_step = 0
        self._due_s = 0.0

    def read(self, *, is_last: bool = False) -> list[MetricRow]:
        """Return the rows since the last call; reads at most a twentieth of the time."""
        started = time.monotonic()
        if not is_last and started < self._due_s:
            return []
        run = self._find()
        rows = [] if run is None else self._take(run)
        took = time.monotonic() - started
        self._due_s = time.monotonic() + max(READING_INTERVAL_S, took / READING_SHARE)
        return rows

    def _find(self) -> RawRun | None:
        """Return the run in the logs; the one with the highest step if there are several."""
        if self._program.result_path:
            paths = sorted(self._out_dir.glob(self._program.result_path))
        else:
            paths = [self._out_dir, self._output]
        for path in paths:
            try:
                runs, _, _ = read_raw(path, format=self._program.reader)
            except DataError:
                continue
            found = [run for run in runs if run.history.series]
            if found:
                return max(found, key=lambda run: run.history.last_step() or 0)
        return None

    def _take(self, run: RawRun) -> list[MetricRow]:
        shift = 1 if run.is_step_from_zero else 0
        last = run.history.last_step()
        self.last_step = None if last is None else max(last + shift, run.steps_done or 0)
        logged = derive(run, self._program.loss_unit)
        if (counted := logged.derived.get("n_params")) is not None:
            self.n_params = round(counted.value)
        self._take_final(run, logged.derived.get("n_tokens"), shift)
        return self._rows(run, shift)

    def _take_final(self, run: RawRun, n_tokens: object, shift: int) -> None:
        names = [name for name in rank_losses(run.history.series) if is_held_out(name)]
        self.problem = ""
        if not names:
            return
        name = names[0]
        unit, declared = _UNITS.get(unit_of(name), unit_of(name)), self._program.loss_unit
        if unit not in ("nats", declared):
            self.problem = f"{name} in {unit}, where the sweep file says {declared}"
        point = run.history.series[name].last()
        if point is None:
            return
        step = point[0] + shift
        tokens = getattr(n_tokens, "value", math.nan)
        self.final = FinalLoss(
            step=step,
            tokens=round(tokens) if math.isfinite(tokens) else None,
            loss_nats=in_nats(point[1], declared, self._program.bytes_per_token),
            evals={},
            source=f"{name} of the {run.reader} log {run.path.name}",
        )

    def _rows(self, run: RawRun, shift: int) -> list[MetricRow]:
        """Return the training curve after the last step shown."""
        series = run.history.series
        name = next((n for n in rank_losses(series) if not is_held_out(n)), None)
        if name is None:
            return []
        held_out = next((n for n in rank_losses(series) if is_held_out(n)), None)
        unit = _UNITS.get(unit_of(name), unit_of(name))
        if unit == "nats" and (held_out is None or unit_of(held_out) == NATS):
            # Where the name of the final loss says its unit, that of the training loss would too.
            unit = self._program.loss_unit
        if unit == "bits_per_byte" and not self._program.bytes_per_token:
            return []
        others = {
            field: dict(zip(*(column.tolist() for column in series[found].points()), strict=True))
            for field, found in (
                ("lr", next((n for n in RATES if n in series), None)),
                ("grad_norm", next((n for n in NORMS if n in series), None)),
                ("eval_loss_nats", held_out),
            )
            if found is not None
        }
        rows = []
        for at, value in zip(*(column.tolist() for column in series[name].points()), strict=True):
            step = at + shift
            if step <= self._shown_step:
                continue
            self._shown_step = step
            beside = {field: column.get(at) for field, column in others.items()}
            if (held := beside.get("eval_loss_nats")) is not None:
                beside["eval_loss_nats"] = in_nats(
                    held, self._program.loss_unit, self._program.bytes_per_token
                )
            rows.append(
                MetricRow(
                    step=step,
                    tokens=step * self._per_step,
                    loss_nats=in_nats(value, unit, self._program.bytes_per_token),
                    time_s=time.time(),
                    **beside,
                )
            )
        return rows

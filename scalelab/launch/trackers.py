"""TensorBoard and W&B: the launcher reads new rows of ``metrics.jsonl`` and passes them on.

Workers do not know the trackers; a tracker shows the same values as the store.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from scalelab.errors import UsageError
from scalelab.records.run_dir import Attempt, RunDir
from scalelab.records.sweep_dir import Results
from scalelab.records.types import MetricRow
from scalelab.sweep.run_size import run_size

FOLLOW_INTERVAL_S = 2.0
HOW = {"tensorboard": "pip install 'scalelab[trackers]'", "wandb": "pip install wandb"}
"""How to install each tracker."""
_SHOWN = ("loss_nats", "eval_loss_nats", "tflops_per_s", "loss_scale", "lr", "grad_norm")
_ROW_FIELDS = {item.name for item in fields(MetricRow)}


class Tracker(Protocol):
    """Receives the metrics of runs."""

    def start(self, run_id: str, step: int) -> None:
        """Begin an attempt after ``step`` steps; it replaces later steps of earlier attempts."""

    def show(self, run_id: str, step: int, values: Mapping[str, float], time_s: float) -> None:
        """Show the scalars of a step."""

    def close(self) -> None:
        """Write all pending values."""


class TensorBoard:
    """Event files in ``<results>/tensorboard/<sweep>/<run_id>``; needs no torch."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._make = EventFileWriter
        self.folder = folder
        self._writers: dict[str, Any] = {}

    def start(self, run_id: str, step: int) -> None:
        """Begin an attempt; TensorBoard then hides later steps of earlier attempts."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        if run_id not in self._writers:
            self._writers[run_id] = self._make(str(self.folder / run_id))
        log = SessionLog(status=SessionLog.START)
        self._writers[run_id].add_event(
            Event(wall_time=time.time(), step=step + 1, session_log=log)
        )

    def show(self, run_id: str, step: int, values: Mapping[str, float], time_s: float) -> None:
        """Write the scalars of a step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        event = Event(wall_time=time_s, step=step, summary=Summary(value=scalars))
        self._writers[run_id].add_event(event)

    def close(self) -> None:
        """Write all pending values."""
        for writer in self._writers.values():
            writer.close()


class WandB:
    """One W&B run per run; ``WANDB_MODE=offline`` keeps the data on this machine."""

    def __init__(self, folder: Path, sweep: str) -> None:
        import wandb

        self._wandb: Any = wandb
        self.folder = folder
        self.sweep = sweep
        self._runs: dict[str, Any] = {}

    def start(self, run_id: str, step: int) -> None:
        """Begin or resume the W&B run of this id."""
        if run_id not in self._runs:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._runs[run_id] = self._wandb.init(
                project="scalelab",
                group=self.sweep,
                id=run_id,
                name=run_id,
                dir=str(self.folder),
                resume="allow",
                reinit="create_new",
            )

    def show(self, run_id: str, step: int, values: Mapping[str, float], time_s: float) -> None:
        """Log the scalars of a step."""
        self._runs[run_id].log(dict(values), step=step)

    def close(self) -> None:
        """Finish every run."""
        for run in self._runs.values():
            run.finish()


class Follower:
    """Passes each new metrics row of some runs to trackers once."""

    def __init__(
        self, results: Results, run_ids: Sequence[str], trackers: Sequence[Tracker]
    ) -> None:
        self.runs = [results.run(run_id) for run_id in run_ids]
        self.trackers = trackers
        self._offsets: dict[tuple[str, str], int] = {}
        self._flops_per_token: dict[str, float] = {}
        self._followed_s = -FOLLOW_INTERVAL_S

    def follow(self, *, is_last: bool = False) -> None:
        """Pass new rows to the trackers, at most every two seconds."""
        if not is_last and time.monotonic() - self._followed_s < FOLLOW_INTERVAL_S:
            return
        self._followed_s = time.monotonic()
        for run in self.runs:
            for attempt in run.attempts():
                self._follow_attempt(run, attempt)

    def _follow_attempt(self, run: RunDir, attempt: Attempt) -> None:
        key = (run.run_id, attempt.token)
        offset = self._offsets.get(key, 0)
        try:
            with attempt.metrics_path.open("rb") as file:
                file.seek(offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return
        rows = [row for line in whole.splitlines() if (row := _read_row(line)) is not None]
        self._offsets[key] = offset + len(whole) + len(newline)
        if rows and offset == 0:
            for tracker in self.trackers:
                tracker.start(run.run_id, rows[0].step - 1)
        for row in rows:
            values = self._scalars(run, row)
            for tracker in self.trackers:
                tracker.show(run.run_id, row.step, values, row.time_s)

    def _scalars(self, run: RunDir, row: MetricRow) -> dict[str, float]:
        if run.run_id not in self._flops_per_token:
            spec = run.read_spec()
            self._flops_per_token[run.run_id] = run_size(spec).planned_per_token
        values = {name: getattr(row, name) for name in _SHOWN}
        values["flops"] = row.tokens * self._flops_per_token[run.run_id]
        return {name: value for name, value in values.items() if value is not None}


@contextlib.contextmanager
def following(
    names: Sequence[str], results: Results, sweep: str, run_ids: Sequence[str]
) -> Iterator[Callable[[], None]]:
    """Yield a function that passes new rows to the named trackers; it may be called often.

    Raises
    ------
    UsageError
        If a tracker is not installed.
    """
    require_installed(names)
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(results.path / "tensorboard" / sweep),
        "wandb": lambda: WandB(results.path / "wandb", sweep),
    }
    trackers = [makers[name]() for name in names]
    follower = Follower(results, run_ids, trackers)
    if not trackers:
        yield lambda: None
        return
    try:
        yield follower.follow
    finally:
        follower.follow(is_last=True)
        for tracker in trackers:
            tracker.close()


def _read_row(line: bytes) -> MetricRow | None:
    try:
        content = json.loads(line)
        return MetricRow(**{name: content[name] for name in _ROW_FIELDS & content.keys()})
    except (ValueError, TypeError, AttributeError):
        return None


def require_installed(names: Sequence[str]) -> None:
    """Raise UsageError if a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UsageError(
                f"tracker {name}, which is not installed",
                "an installed tracker",
                f"Install it: {HOW[name]}",
            )

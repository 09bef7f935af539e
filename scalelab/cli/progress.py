"""Progress of a launch on stderr: a live table on a terminal, else one line per event."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.cli.output import console
from scalelab.records.states import ENDED
from scalelab.units import format_duration, format_quantity, plural

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import TaskID

    from scalelab.launch.base import LaunchView, Watcher

REFRESH_S = 0.5
LINE_S = 30.0
"""Seconds between two lines about a preparation without a terminal."""


@contextlib.contextmanager
def preparing() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback for the data preparation: bars on a terminal, else now and then a line."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield _StageLines()
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                # a continued stage starts where it is: what was done before has no speed
                tasks[stage] = bars.add_task(stage, completed=done, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report


class _StageLines:
    """Prints how far a stage is and when it ends, at most every `LINE_S` seconds, as in a log."""

    def __init__(self) -> None:
        self._stage = ""
        self._start_s = self._line_s = time.monotonic()
        self._start = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if stage != self._stage:
            self._stage, self._start_s, self._start = stage, now_s, done
        if now_s - self._line_s < LINE_S or not self._start < done < total:
            return
        self._line_s = now_s
        left_s = (now_s - self._start_s) * (total - done) / (done - self._start)
        console(stderr=True).print(
            f"{stage}: {done / total:.0%}, about {format_duration(left_s)} left", soft_wrap=True
        )


@contextlib.contextmanager
def watching(results: Path, *, as_json: bool) -> Iterator[Watcher]:
    """Yield the function that a launcher calls on every event."""
    out = console(stderr=True)
    if not out.is_terminal or as_json:
        yield _LinePrinter(results)
        return
    from rich.live import Live

    with Live(console=out, auto_refresh=False, transient=True) as live:
        screen = _Screen(results, lambda content: live.update(content, refresh=True))
        yield screen


@dataclass(slots=True)
class RunProgress:
    """Progress of a running attempt, from the last row of its training curve."""

    label: str
    step: int
    n_steps: int
    loss_nats: float | None
    tokens_per_s: float | None


class Reader:
    """Reads the progress of runs; caches what does not change."""

    def __init__(self, results: Path) -> None:
        from scalelab.records.sweep_dir import Results

        self.results = Results(results)
        self.known: dict[str, tuple[str, int, int]] = {}

    def read(self, run_id: str) -> RunProgress:
        """Return the progress of a run."""
        from scalelab.sweep.size_table import model_label

        folder = self.results.run(run_id)
        if run_id not in self.known:
            spec = folder.read_spec()
            self.known[run_id] = (model_label(spec), spec.n_steps, spec.tokens_per_step)
        label, n_steps, _ = self.known[run_id]
        attempts = folder.attempts()
        row = attempts[-1].last_metrics() if attempts else None
        if row is None:
            return RunProgress(label, 0, n_steps, None, None)
        return RunProgress(label, row.step, n_steps, row.loss_nats, row.tokens_per_s)

    def remaining_s(self, progress: RunProgress, run_id: str) -> float | None:
        """Return the seconds that a run still needs at its current speed."""
        if not progress.tokens_per_s:
            return None
        tokens = (progress.n_steps - progress.step) * self.known[run_id][2]
        return tokens / progress.tokens_per_s


class _LinePrinter:
    """Prints one line per event."""

    def __init__(self, results: Path) -> None:
        self.out = console(stderr=True)
        self.reader = Reader(results)

    def __call__(self, view: LaunchView) -> None:
        if not view.note:
            return
        counted = sum(status in ENDED for status in view.statuses.values())
        run_id, _, event = view.note.partition(" ")
        extra = ""
        if event == "done":
            record = self.reader.results.run(run_id).accepted()
            found = record.read_record() if record else None
            if found is not None and found.loss_nats is not None:
                size = format_quantity(found.n_params["chinchilla"])
                extra = f": N {size}, loss {found.loss_nats:.4f} nats"
        if event == "started":
            return
        elapsed = format_duration(time.time() - view.started_s)
        self.out.print(
            f"[{counted}/{len(view.statuses)}, {elapsed}] {view.note}{extra}", soft_wrap=True
        )


class _Screen:
    """A table of the running runs, redrawn twice a second."""

    def __init__(self, results: Path, show: Callable[[RenderableType], None]) -> None:
        self.reader = Reader(results)
        self.show = show
        self.last_drawn = 0.0
        self.notes: list[str] = []

    def __call__(self, view: LaunchView) -> None:
        if view.note and not view.note.endswith((" started", " done")):
            self.notes.append(view.note)
        now = time.monotonic()
        if now - self.last_drawn >= REFRESH_S:
            self.last_drawn = now
            self.show(self._draw(view))

    def _draw(self, view: LaunchView) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        n_ended = sum(status in ENDED for status in view.statuses.values())
        elapsed = time.time() - view.started_s
        head = Text(
            f"{n_ended} of {plural(len(view.statuses), 'run')} ended, {len(view.running)} running, "
            f"{format_duration(elapsed)} elapsed"
        )
        table = Table(box=None)
        for title in ("run", "shape", "steps", "", "loss", "tokens/s", "left"):
            table.add_column(title, no_wrap=True)
        for run_id in view.running:
            progress = self.reader.read(run_id)
            left = self.reader.remaining_s(progress, run_id)
            table.add_row(
                run_id,
                progress.label,
                f"{progress.step:,}/{progress.n_steps:,}",
                ProgressBar(total=progress.n_steps, completed=progress.step, width=20),
                "" if progress.loss_nats is None else f"{progress.loss_nats:.4f}",
                "" if not progress.tokens_per_s else format_quantity(progress.tokens_per_s),
                "" if left is None else format_duration(left),
            )
        notes = [Text(note, style="yellow") for note in self.notes[-3:]]
        bar = ProgressBar(total=len(view.statuses), completed=n_ended, width=60)
        return Group(head, bar, table, *notes)

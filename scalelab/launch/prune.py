"""Stopping hopeless runs (``--stop-hopeless``): a mark in the run folder, as for cancelled runs.

A launcher looks every few seconds while it watches. A run is hopeless if its predicted final loss
is above what the finished runs of its sweep allow (`scalelab.store.expected.hopeless`), twice in a
row. `resume` leaves pruned runs alone; ``retry --status pruned`` continues them and keeps them.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence

from scalelab.errors import ScalelabError, UsageError
from scalelab.launch.base import LaunchRequest
from scalelab.records.files import write_atomically
from scalelab.records.run_dir import PRUNED_FILE
from scalelab.records.states import FINAL, PRUNED
from scalelab.records.sweep_dir import Results, SavedPlan
from scalelab.store.expected import hopeless
from scalelab.store.run_status import RunStatus
from scalelab.store.status import read_run_status

LOOK_INTERVAL_S = 5.0
KEPT_FILE = "not-pruned.json"
"""The mark of a run that a user continues although it was pruned."""


class Pruner:
    """Marks the hopeless runs of one launch."""

    def __init__(self, request: LaunchRequest) -> None:
        self.results = request.results
        self.budgets = request.results.load_plan(request.sweep).budgets
        self._looked_s = time.monotonic()
        self._finished: dict[str, RunStatus] = {}
        self._suspected: dict[str, int] = {}

    def look(self, running: Sequence[str]) -> list[str]:
        """Mark the runs that are hopeless; return a note for each. At most every 5 seconds."""
        now = time.monotonic()
        if not running or now - self._looked_s < LOOK_INTERVAL_S:
            return []
        self._looked_s = now
        notes: list[str] = []
        # A look must not end a launch: a folder may be removed while it is read.
        with contextlib.suppress(ScalelabError, OSError):
            runs = [self._status(run_id) for run_id in self.budgets]
            found = {run.run_id: (run, why) for run, why in hopeless(runs, self._runs_folder)}
            before, self._suspected = (
                self._suspected,
                {r: run.step for r, (run, _) in found.items()},
            )
            for run_id, (run, why) in found.items():
                has_advanced = before.get(run_id, run.step) < run.step
                if has_advanced and run_id in running and not self._is_kept(run_id):
                    notes.append(f"{run_id} pruned: {why}")
                    mark_pruned(self.results, run_id, run.step, why)
        return notes

    @property
    def _runs_folder(self) -> str:
        return str(self.results.path / "runs")

    def _is_kept(self, run_id: str) -> bool:
        return (self.results.run(run_id).path / KEPT_FILE).exists()

    def _status(self, run_id: str) -> RunStatus:
        if run_id not in self._finished:
            folder = self.results.run(run_id).path
            status = read_run_status(folder, self.budgets[run_id], time.time())
            if status.state not in FINAL:
                return status
            self._finished[run_id] = status
        return self._finished[run_id]


def mark_pruned(results: Results, run_id: str, step: int, reason: str) -> None:
    """Mark a run as pruned: its worker saves a checkpoint and stops at the next check."""
    content = {"step": step, "reason": reason, "time_s": time.time()}
    write_atomically(results.run(run_id).path / PRUNED_FILE, json.dumps(content))


def keep_pruned(saved: SavedPlan, results: Results) -> tuple[str, ...]:
    """Let the pruned runs of a sweep continue and never prune them again; return their run_ids.

    Raises
    ------
    UsageError
        If no run of the sweep is pruned.
    """
    pruned = tuple(r for r in saved.run_ids if results.run(r).status() == PRUNED)
    if not pruned:
        raise UsageError(
            f"--status pruned for sweep {saved.name!r}, which has no pruned run",
            "a sweep with pruned runs",
            f"List the runs with `scalelab status {saved.name}`.",
        )
    for run_id in pruned:
        folder = results.run(run_id).path
        (folder / PRUNED_FILE).rename(folder / KEPT_FILE)
    return pruned


def detached_error() -> UsageError:
    """Return the error for a launcher that does not stay to watch."""
    return UsageError(
        "--stop-hopeless with --detach",
        "a launcher that watches the runs",
        "Remove --detach and keep the launcher running, for example in tmux.",
    )

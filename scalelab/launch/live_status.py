"""Live status of a sweep: run folders merged with the SLURM queue.

The queue is read only while a job of the sweep may be in it, with one call for all runs and at most
every two seconds. It works without a running launcher.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scalelab.errors import ScalelabError
from scalelab.launch.saved_options import saved_options
from scalelab.launch.slurm.queue import Slurm
from scalelab.launch.slurm.submissions import Submissions
from scalelab.launch.worker import is_cancelled
from scalelab.records.states import BROKEN, ENDED, INTERRUPTED
from scalelab.records.sweep_dir import Results
from scalelab.store.run_status import RunStatus
from scalelab.store.status import SweepStatus, read_status
from scalelab.sweep.gpu_counts import gpus_for
from scalelab.sweep.tables import LauncherTable

_UNTOUCHED = (*ENDED, BROKEN)


class LiveStatus:
    """Reads a sweep's status repeatedly.

    Parameters
    ----------
    results : Path
        The results folder.
    sweep : str, optional
        Default: the sweep launched last.
    slurm : Slurm, optional
        Default: the cluster of the environment.
    """

    def __init__(
        self, results: Path, sweep: str | None = None, *, slurm: Slurm | None = None
    ) -> None:
        self.results = Results(results)
        self.sweep = sweep
        self._slurm = slurm or Slurm()
        self._submissions: Submissions | None = None

    def read(self) -> SweepStatus:
        """Return the current status.

        Raises
        ------
        DataError
            If there is no such sweep, or its plan cannot be read.
        """
        found = read_status(self.results.path, self.sweep, assess=self._assess)
        with contextlib.suppress(ScalelabError):
            launcher = saved_options(self.results, found.sweep, LauncherTable)
            if launcher.name == "slurm":
                counts = launcher.slurm.gpus_per_run
                runs = tuple(
                    replace(run, gpus=gpus_for(counts, run.budget_flops or run.flops or 0.0))
                    for run in found.runs
                )
                return replace(found, runs=runs)
        return found

    def _assess(self, sweep: str, runs: Sequence[RunStatus]) -> tuple[RunStatus, ...]:
        held = self._held(sweep)

        def merged(run: RunStatus) -> str:
            is_off = is_cancelled(self.results.run(run.run_id))
            return merged_state(run.state, held.get(run.run_id), is_off)

        return tuple(replace(run, state=merged(run)) for run in runs)

    def _held(self, sweep: str) -> dict[str, str]:
        """Return the queue state of runs with a job: ``queued``, ``running`` or ``unknown``."""
        if self._submissions is None:
            folder = self.results.sweep(sweep)
            self._submissions = Submissions(self.results, folder, is_owner=False)
        self._submissions.reload()
        open_elements = list(self._submissions.open_elements())
        queue = self._slurm.read_queue() if open_elements else None
        self._submissions.update(queue)
        held: dict[str, str] = {}
        for intent, index in open_elements:
            job = (queue or {}).get((self._submissions.job_of(intent) or 0, index))
            if job is None or not job.has_ended:
                word = "running" if job is not None and job.state == "RUNNING" else "queued"
                word = "unknown" if queue is None else word
                held |= dict.fromkeys(intent.job_groups[index].run_ids, word)
        return held


def merged_state(state: str, held: str | None, is_cancelled: bool) -> str:
    """Return the state of a run from its files and its job.

    Parameters
    ----------
    state : str
        State from the run folder.
    held : str or None
        State of its job in the queue: ``queued``, ``running``, or ``unknown`` if the queue does not
        answer; None if it has no job.
    is_cancelled : bool
        Whether the run is marked as cancelled.
    """
    if state in _UNTOUCHED:
        return state
    if held is None:
        return "cancelled" if is_cancelled and state != "running" else state
    if held == "queued":
        return "queued"
    # A job trains its runs one after the other: those that have not begun wait in it.
    return state if state in ("running", INTERRUPTED) else "queued"

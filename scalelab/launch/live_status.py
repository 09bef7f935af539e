"""How a sweep stands for whoever watches: what its files say, with what the queue knows besides.

The queue is asked only while something of the sweep may be in it, once for all its runs and never
twice within two seconds; a launcher need not be running.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scalelab.errors import ScalelabError
from scalelab.launch.execute import saved_launcher
from scalelab.launch.job import CANCELLED_FILE
from scalelab.launch.slurm.queue import Slurm
from scalelab.launch.slurm.submissions import Submissions
from scalelab.records.states import BROKEN, ENDED, INTERRUPTED
from scalelab.records.sweep_dir import Results
from scalelab.store.run_status import RunStatus
from scalelab.store.status import SweepStatus, read_status

_UNTOUCHED = (*ENDED, BROKEN)


class LiveStatus:
    """Reads a sweep's status again and again.

    Parameters
    ----------
    results : Path
        The results folder.
    sweep : str, optional
        Its name; the one launched last by default.
    slurm : Slurm, optional
        The cluster; default the one that the environment names.
    """

    def __init__(
        self, results: Path, sweep: str | None = None, *, slurm: Slurm | None = None
    ) -> None:
        self.results = Results(results)
        self.sweep = sweep
        self._slurm = slurm or Slurm()
        self._submissions: Submissions | None = None

    def read(self) -> SweepStatus:
        """Return how the sweep stands now.

        Raises
        ------
        DataError
            When there is no such sweep, or its plan cannot be read.
        """
        found = read_status(self.results.path, self.sweep, assess=self._assess)
        with contextlib.suppress(ScalelabError):
            launcher = saved_launcher(self.results, found.sweep)
            if launcher.name == "slurm":
                return replace(found, gpus=launcher.slurm.gpus_per_run)
        return found

    def _assess(self, sweep: str, runs: Sequence[RunStatus]) -> tuple[RunStatus, ...]:
        held = self._held(sweep)
        return tuple(
            replace(run, state=merged_state(run.state, held.get(run.run_id), self._is_off(run)))
            for run in runs
        )

    def _is_off(self, run: RunStatus) -> bool:
        return (self.results.run(run.run_id).path / CANCELLED_FILE).exists()

    def _held(self, sweep: str) -> dict[str, str]:
        """Return the runs that jobs hold, as ``queued``, ``running`` or ``unknown``."""
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
                held |= dict.fromkeys(intent.packs[index].run_ids, word)
        return held


def merged_state(state: str, held: str | None, is_cancelled: bool) -> str:
    """Return the state of a run.

    Parameters
    ----------
    state : str
        What its files tell.
    held : str or None
        What the queue says of its job: ``queued``, ``running``, or ``unknown`` when the queue does
        not answer; None when no job holds it.
    is_cancelled : bool
        Whether somebody cancelled it.
    """
    if state in _UNTOUCHED:
        return state
    if held is None:
        return "cancelled" if is_cancelled and state != "running" else state
    if held == "queued":
        return "queued"
    # A job's runs come one after the other: those that are not under way yet wait in it.
    return state if state in ("running", INTERRUPTED) else "queued"

"""Which runs of a results folder a process or job may be training now."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from scalelab.errors import SpecError, UsageError
from scalelab.launch.lock import launcher_lock
from scalelab.launch.slurm.queue import Slurm
from scalelab.launch.slurm.submissions import Submissions
from scalelab.records.machine import is_process_alive
from scalelab.records.run_dir import Attempt
from scalelab.records.sweep_dir import Results
from scalelab.units import format_duration, plural

SILENT_S = 3600.0
"""An attempt of another machine without a new row for this long counts as dead."""
_SHOWN = 5


def active_runs(
    results: Results, run_ids: Iterable[str], *, slurm: Slurm | None = None
) -> dict[str, str]:
    """Return the runs that may train now, and where.

    Parameters
    ----------
    results : Results
    run_ids : iterable of str
        The runs to check.
    slurm : Slurm, optional
        Default: the cluster of the environment, if this machine has SLURM's commands.
    """
    wanted = set(run_ids)
    found = {}
    for run_id in sorted(wanted):
        attempt = open_attempt(results, run_id)
        if attempt is not None:
            note = attempt.read_note()
            found[run_id] = f"on {note.get('host', 'an unknown machine')}"
    for run_id, where in _queued(results, slurm).items():
        if run_id in wanted and results.run(run_id).accepted() is None:
            found.setdefault(run_id, where)
    return found


def open_attempt(results: Results, run_id: str) -> Attempt | None:
    """Return the attempt at a run that may be training now, or None."""
    run = results.run(run_id)
    if run.status() != "running":
        return None
    attempt = run.attempts()[-1]
    note = attempt.read_note()
    if note.get("host") == socket.gethostname():
        return attempt if is_process_alive(note) else None
    return attempt if time.time() - _last_sign_s(attempt, note) < SILENT_S else None


@contextlib.contextmanager
def nothing_runs(results: Results, sweeps: Iterable[str], run_ids: Iterable[str]) -> Iterator[None]:
    """Hold the launcher locks of sweeps in a block, in which none of these runs is training.

    Raises
    ------
    UsageError
        If a sweep is being launched, or a run may train now.
    """
    with contextlib.ExitStack() as locks:
        for name in sorted(set(sweeps)):
            locks.enter_context(launcher_lock(results.sweep(name)))
        active = active_runs(results, run_ids)
        if active:
            shown = [f"{run_id} {where}" for run_id, where in list(active.items())[:_SHOWN]]
            more = f" and {len(active) - _SHOWN} more" if len(active) > _SHOWN else ""
            raise UsageError(
                f"{plural(len(active), 'run')} that may train now: {', '.join(shown)}{more}",
                f"runs that have ended, or wrote nothing for {format_duration(SILENT_S)}",
                "Wait for them (`scalelab status --watch`), or stop them with `scalelab cancel`.",
            )
        yield


def _last_sign_s(attempt: Attempt, note: Mapping[str, Any]) -> float:
    """Return the Unix time of the newest row of a curve, or of the start of its attempt."""
    last = attempt.last_metrics()
    started = note.get("started_s")
    times = [0.0 if last is None else last.time_s]
    if isinstance(started, (int, float)):
        times.append(started)
    if len(times) == 1:
        with contextlib.suppress(OSError):
            times.append(attempt.path.stat().st_mtime)
    return max(times)


def _queued(results: Results, slurm: Slurm | None) -> dict[str, str]:
    """Return the runs of jobs that have not ended; none on a machine without SLURM."""
    if slurm is None and shutil.which("squeue") is None:
        return {}
    slurm = slurm or Slurm()
    found: dict[str, str] = {}
    for folder in sorted((results.path / "sweeps").glob("*/intents")):
        with contextlib.suppress(SpecError):
            submissions = Submissions(results, folder.parent, is_owner=False)
            elements = list(submissions.open_elements())
            queue = slurm.read_queue() if elements else None
            for intent, index in elements:
                job = (queue or {}).get((submissions.job_of(intent) or 0, index))
                if queue is not None and (job is None or job.has_ended):
                    continue
                where = "in a job, if it is alive (SLURM does not respond)"
                if job is not None:
                    where = f"in job {job.job_id}_{job.index}, {job.state.lower()}"
                found |= dict.fromkeys(intent.job_groups[index].run_ids, where)
    return found

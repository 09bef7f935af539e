"""Cancelling runs: a mark in the run's folder, which every worker and launcher looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scalelab.launch.job import CANCELLED_FILE
from scalelab.launch.slurm.queue import Slurm
from scalelab.launch.slurm.submissions import Submissions
from scalelab.records.states import FINAL
from scalelab.records.sweep_dir import Results


@dataclass(frozen=True, kw_only=True, slots=True)
class CancelReport:
    """What was cancelled.

    Attributes
    ----------
    run_ids : tuple of str
        Runs that will not be trained on; those with a record are left alone.
    n_jobs : int
        Jobs taken out of SLURM's queue.
    is_queue_known : bool
        False when SLURM did not answer: its jobs then stop by themselves, at their next look.
    """

    run_ids: tuple[str, ...]
    n_jobs: int
    is_queue_known: bool


def cancel_runs(
    results: Results, sweep: str, run_ids: Sequence[str], *, slurm: Slurm | None = None
) -> CancelReport:
    """Cancel runs of a sweep; `resume` takes them up again where they stopped.

    A worker leaves a checkpoint first. Jobs of which no run is wanted any more leave the queue.

    Parameters
    ----------
    results : Results
    sweep : str
        Name of the sweep.
    run_ids : sequence of str
        Some of its runs.
    slurm : Slurm, optional
        The cluster; default the one that the environment names.
    """
    marked = []
    for run_id in run_ids:
        run = results.run(run_id)
        if run.status() not in FINAL:
            (run.path / CANCELLED_FILE).touch()
            marked.append(run_id)
    submissions = Submissions(results, results.sweep(sweep), is_owner=False)
    open_elements = list(submissions.open_elements())
    if not open_elements:
        return CancelReport(run_ids=tuple(marked), n_jobs=0, is_queue_known=True)
    queue = (slurm := slurm or Slurm()).read_queue()
    if queue is None:
        return CancelReport(run_ids=tuple(marked), n_jobs=0, is_queue_known=False)
    submissions.update(queue)
    elements = [
        (job_id, index)
        for intent, index in submissions.open_elements()
        if (job_id := submissions.job_of(intent)) is not None
        and not set(marked).isdisjoint(intent.packs[index].run_ids)
        and not any(is_wanted(results, run_id) for run_id in intent.packs[index].run_ids)
    ]
    done = slurm.cancel(elements)
    return CancelReport(
        run_ids=tuple(marked), n_jobs=len(elements) if done else 0, is_queue_known=done
    )


def is_wanted(results: Results, run_id: str) -> bool:
    """Say whether a run is neither finished nor cancelled."""
    run = results.run(run_id)
    return run.accepted() is None and not (run.path / CANCELLED_FILE).exists()

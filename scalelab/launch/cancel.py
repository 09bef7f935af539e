"""Cancelling runs: a mark in the run folder that every worker and launcher checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scalelab.launch.slurm.queue import Slurm
from scalelab.launch.slurm.submissions import Submissions
from scalelab.launch.worker import CANCELLED_FILE, is_stopped
from scalelab.records.states import FINAL, PRUNED
from scalelab.records.sweep_dir import Results


@dataclass(frozen=True, kw_only=True, slots=True)
class CancelReport:
    """What was cancelled.

    Attributes
    ----------
    run_ids : tuple of str
        Runs that were marked; finished and pruned runs are not.
    n_jobs : int
        SLURM jobs cancelled.
    is_queue_known : bool
        False if SLURM did not answer: running jobs then stop at their next check of the mark.
    """

    run_ids: tuple[str, ...]
    n_jobs: int
    is_queue_known: bool


def cancel_runs(
    results: Results, sweep: str, run_ids: Sequence[str], *, slurm: Slurm | None = None
) -> CancelReport:
    """Cancel runs of a sweep; `resume` continues them from their checkpoints.

    A worker saves a checkpoint before it stops. SLURM jobs are cancelled once all their runs are
    finished or cancelled. ``slurm`` defaults to the cluster of the environment.
    """
    marked = []
    for run_id in run_ids:
        run = results.run(run_id)
        if run.status() not in (*FINAL, PRUNED):
            (run.path / CANCELLED_FILE).touch()
            marked.append(run_id)
    submissions = Submissions(results, results.sweep(sweep), is_owner=False)
    elements: list[tuple[int, int]] = []
    is_queue_known = True
    if any(submissions.open_elements()):
        slurm = slurm or Slurm()
        queue = slurm.read_queue()
        submissions.update(queue)
        elements = submissions.unneeded_elements(set(marked), lambda r: is_over(results, r))
        is_queue_known = queue is not None and slurm.cancel(elements)
    return CancelReport(
        run_ids=tuple(marked),
        n_jobs=len(elements) if is_queue_known else 0,
        is_queue_known=is_queue_known,
    )


def is_over(results: Results, run_id: str) -> bool:
    """Return whether a run is finished, cancelled or pruned."""
    run = results.run(run_id)
    return run.accepted() is not None or is_stopped(run)

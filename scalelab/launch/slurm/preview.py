"""Preview of the jobs that a sweep would submit; needs no cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scalelab.launch.caps import refuse_over_cap
from scalelab.launch.proposal import Proposal
from scalelab.launch.slurm.arrays import chunked
from scalelab.launch.slurm.batch_script import make_executor
from scalelab.launch.slurm.intents import JOB_NAME_PREFIX
from scalelab.launch.slurm.job_groups import make_job_groups
from scalelab.launch.slurm.launcher import check_path, check_site_options
from scalelab.launch.slurm.queue import DEFAULT_MAX_ARRAY_SIZE, Slurm
from scalelab.launch.slurm.resources import (
    grouped_by_resources,
    is_timed,
    program_launcher,
    run_needs,
)
from scalelab.launch.slurm.retries import share_out
from scalelab.launch.speed import usd_per_gpu_hour
from scalelab.records.sweep_dir import Results
from scalelab.sweep.site_options import MEMORY_OPTIONS

INTENT_PLACEHOLDER = "00000000"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayPreview:
    """One array that a sweep would submit.

    Attributes
    ----------
    script : str
        Batch script; the real one has another id in its name.
    n_runs, n_jobs, n_running : int
        Runs, array elements, and elements that run at once.
    gpus : int
        GPUs of a job.
    time_min : int
        Time limit of a job, minutes.
    memory_gb : float or None
        Memory of a job on each node; 0 is all memory of the node. None if site options set it.
    gpu_hours : float or None
        Expected GPU-hours; None if the speed of a user's program is unknown.
    """

    script: str
    n_runs: int
    n_jobs: int
    n_running: int
    gpus: int
    time_min: int
    memory_gb: float | None
    gpu_hours: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmPreview:
    """The jobs that a sweep would submit.

    Attributes
    ----------
    arrays : tuple of ArrayPreview
        In the order of submission.
    n_jobs, n_arrays, n_running : int
        Array elements, arrays, and elements that run at once.
    gpu_hours, usd : float or None
        Expected GPU-hours and cost of the unfinished runs; None if unknown.
    site_check : str
        How the site options were checked, in words; empty if there are none.
    """

    arrays: tuple[ArrayPreview, ...]
    n_jobs: int
    n_arrays: int
    n_running: int
    gpu_hours: float | None
    usd: float | None
    site_check: str


def preview_slurm(proposal: Proposal, results: Results) -> SlurmPreview:
    """Return the jobs that a proposal would submit.

    Raises
    ------
    UsageError
        If they exceed a cap, a run cannot be split over its GPUs, or the installed sbatch does not
        have a site option.
    """
    check_path(results.path.resolve())
    table = proposal.sweep.launcher.slurm
    site_check = check_site_options(table, Slurm())
    rows = zip(proposal.plan.rows, proposal.cost.run_seconds, strict=True)
    longest_first = sorted(rows, key=lambda pair: -pair[1])
    seconds = {row.spec.run_id: row_seconds for row, row_seconds in longest_first}
    todo = [run_id for run_id in seconds if run_id not in proposal.finished]
    todo_rows = [row for row in proposal.plan.rows if row.spec.run_id in todo]
    needs = run_needs(
        table,
        proposal.execution,
        [row.spec for row in todo_rows],
        {row.spec.run_id: row.budget_flops for row in todo_rows},
    )
    job_groups = make_job_groups(
        todo,
        seconds,
        proposal.execution,
        target_s=60 * table.target_job_minutes,
        gpus={run_id: need.gpus for run_id, need in needs.items()},
    )
    chunks = chunked(grouped_by_resources(job_groups, needs, table), DEFAULT_MAX_ARRAY_SIZE)
    name = f"{proposal.plan.name}.{INTENT_PLACEHOLDER}"
    folder: Path = results.sweep(proposal.plan.name).resolve() / "intents" / name
    shares = share_out(table.array_parallelism, [len(groups) for _, groups in chunks])
    arrays = tuple(
        ArrayPreview(
            script=make_executor(
                table,
                resources,
                folder,
                JOB_NAME_PREFIX + name,
                n_elements=len(groups),
                throttle=max(1, share),
                launcher=program_launcher(proposal.execution),
            ).script(),
            n_runs=sum(len(group.run_ids) for group in groups),
            n_jobs=len(groups),
            n_running=share,
            gpu_hours=resources.gpus * sum(group.seconds for group in groups) / 3600
            if all(map(is_timed, groups))
            else None,
            gpus=resources.gpus,
            time_min=resources.time_min,
            memory_gb=None if MEMORY_OPTIONS & table.sbatch.keys() else resources.memory_gb,
        )
        for (resources, groups), share in zip(chunks, shares, strict=True)
    )
    hours = sum(array.gpu_hours or 0.0 for array in arrays)
    price = usd_per_gpu_hour(table)
    is_known = all(map(is_timed, job_groups))
    refuse_over_cap(table, 0.0, hours, price, is_known=is_known)
    return SlurmPreview(
        arrays=arrays,
        n_jobs=len(job_groups),
        n_arrays=len(arrays),
        n_running=sum(shares),
        gpu_hours=hours if is_known else None,
        usd=hours * price if is_known else None,
        site_check=site_check,
    )

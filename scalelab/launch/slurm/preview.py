"""Preview of the jobs that a sweep would submit; needs no cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from scalelab.launch.caps import refuse_over_cap
from scalelab.launch.proposal import Proposal
from scalelab.launch.slurm.batch_script import make_executor
from scalelab.launch.slurm.intents import JOB_NAME_PREFIX
from scalelab.launch.slurm.job_groups import jobs_execution, make_job_groups
from scalelab.launch.slurm.launcher import check_path, check_site_options
from scalelab.launch.slurm.queue import DEFAULT_MAX_ARRAY_SIZE, Slurm
from scalelab.launch.speed import usd_per_gpu_hour
from scalelab.records.sweep_dir import Results

INTENT_PLACEHOLDER = "00000000"


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmPreview:
    """The jobs that a sweep would submit.

    Attributes
    ----------
    script : str
        Batch script of the first array; the real one has another id in its name.
    n_jobs, n_arrays, n_running : int
        Array elements, arrays, and elements that run at once.
    gpu_hours, usd : float
        Expected GPU-hours and cost of the unfinished runs.
    site_check : str
        How the site options were checked, in words; empty if there are none.
    """

    script: str
    n_jobs: int
    n_arrays: int
    n_running: int
    gpu_hours: float
    usd: float
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
    specs = [row.spec for row in proposal.plan.rows if row.spec.run_id in todo]
    execution = jobs_execution(table, proposal.execution, specs)
    job_groups = make_job_groups(todo, seconds, execution, target_s=60 * table.target_job_minutes)
    hours = table.gpus_per_run * sum(group.seconds for group in job_groups) / 3600
    price = usd_per_gpu_hour(table)
    refuse_over_cap(table, 0.0, hours, price)
    name = f"{proposal.plan.name}.{INTENT_PLACEHOLDER}"
    folder: Path = results.sweep(proposal.plan.name).resolve() / "intents" / name
    n_elements = min(len(job_groups), DEFAULT_MAX_ARRAY_SIZE)
    throttle = min(table.array_parallelism, n_elements)
    script = ""
    if n_elements:
        script = make_executor(
            table, folder, JOB_NAME_PREFIX + name, n_elements=n_elements, throttle=throttle
        ).script()
    return SlurmPreview(
        script=script,
        n_jobs=len(job_groups),
        n_arrays=math.ceil(len(job_groups) / DEFAULT_MAX_ARRAY_SIZE),
        n_running=throttle,
        gpu_hours=hours,
        usd=hours * price,
        site_check=site_check,
    )

"""What a sweep would submit, without a cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from scalelab.launch.proposal import Proposal
from scalelab.launch.slurm.batch_script import make_executor
from scalelab.launch.slurm.execution import jobs_execution
from scalelab.launch.slurm.intents import JOB_NAME_PREFIX
from scalelab.launch.slurm.job_groups import make_job_groups, refuse_over_cap
from scalelab.launch.slurm.launcher import check_path
from scalelab.launch.slurm.queue import DEFAULT_MAX_ARRAY_SIZE
from scalelab.launch.speed import usd_per_gpu_hour
from scalelab.records.sweep_dir import Results

INTENT_PLACEHOLDER = "00000000"


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmPreview:
    """What would be submitted.

    Attributes
    ----------
    script : str
        Batch script of the first array; a real one has another number in its name.
    n_jobs, n_arrays, n_running : int
        Array elements, arrays, and elements that run at once.
    gpu_hours, usd : float
        Expected, finished runs left out.
    """

    script: str
    n_jobs: int
    n_arrays: int
    n_running: int
    gpu_hours: float
    usd: float


def preview_slurm(proposal: Proposal, results: Results) -> SlurmPreview:
    """Return what a proposal would submit.

    Raises
    ------
    UsageError
        When it would pass a cap, or a run cannot be shared by its GPUs.
    """
    check_path(results.path.resolve())
    table = proposal.sweep.launcher.slurm
    seconds = run_seconds_by_id(proposal)
    todo = [run_id for run_id in seconds if run_id not in proposal.finished]
    specs = [row.spec for row in proposal.plan.rows if row.spec.run_id in todo]
    execution = jobs_execution(table, proposal.execution, specs)
    packs = make_job_groups(todo, seconds, execution, target_s=60 * table.target_job_minutes)
    hours = table.gpus_per_run * sum(pack.seconds for pack in packs) / 3600
    price = usd_per_gpu_hour(table)
    refuse_over_cap(
        0.0,
        hours,
        max_gpu_hours=table.max_gpu_hours,
        max_usd=table.max_usd,
        usd_per_gpu_hour=price,
    )
    name = f"{proposal.plan.name}.{INTENT_PLACEHOLDER}"
    folder: Path = results.sweep(proposal.plan.name).resolve() / "intents" / name
    n_elements = min(len(packs), DEFAULT_MAX_ARRAY_SIZE)
    throttle = min(table.array_parallelism, n_elements)
    script = ""
    if n_elements:
        script = make_executor(
            table, folder, JOB_NAME_PREFIX + name, n_elements=n_elements, throttle=throttle
        ).script()
    return SlurmPreview(
        script=script,
        n_jobs=len(packs),
        n_arrays=math.ceil(len(packs) / DEFAULT_MAX_ARRAY_SIZE),
        n_running=throttle,
        gpu_hours=hours,
        usd=hours * price,
    )


def run_seconds_by_id(proposal: Proposal) -> dict[str, float]:
    """Return what each run of a proposal is expected to take, longest first."""
    found = {
        row.spec.run_id: seconds
        for row, seconds in zip(proposal.plan.rows, proposal.cost.run_seconds, strict=True)
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))

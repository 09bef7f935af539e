"""Grouping of runs into jobs, their execution, and the GPU-hours of jobs; pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from scalelab.launch.slurm.intents import Intent, JobGroup
from scalelab.launch.slurm.resources import gpus_of_node
from scalelab.sweep.devices import require_multi_device
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.site_options import require_gpus
from scalelab.sweep.tables import SlurmTable

MAX_GROUP_RUNS = 1000


def make_job_groups(
    run_ids: Sequence[str],
    seconds: Mapping[str, float],
    execution: ExecutionSpec,
    *,
    target_s: float,
    micro_batches: Mapping[str, int] | None = None,
    qualify: Sequence[str] = (),
) -> list[JobGroup]:
    """Return job groups of at most ``target_s`` each, in the order given.

    Parameters
    ----------
    run_ids : sequence of str
        In the order in which they should start.
    seconds : Mapping[str, float]
        Expected training time of each run, seconds.
    execution : ExecutionSpec
        How to execute each run.
    target_s : float
        Longest expected time of a group, seconds; a longer run gets its own job.
    micro_batches : Mapping[str, int], optional
        Micro-batch of the runs that ran out of memory; each gets its own job.
    qualify : sequence of str
        Runs at whose shapes a job qualifies its GPU.
    """
    micro_batches = micro_batches or {}
    groups: list[tuple[list[str], ExecutionSpec]] = []
    current: list[str] = []
    total = 0.0
    for run_id in run_ids:
        if run_id in micro_batches:
            smaller = replace(execution, micro_batch_seqs=micro_batches[run_id])
            groups.append(([run_id], smaller))
        elif current and len(current) < MAX_GROUP_RUNS and total + seconds[run_id] <= target_s:
            current.append(run_id)
            total += seconds[run_id]
        else:
            current, total = [run_id], seconds[run_id]
            groups.append((current, execution))
    return [
        JobGroup(
            run_ids=tuple(ids),
            execution=how,
            seconds=sum(seconds[i] for i in ids),
            qualify=tuple(qualify),
        )
        for ids, how in groups
    ]


def gpu_hours(intents: Sequence[Intent]) -> float:
    """Return the GPU-hours submitted: those used by ended jobs, those expected of the others."""
    total = 0.0
    for intent in intents:
        outcomes = intent.outcomes()
        for index, job_group in enumerate(intent.job_groups):
            outcome = outcomes.get(index)
            total += intent.gpus * (job_group.seconds if outcome is None else outcome.elapsed_s)
    return total / 3600


def jobs_execution(
    table: SlurmTable, execution: ExecutionSpec, specs: Iterable[RunSpec]
) -> ExecutionSpec:
    """Return the execution of runs in jobs; ``n_devices`` stays unset: a job uses its GPUs.

    Raises
    ------
    UsageError
        If a run cannot be split over the GPUs that the table requests, or site options request
        another number of GPUs.
    """
    require_gpus(table.sbatch, gpus_of_node(table.gpus_per_run, table.gpus_per_node))
    execution = replace(execution, tensor_parallel=table.tensor_parallel)
    planned = replace(execution, n_devices=max(1, table.gpus_per_run))
    for spec in specs:
        require_multi_device(spec, planned)
    return execution

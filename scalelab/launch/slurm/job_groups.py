"""Grouping of runs into jobs, and the GPU-hours of jobs; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from scalelab.launch.slurm.intents import Intent, JobGroup
from scalelab.sweep.execution import ExecutionSpec

MAX_GROUP_RUNS = 1000


def make_job_groups(
    run_ids: Sequence[str],
    seconds: Mapping[str, float],
    execution: ExecutionSpec,
    *,
    target_s: float,
    gpus: Mapping[str, int],
    micro_batches: Mapping[str, int] | None = None,
    qualify: Sequence[str] = (),
) -> list[JobGroup]:
    """Return job groups of at most ``target_s`` each, in the order given.

    The runs of a group have the same number of GPUs.

    Parameters
    ----------
    run_ids : sequence of str
        In the order in which they should start.
    seconds : Mapping[str, float]
        Expected training time of each run, seconds; 0 if it is unknown, for a user's program.
    execution : ExecutionSpec
        How to execute each run.
    target_s : float
        Longest expected time of a group, seconds; a longer run gets its own job, and one whose
        time is unknown.
    gpus : Mapping[str, int]
        GPUs of each run; 0 trains on the CPU.
    micro_batches : Mapping[str, int], optional
        Micro-batch of the runs that ran out of memory; each gets its own job.
    qualify : sequence of str
        Runs at whose shapes a job qualifies its GPU.
    """
    micro_batches = micro_batches or {}
    groups: list[tuple[list[str], ExecutionSpec]] = []
    current: dict[int, list[str]] = {}
    for run_id in run_ids:
        n_gpus = gpus[run_id]
        how = replace(execution, n_devices=max(1, n_gpus))
        ids = current.get(n_gpus, [])
        total = sum(seconds[i] for i in ids) + seconds[run_id]
        if run_id in micro_batches:
            groups.append(([run_id], replace(how, micro_batch_seqs=micro_batches[run_id])))
        elif execution.program is not None and not seconds[run_id]:
            groups.append(([run_id], how))
        elif ids and len(ids) < MAX_GROUP_RUNS and total <= target_s:
            ids.append(run_id)
        else:
            current[n_gpus] = [run_id]
            groups.append((current[n_gpus], how))
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

"""Small runs packed many to a job, and the caps that a submission must stay under. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from scalelab.errors import UsageError
from scalelab.launch.slurm.intents import Intent, JobGroup
from scalelab.sweep.run_spec import ExecutionSpec

MAX_PACK = 1000


def make_job_groups(
    run_ids: Sequence[str],
    seconds: Mapping[str, float],
    execution: ExecutionSpec,
    *,
    target_s: float,
    micro_batches: Mapping[str, int] | None = None,
) -> list[JobGroup]:
    """Return packs that last about ``target_s`` each, in the order given.

    Parameters
    ----------
    run_ids : sequence of str
        In the order in which they should start.
    seconds : Mapping[str, float]
        What each is expected to take.
    execution : ExecutionSpec
        How to execute each.
    target_s : float
        A job is closed before it would pass this; a longer run has a job of its own.
    micro_batches : Mapping[str, int], optional
        Micro-batch of the runs that ran out of memory; each gets a job of its own.
    """
    micro_batches = micro_batches or {}
    packs: list[JobGroup] = []
    current: list[str] = []
    total = 0.0

    def close() -> None:
        nonlocal current, total
        if current:
            packs.append(JobGroup(run_ids=tuple(current), execution=execution, seconds=total))
        current, total = [], 0.0

    for run_id in run_ids:
        if run_id in micro_batches:
            smaller = replace(execution, micro_batch_seqs=micro_batches[run_id])
            packs.append(JobGroup(run_ids=(run_id,), execution=smaller, seconds=seconds[run_id]))
            continue
        if total + seconds[run_id] > target_s or len(current) == MAX_PACK:
            close()
        current.append(run_id)
        total += seconds[run_id]
    close()
    return packs


def gpu_hours(intents: Sequence[Intent]) -> float:
    """Return the GPU-hours of what was submitted: used by ended jobs, expected of the others."""
    total = 0.0
    for intent in intents:
        outcomes = intent.outcomes()
        for index, pack in enumerate(intent.packs):
            outcome = outcomes.get(index)
            total += intent.gpus * (pack.seconds if outcome is None else outcome.elapsed_s)
    return total / 3600


def refuse_over_cap(
    spent_hours: float,
    asked_hours: float,
    *,
    max_gpu_hours: float | None,
    max_usd: float | None,
    usd_per_gpu_hour: float,
    unit: str = "GPU-hours",
) -> None:
    """Raise when what was spent and what is asked for pass a cap together.

    ``unit`` says in words what an hour is of, where it is not of a GPU.

    Raises
    ------
    UsageError
    """
    total = spent_hours + asked_hours
    words = f"{asked_hours:.3g} {unit} on top of {spent_hours:.3g} spent or submitted"
    if max_gpu_hours is not None and total > max_gpu_hours:
        raise UsageError(
            words,
            f"at most {max_gpu_hours:g} GPU-hours in all (--max-gpu-hours)",
            "Raise the cap, or plan less. Nothing of this was submitted.",
        )
    if max_usd is not None and total * usd_per_gpu_hour > max_usd:
        raise UsageError(
            # To the digit: where a cap is small, "< $0.01" on both sides would say nothing.
            f"{words}, ${total * usd_per_gpu_hour:.3g} at ${usd_per_gpu_hour:.3g} each",
            f"at most ${max_usd:g} in all (--max-usd)",
            "Raise the cap, or plan less. Nothing of this was submitted.",
        )

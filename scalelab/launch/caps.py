"""The caps on money and GPU-hours for a sweep on this machine; SLURM's are in `preview`."""

from __future__ import annotations

from scalelab.launch.packing import refuse_over_cap
from scalelab.launch.proposal import Proposal


def refuse_local_over_cap(proposal: Proposal) -> None:
    """Raise when what is left of a sweep on this machine would pass a cap.

    A worker hour is a GPU-hour where it holds a GPU, and costs what the plan says.

    Raises
    ------
    UsageError
    """
    table, speed = proposal.sweep.launcher.slurm, proposal.cost.speed
    hours = (
        sum(
            seconds
            for row, seconds in zip(proposal.plan.rows, proposal.cost.run_seconds, strict=True)
            if row.spec.run_id not in proposal.finished
        )
        / 3600
    )
    refuse_over_cap(
        0.0,
        hours,
        max_gpu_hours=table.max_gpu_hours if proposal.execution.device == "cuda" else None,
        max_usd=table.max_usd,
        usd_per_gpu_hour=speed.usd_per_worker_hour,
        unit="GPU-hours" if proposal.execution.device == "cuda" else "worker-hours",
    )

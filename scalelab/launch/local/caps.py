"""The caps on money and GPU-hours for a sweep on this machine; SLURM's are in `preview`."""

from __future__ import annotations

from collections.abc import Iterable

from scalelab.launch.slurm.job_groups import refuse_over_cap
from scalelab.sweep.cost import Speed
from scalelab.sweep.spec import SlurmTable


def refuse_local_over_cap(
    table: SlurmTable, seconds: Iterable[float], speed: Speed, *, device: str
) -> None:
    """Raise when what is left of a sweep on this machine would pass a cap.

    A worker hour is a GPU-hour where it holds a GPU, and costs what the plan says.

    Parameters
    ----------
    table : SlurmTable
        Holds the caps.
    seconds : iterable of float
        Of each run; a finished one takes none.
    speed : Speed
        Of this machine; says what a worker's hour costs.
    device : str
        ``cpu`` or ``cuda``.

    Raises
    ------
    UsageError
    """
    is_gpu = device == "cuda"
    refuse_over_cap(
        0.0,
        sum(seconds) / 3600,
        max_gpu_hours=table.max_gpu_hours if is_gpu else None,
        max_usd=table.max_usd,
        usd_per_gpu_hour=speed.usd_per_worker_hour,
        unit="GPU-hours" if is_gpu else "worker-hours",
    )

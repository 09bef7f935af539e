"""Caps on the GPU-hours and the cost of a sweep."""

from __future__ import annotations

from scalelab.errors import UsageError
from scalelab.sweep.tables import SlurmTable


def refuse_over_cap(
    table: SlurmTable,
    used_hours: float,
    new_hours: float,
    usd_per_hour: float,
    *,
    is_gpu: bool = True,
    is_known: bool = True,
) -> None:
    """Raise UsageError if used and new hours together exceed a cap of the table.

    Parameters
    ----------
    table : SlurmTable
        Holds the caps, also for sweeps on this machine.
    used_hours, new_hours : float
        Hours used or submitted before, and hours about to be submitted.
    usd_per_hour : float
    is_gpu : bool
        Whether these are GPU-hours; otherwise they are worker-hours on CPU cores.
    is_known : bool
        Whether the new hours are known; a cap on an unknown time is refused.
    """
    if not is_known and (table.max_gpu_hours is not None or table.max_usd is not None):
        raise UsageError(
            "--max-gpu-hours or --max-usd for a program whose speed is unknown",
            "a limit with an estimate of the time",
            "Add program.tokens_per_s, for example tokens_per_s = '180K', or remove the limit.",
        )
    total = used_hours + new_hours
    unit = "GPU-hours" if is_gpu else "worker-hours"
    given = f"{new_hours:.3g} {unit} in addition to {used_hours:.3g} used or submitted"
    do = "Raise --max-gpu-hours or --max-usd, or plan fewer runs. Nothing was submitted."
    if is_gpu and table.max_gpu_hours is not None and total > table.max_gpu_hours:
        allowed = f"at most {table.max_gpu_hours:g} GPU-hours in total (--max-gpu-hours)"
        raise UsageError(given, allowed, do)
    if table.max_usd is not None and total * usd_per_hour > table.max_usd:
        # Three digits: "< $0.01" for both numbers would not show which is larger.
        cost = f"{given}: ${total * usd_per_hour:.3g} in total at ${usd_per_hour:.3g} per hour"
        raise UsageError(cost, f"at most ${table.max_usd:g} in total (--max-usd)", do)

"""The largest runs of a sweep, which `largest_last` trains after the others."""

from __future__ import annotations

from collections.abc import Mapping


def largest_runs(budgets: Mapping[str, float | None], flops: Mapping[str, float]) -> frozenset[str]:
    """Return the run_ids of the largest budget; without budgets, those of the most FLOPs.

    Parameters
    ----------
    budgets : Mapping
        isoFLOP budget by run_id, FLOPs; None for a run without one.
    flops : Mapping
        Training FLOPs by run_id.
    """
    planned = {run_id: budgets.get(run_id) or flops[run_id] for run_id in flops}
    most = max(planned.values(), default=0.0)
    return frozenset(run_id for run_id, size in planned.items() if size == most)

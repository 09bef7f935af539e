"""What bf16 would save on a CPU that multiplies bf16 matrices by AMX, for the dry run.

Measured on a Xeon core beside other jobs (results/log/2026-11-27-bf16-on-a-cpu.md): CPU time of the
written-out step in bf16 over that in fp32, one thread, T = 256, batch 8.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scalelab.sweep.plan import Plan

CPU_FACTS = Path("/proc/cpuinfo")
MEASURED_RATIOS = {0.04e6: 1.05, 0.2e6: 0.78, 0.9e6: 0.72, 4.8e6: 0.55, 14e6: 0.48}
"""Time in bf16 over time in fp32, by parameters."""
LEAST_SAVING = 0.1
"""Below it nothing is said: steps of few tokens save less, at 576 tokens and width 24 nothing."""


def bf16_saving(plan: Plan) -> float:
    """Return the share of a plan's time that bf16 would save on a CPU with AMX, by FLOPs."""
    sizes, ratios = (np.array(list(part)) for part in zip(*MEASURED_RATIOS.items(), strict=True))
    flops = np.array([row.flops for row in plan.rows])
    n_params = np.array([row.n_params for row in plan.rows])
    ratio = np.interp(np.log(n_params), np.log(sizes), ratios)
    return float(1 - (flops * ratio).sum() / flops.sum())


def bf16_words(plan: Plan, device: str) -> list[str]:
    """Return a line on what bf16 saves or costs here; none where nothing is known or saved."""
    is_dense = all(row.spec.program is None and not row.spec.shape.n_experts for row in plan.rows)
    precisions = {row.spec.precision for row in plan.rows}
    if device != "cpu" or not is_dense or len(precisions) != 1:
        return []
    if precisions == {"bf16"} and not _has_amx():
        return [
            "precision: bf16. This CPU has no AMX: runs take the eager step, which is slower than "
            "fp32. Use --precision fp32"
        ]
    if precisions != {"fp32"} or not _has_amx():
        return []
    saving = bf16_saving(plan)
    if saving < LEAST_SAVING:
        return []
    return [
        "precision: fp32. This CPU has AMX: --precision bf16 would take about "
        f"{100 * saving:.0f} % less time (measured on a Xeon). "
        "Precision is part of a run: keep it the same in a fit"
    ]


def _has_amx() -> bool:
    try:
        return "amx_bf16" in CPU_FACTS.read_text()
    except OSError:
        return False

"""An optimal isoFLOP grid, chosen with the design method of the adaptive sweep, and its gain.

No run is finished yet, so the information of each run follows from the priors alone. The runs come
from a wider and finer grid at the same budgets and use the FLOPs of the plain grid. They minimize
the variance at the optimum of 100 times the largest budget.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from scalelab.forecast.adaptive import Target
from scalelab.forecast.design import ProposedRuns, propose_runs, variance_after
from scalelab.forecast.points import Points
from scalelab.forecast.posterior import fit_posterior
from scalelab.launch.adaptive import of_rows
from scalelab.launch.proposal import Proposal
from scalelab.sweep.spec import SweepSpec

AHEAD = 100.0
"""Compute of the target divided by the largest budget."""
FINER, WIDER = 2, 1.5
"""Number of sizes of the pool relative to the plain grid, and the power of its span."""
HALVINGS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class DesignGain:
    """Gain of an optimal grid over the plain one, given the priors.

    Attributes
    ----------
    target_flops : float
        Compute of the target.
    width_plain, width_optimal : float
        Standard deviation of the target's log loss after each grid, for the same FLOPs.
    flops_share : float
        Share of the plain grid's FLOPs with which an optimal grid reaches the same variance.
    """

    target_flops: float
    width_plain: float
    width_optimal: float
    flops_share: float


def pool_of(sweep: SweepSpec) -> SweepSpec:
    """Return the wider and finer grid from which an optimal grid is chosen."""
    return sweep.model_copy(
        update={"sizes": FINER * sweep.sizes - 1, "span": float(sweep.span**WIDER)}
    )


def optimal_grid(plain: Proposal, pool: Proposal) -> tuple[Proposal, DesignGain]:
    """Return the grid with the least variance at the target for the FLOPs of the plain grid.

    ``pool`` is the proposal of the sweep that `pool_of` returns for the plain one.
    """
    target_flops = AHEAD * max(plain.sweep.budgets)
    rows = (*plain.plan.rows, *pool.plan.rows)
    columns = {
        "n_params": np.array([float(row.n_params_active) for row in rows]),
        "n_tokens": np.array([float(row.spec.n_tokens) for row in rows]),
    }
    wanted = Target(flops=target_flops).resolve((), columns)
    points = Points(
        columns={name: np.append(values, wanted[name]) for name, values in columns.items()},
        reference_flops=target_flops,
    )
    posterior = fit_posterior(
        points, np.zeros(0, dtype=np.intp), np.zeros(0), rng=np.random.default_rng(0)
    )
    first, target = len(plain.plan.rows), np.array([len(rows)])
    flops = np.append([row.flops for row in rows], np.inf)
    is_free = np.arange(len(points)) >= first
    is_free[-1] = False
    budget = plain.plan.total_flops

    def planned(share: float) -> ProposedRuns:
        return propose_runs(posterior, target, flops, share * budget, is_free=is_free)

    best = planned(1.0)
    of_plain = variance_after(posterior, target, np.arange(first))
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        is_enough = flops[first:-1].min() <= middle * budget and planned(middle).after <= of_plain
        low, high = (low, middle) if is_enough else (middle, high)
    chosen = sorted(choice.position - first for choice in best.choices)
    proposal = of_rows(pool, [pool.plan.rows[i] for i in chosen])
    proposal = dataclasses.replace(
        proposal, plan=dataclasses.replace(proposal.plan, kind=plain.plan.kind)
    )
    return proposal, DesignGain(
        target_flops=target_flops,
        width_plain=float(np.sqrt(max(of_plain, 0.0))),
        width_optimal=float(np.sqrt(max(best.after, 0.0))),
        flops_share=high,
    )

"""A whole iso-FLOP grid at once by the mathematics of the adaptive sweep, and what it gains.

Nothing has been run, so the priors alone say what each run would teach. The runs are chosen among
those of a wider and finer grid at the same budgets, for the FLOPs of the plain grid, to leave the
least variance at the optimum of a hundred times its largest budget.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalelab.forecast.adaptive import Target
from scalelab.forecast.design import Batch, plan_batch, variance_after
from scalelab.forecast.posterior import Points, fit_posterior
from scalelab.launch.adaptive import of_rows
from scalelab.launch.proposal import Proposal
from scalelab.sweep.spec import SweepSpec

FloatArray = NDArray[np.float64]

AHEAD = 100.0
"""Compute of the target over that of the largest budget."""
FINER, WIDER = 2, 1.5
"""Sizes of the pool over those of the plain grid, and the power of its span."""
HALVINGS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class DesignGain:
    """What an optimal grid gains over the plain one, as the priors see it.

    Attributes
    ----------
    target_flops : float
        Compute of the target.
    width_plain, width_optimal : float
        Standard deviation of the target's log loss after each grid, for the same FLOPs.
    flops_share : float
        FLOPs with which the optimal grid leaves as much as the plain one, over those of that.
    """

    target_flops: float
    width_plain: float
    width_optimal: float
    flops_share: float


def pool_of(sweep: SweepSpec) -> SweepSpec:
    """Return the wider and finer grid among whose runs an optimal one is chosen."""
    return sweep.model_copy(
        update={"sizes": FINER * sweep.sizes - 1, "span": float(sweep.span**WIDER)}
    )


def optimal_grid(plain: Proposal, pool: Proposal) -> tuple[Proposal, DesignGain]:
    """Return the grid that leaves the least variance for the FLOPs of the plain one.

    Parameters
    ----------
    plain : Proposal
        Of the iso-FLOP sweep as it was asked for.
    pool : Proposal
        Of `pool_of` it.
    """
    target_flops = AHEAD * max(plain.sweep.budgets)
    rows = (*plain.plan.rows, *pool.plan.rows)
    columns = {
        "n_params": np.array([float(row.n_params) for row in rows]),
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

    def planned(share: float) -> Batch:
        return plan_batch(posterior, target, flops, share * budget, is_free=is_free)

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

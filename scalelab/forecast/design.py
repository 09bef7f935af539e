r"""Proposed runs of an adaptive sweep: they reduce the target's variance most for a budget.

The criterion is Bayesian V-optimality: the mean, over the target points, of the variance of the
predicted log loss (c-optimality for a single point). Under the Gaussian of
`scalelab.forecast.posterior` a run at x reduces the variance at t by
:math:`cov(t, x)^2 / (var(x) + noise(x))`. This does not depend on its loss, so several runs can be
chosen before any of them is made, by rank-one updates. They are chosen greedily by gain per FLOP^w,
for several w from 0 (largest gain) to 1 (largest gain per FLOP). The choice that leaves the least
variance is proposed.

References
----------
Chaloner and Verdinelli 1995, "Bayesian experimental design: a review". Leskovec et al. 2007,
"Cost-effective outbreak detection in networks" (greedy choice under a budget).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.forecast.posterior import Posterior

Positions = NDArray[np.intp]

COST_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Exponents w of the cost."""
MAX_RUNS = 64
"""Largest number of proposed runs."""
MIN_VARIANCE_SHARE = 2e-3
"""Smallest share of the remaining variance that a proposed run must remove."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One proposed run, with the reason for it.

    Attributes
    ----------
    position : int
        Position of the run among the points.
    flops : float
        Its cost.
    gain : float
        Variance of the target that this run removes after the runs chosen before it, as a share of
        the variance without any proposed run.
    correlation : float
        Correlation of the log losses of the run and of the target, without any proposed run.
    """

    position: int
    flops: float
    gain: float
    correlation: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposedRuns:
    """The runs proposed for a budget.

    Attributes
    ----------
    choices : tuple of Choice
        In order of choice.
    before, after : float
        Mean variance of the target's log loss without the proposed runs, and after them.
    cost_power : float
        The exponent w of this choice.
    """

    choices: tuple[Choice, ...]
    before: float
    after: float
    cost_power: float

    @property
    def flops(self) -> float:
        """Cost of all runs."""
        return sum(choice.flops for choice in self.choices)


@dataclass(slots=True)
class _Columns:
    """Covariances of single points with all others, computed once for all exponents w."""

    posterior: Posterior
    features: FloatArray
    known: dict[int, FloatArray] = field(default_factory=dict)

    def __call__(self, j: int) -> FloatArray:
        if j not in self.known:
            self.known[j] = self.posterior.covariance(j, self.features)
        return self.known[j]


def propose_runs(
    posterior: Posterior,
    targets: Positions,
    flops: FloatArray,
    budget: float,
    *,
    is_free: NDArray[np.bool_],
) -> ProposedRuns:
    """Return the runs that leave the least variance at the targets.

    Parameters
    ----------
    posterior : Posterior
    targets : ndarray of int, shape (t,)
        Positions of the target points.
    flops : ndarray of shape (n,)
        Cost of a run at each point.
    budget : float
        FLOPs.
    is_free : ndarray of bool, shape (n,)
        Points that may be run.
    """
    columns = _Columns(posterior, posterior.points.features)
    variance = posterior.variance()
    to_targets = np.stack([columns(int(t)) for t in targets])
    before = float(variance[targets].mean())
    choices = [
        _greedy(posterior, columns, variance, to_targets, targets, flops, budget, is_free, power)
        for power in COST_POWERS
    ]
    i = int(np.argmin([after for _, after in choices]))
    scale = np.sqrt(variance[targets])[:, None] * np.sqrt(variance) + 1e-300
    correlation = np.sqrt(np.mean((to_targets / scale) ** 2, axis=0))
    return ProposedRuns(
        choices=tuple(
            Choice(
                position=j,
                flops=float(flops[j]),
                gain=gain / max(before, 1e-300),
                correlation=float(min(correlation[j], 1.0)),
            )
            for j, gain in choices[i][0]
        ),
        before=before,
        after=choices[i][1],
        cost_power=COST_POWERS[i],
    )


def variance_after(posterior: Posterior, targets: Positions, runs: Positions) -> float:
    """Return the mean variance of the targets after runs at these points, which may repeat."""
    columns = _Columns(posterior, posterior.points.features)
    taken: list[FloatArray] = []
    left = float(posterior.variance()[targets].mean())
    for j in runs:
        column = columns(int(j)).copy()
        for earlier in taken:
            column -= earlier * earlier[j]
        root = column / np.sqrt(max(float(column[j]), 0.0) + posterior.noise[j])
        taken.append(root)
        left -= float((root[targets] ** 2).mean())
    return left


def _greedy(
    posterior: Posterior,
    columns: _Columns,
    variance: FloatArray,
    to_targets: FloatArray,
    targets: Positions,
    flops: FloatArray,
    budget: float,
    is_free: NDArray[np.bool_],
    power: float,
) -> tuple[list[tuple[int, float]], float]:
    """Return the chosen positions with their gains, and the remaining variance."""
    variance, to_targets, is_free = variance.copy(), to_targets.copy(), is_free.copy()
    price = (flops / flops[is_free].max()) ** power if is_free.any() else flops
    left = float(variance[targets].mean())
    taken: list[FloatArray] = []
    chosen: list[tuple[int, float]] = []
    while len(chosen) < MAX_RUNS:
        can = is_free & (flops <= budget)
        if not can.any():
            break
        gain = (to_targets**2).mean(axis=0) / (np.maximum(variance, 0.0) + posterior.noise)
        j = int(np.argmax(np.where(can, gain / price, -1.0)))
        is_free[j] = False
        if gain[j] < MIN_VARIANCE_SHARE * left:
            if power == 0.0:
                break
            continue
        column = columns(j).copy()
        for earlier in taken:
            column -= earlier * earlier[j]
        root = column / np.sqrt(max(float(column[j]), 0.0) + posterior.noise[j])
        taken.append(root)
        variance -= root**2
        to_targets -= np.outer(root[targets], root)
        budget -= float(flops[j])
        left -= float(gain[j])
        chosen.append((j, float(gain[j])))
    return chosen, left

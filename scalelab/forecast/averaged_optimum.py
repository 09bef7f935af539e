"""Compute-optimal N and D of the averaged forecaster, with joint draws.

All sizes, tokens and exponents come from the same draws (`scalelab.forecast.paths`). So the
interval of D_opt is that of N_opt at C = 6 N D, and an exponent is a slope of drawn frontiers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.errors import NotIdentifiedError
from scalelab.fit.intervals import Interval
from scalelab.forecast.averaged import AveragedFit
from scalelab.forecast.line import line_of
from scalelab.forecast.valley import valley_of
from scalelab.theory.accounting import tokens_at_6nd
from scalelab.units import format_quantity

DECADE = math.log(10.0)
MAX_STEPS = 40


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Optima:
    """Compute-optimal sizes at k values of the compute.

    Attributes
    ----------
    flops, n_params : ndarray of shape (k,)
    log_draws : ndarray of shape (draws, k)
        Draws of log N_opt; each row is one frontier.
    is_inside : ndarray of bool, shape (k,)
        Whether the runs show an optimum.
    """

    flops: FloatArray
    n_params: FloatArray
    log_draws: FloatArray
    is_inside: NDArray[np.bool_]

    def n_limits(self, level: float) -> FloatArray:
        """Return the limits of N_opt, shape (2, k); they contain N_opt."""
        limits = np.exp(np.quantile(self.log_draws, _tails(level), axis=0))
        return np.stack(
            [np.minimum(limits[0], self.n_params), np.maximum(limits[1], self.n_params)]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierPoint:
    """The compute-optimal frontier at one compute.

    Attributes
    ----------
    flops : float
    n_params, n_tokens : Interval
        N_opt and D_opt = C / 6 / N_opt.
    a, b : Interval
        Local exponents d log N_opt / d log C and d log D_opt / d log C, over the decade around
        the compute; a + b = 1.
    """

    flops: float
    n_params: Interval
    n_tokens: Interval
    a: Interval
    b: Interval

    def to_dict(self) -> dict[str, object]:
        """Return the point under the names of the JSON contract."""
        names = ("n_params", "n_tokens", "a", "b")
        return {
            "flops": self.flops,
            **{
                name: {end: getattr(getattr(self, name), end) for end in ("value", "low", "high")}
                for name in names
            },
        }


def optima(found: AveragedFit, flops: FloatArray) -> Optima:
    """Return the compute-optimal sizes at these values of the compute, C = 6 N D.

    The mean loss and each draw have the bottom of their own valley, followed from the middle of the
    runs (`scalelab.forecast.valley`). So N_opt exists and is continuous in C wherever the runs show
    an optimum, however far the compute is from theirs.
    """
    valley = valley_of(found)
    log_n, log_draws = valley.sizes(np.log(flops))
    return Optima(
        flops=flops,
        n_params=np.exp(log_n),
        log_draws=log_draws,
        is_inside=np.full(len(flops), valley.is_inside),
    )


def compute_optimal_size(found: AveragedFit, flops: float) -> float:
    """Return the compute-optimal N without its draws."""
    return math.exp(valley_of(found).size(math.log(flops)))


def frontier_points(
    found: AveragedFit, budgets: Sequence[float], level: float = 0.9
) -> tuple[FrontierPoint, ...]:
    """Return N_opt, D_opt and local exponents at these budgets, where the runs determine them."""
    if line_of(found.rows) is not None:
        return ()
    k, flops = len(budgets), np.asarray(budgets, dtype=np.float64)
    around = np.concatenate([flops, flops * math.exp(-DECADE / 2), flops * math.exp(DECADE / 2)])
    all_optima = optima(found, around)
    low_n, high_n = all_optima.n_limits(level)
    log_n, draws = np.log(all_optima.n_params), all_optima.log_draws
    slopes = (log_n[2 * k :] - log_n[k : 2 * k]) / DECADE
    drawn = (draws[:, 2 * k :] - draws[:, k : 2 * k]) / DECADE
    low_a, high_a = np.quantile(drawn, _tails(level), axis=0)
    out = []
    for i, each in enumerate(flops):
        if not all_optima.is_inside[[i, k + i, 2 * k + i]].all():
            continue
        size = Interval(
            value=float(all_optima.n_params[i]), low=float(low_n[i]), high=float(high_n[i])
        )
        a = Interval(
            value=float(slopes[i]),
            low=float(min(low_a[i], slopes[i])),
            high=float(max(high_a[i], slopes[i])),
        )
        out.append(
            FrontierPoint(
                flops=float(each),
                n_params=size,
                n_tokens=tokens_of(size, float(each)),
                a=a,
                b=Interval(value=1 - a.value, low=1 - a.high, high=1 - a.low),
            )
        )
    return tuple(out)


def tokens_of(size: Interval, flops: float) -> Interval:
    """Return the tokens of a size at a compute, C = 6 N D."""
    return Interval(
        value=tokens_at_6nd(flops, size.value),
        low=tokens_at_6nd(flops, size.high),
        high=tokens_at_6nd(flops, size.low),
    )


def flops_where(found: AveragedFit, column: str, value: float, start: float) -> float:
    """Return the compute at which the compute-optimal N or D is ``value``.

    N_opt and D_opt do not fall with compute, so there is one such compute or a range of them.

    Raises
    ------
    NotIdentifiedError
        If they do not reach the value within a factor of e^`MAX_STEPS` of ``start``.
    """
    from scipy.optimize import brentq  # costs 0.15 s, and few questions need it

    def excess(log_flops: float) -> float:
        flops = math.exp(log_flops)
        size = compute_optimal_size(found, flops)
        return math.log((size if column == "n_params" else tokens_at_6nd(flops, size)) / value)

    low = high = math.log(start)
    while excess(high) < 0 and high < math.log(start) + MAX_STEPS:
        high += 2.0
    while excess(low) > 0 and low > math.log(start) - MAX_STEPS:
        low -= 2.0
    if excess(low) > 0 or excess(high) < 0:
        name = "N" if column == "n_params" else "D"
        raise NotIdentifiedError(
            f"{name} = {format_quantity(value)}, which the runs show to be compute-optimal nowhere",
            f"a {name} that is nearer to the runs",
            "Give both N and D, or add runs nearer to it.",
        )
    return math.exp(brentq(excess, low, high, xtol=1e-9)) if low < high else math.exp(low)


def _tails(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]

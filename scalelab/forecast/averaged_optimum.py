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
from scalelab.fit.outcome import Interval
from scalelab.forecast.averaged import AveragedFit
from scalelab.forecast.line import line_of
from scalelab.forecast.paths import Paths, paths_of
from scalelab.theory.accounting import tokens_at_6nd

TOKENS_PER_PARAM = (0.1, 1e5)
"""Range in which the compute-optimal size is searched."""
N_COARSE, N_NEAR, N_DRAWN = 61, 13, 49
REACH = 4.0
"""Natural logs of N on both sides of the optimum in which the draws are searched."""
DECADE = math.log(10.0)
MAX_STEPS, BISECTIONS = 40, 40


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Optima:
    """Compute-optimal sizes at k values of the compute.

    Attributes
    ----------
    flops, n_params : ndarray of shape (k,)
    log_draws : ndarray of shape (draws, k)
        Draws of log N_opt; each row is one frontier.
    is_inside : ndarray of bool, shape (k,)
        Whether the mean loss has a minimum inside the searched range.
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

    Each draw has the minimum of its own valley around the optimum of the mean: the search goes
    downhill from there. Far from all rows a drawn misfit can fall below the valley, at sizes that
    no run speaks of; such minima do not count. A draw that falls up to a factor of e^`REACH` has
    that limit, which says that the runs do not bound N_opt on that side.
    """
    paths = paths_of(found)
    log_n, is_inside = _lowest_mean(paths, flops)
    grid = log_n[:, None] + np.linspace(-REACH, REACH, N_DRAWN)
    drawn = paths.draws(_at_compute(np.exp(grid), flops)).reshape(-1, *grid.shape)
    log_draws = np.stack([_valley(grid[i], drawn[:, i]) for i in range(len(flops))], axis=1)
    return Optima(flops=flops, n_params=np.exp(log_n), log_draws=log_draws, is_inside=is_inside)


def compute_optimal_size(found: AveragedFit, flops: float) -> float:
    """Return the compute-optimal N without its draws."""
    return math.exp(_lowest_mean(paths_of(found), np.array([flops]))[0][0])


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
    """Return the compute at which the compute-optimal N or D is ``value``, by bisection."""

    def is_below(log_flops: float) -> bool:
        flops = math.exp(log_flops)
        n_params = compute_optimal_size(found, flops)
        return (n_params if column == "n_params" else tokens_at_6nd(flops, n_params)) < value

    low = high = math.log(start)
    while is_below(high) and high < math.log(start) + MAX_STEPS:
        high += 1.0
    while not is_below(low) and low > math.log(start) - MAX_STEPS:
        low -= 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return math.exp((low + high) / 2)


def _tails(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]


def _at_compute(n_params: FloatArray, flops: FloatArray) -> dict[str, FloatArray]:
    """Return the points of k rows of sizes, each row at its compute, as columns."""
    return {
        "n_params": n_params.ravel(),
        "n_tokens": np.ravel(tokens_at_6nd(flops[:, None], n_params)),
    }


def _lowest_mean(paths: Paths, flops: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return log N_opt at k values of the compute, and whether the minimum is inside."""
    least, most = (np.log(np.sqrt(flops / 6 / ratio)) for ratio in reversed(TOKENS_PER_PARAM))
    grid = np.linspace(least, most, N_COARSE, axis=1)
    losses = paths.mean(_at_compute(np.exp(grid), flops)).reshape(grid.shape)
    at = losses.argmin(axis=1)
    step = grid[0, 1] - grid[0, 0]
    rows = np.arange(len(flops))
    near = grid[rows, at][:, None] + np.linspace(-step, step, N_NEAR)
    losses = paths.mean(_at_compute(np.exp(near), flops)).reshape(near.shape)
    found = np.array([_lowest(near[i], losses[None, i])[0] for i in rows])
    return found, (at > 0) & (at < N_COARSE - 1)


def _valley(x: FloatArray, losses: FloatArray) -> FloatArray:
    """Return the minimum that each row of losses (k, n) has downhill from the middle of x."""
    middle, rows = len(x) // 2, np.arange(len(losses))
    rises, end = np.diff(losses, axis=1) > 0, np.ones((len(losses), 1), dtype=bool)
    right = middle + np.hstack([rises[:, middle:], end]).argmax(axis=1)
    left = middle - np.hstack([~rises[:, :middle][:, ::-1], end]).argmax(axis=1)
    return _vertex(x, losses, np.where(losses[rows, left] < losses[rows, right], left, right))


def _lowest(x: FloatArray, losses: FloatArray) -> FloatArray:
    """Return where each row of losses (k, n) is lowest."""
    return _vertex(x, losses, np.argmin(losses, axis=1))


def _vertex(x: FloatArray, losses: FloatArray, at: NDArray[np.intp]) -> FloatArray:
    """Return the minimum near a position of each row, by a parabola through three points."""
    at = np.clip(at, 1, len(x) - 2)
    rows = np.arange(len(losses))
    left, middle, right = (losses[rows, at + shift] for shift in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
    return np.asarray(x[at] + np.clip(shift, -1, 1) * (x[1] - x[0]))

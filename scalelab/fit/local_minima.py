"""Minima of isoFLOP curves by local interpolation, for wide and asymmetric curves.

A parabola through a wide grid is biased if the loss is steeper on one side and the grid is off
centre or drifts. Akima's interpolant depends only on the nearest sizes, so it has no such bias, but
follows the noise. Each loss therefore gets noise of the estimated size many times; the minimum of a
budget is the median over these replicates. Use it beside the parabolas, whose exponents are 5 to 10
times less noisy on a centred grid.

References
----------
Akima 1970, Journal of the ACM 17. Porian et al. 2024, arXiv:2406.19146, appendix (the method).
"""

from __future__ import annotations

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.fit.intervals import percentile_limits
from scalelab.fit.isoflop import Axis, IsoflopFit
from scalelab.fit.power_law import PowerLaw
from scalelab.records.types import Observations

MIN_SIZES = 7
"""Minimum number of sizes of a budget: with fewer, the residuals hardly show the noise."""
DEGREE = 4
"""Degree of the polynomial whose residuals give the noise."""
REPLICATES = 400
POINTS = 25
"""Points of the interpolant between two sizes."""
STRAIGHT = 1e-9
"""Change of slope, relative to the largest, below which values lie on a line."""


def local_law(
    observations: Observations, fit: IsoflopFit, axis: Axis, *, level: float = 0.9, seed: int = 0
) -> PowerLaw | None:
    """Return the power law through the local minima; None with fewer than two budgets.

    Parameters
    ----------
    observations : Observations
    fit : IsoflopFit
        Approach 2, whose budgets are used.
    axis : {"n", "d"}
        N_opt or D_opt.
    level : float
        Level of the interval of the exponent.
    seed : int
        Seed of the noise.
    """
    size = observations.n_params if axis == "n" else observations.n_tokens
    curves = []
    for curve in fit.curves:
        x, y = _lowest(np.log(size[curve.rows]), np.log(observations.loss_nats[curve.rows]))
        if len(x) >= MIN_SIZES:
            curves.append((np.log(curve.budget), x, y))
    squares = [_residual_square(x, y) for _, x, y in curves]
    spare = sum(freedom for _, freedom in squares)
    sigma = (sum(square for square, _ in squares) / spare) ** 0.5 if spare else 0.0
    rng = np.random.default_rng((seed, 4))
    log_c, minima = [], []
    for budget, x, y in curves:
        at = _minima(x, y + sigma * rng.standard_normal((REPLICATES, len(y))))
        if np.isfinite(at).mean() > 0.5:
            log_c.append(budget)
            minima.append(np.where(np.isfinite(at), at, np.nanmedian(at)))
    if len(log_c) < 2:
        return None
    table = np.array(minima)
    slope, intercept = np.polyfit(log_c, np.median(table, axis=1), 1)
    low, high = percentile_limits(np.polyfit(log_c, table, 1)[0], level, float(slope))
    is_known = bool(np.isfinite(low))
    return PowerLaw(
        exponent=float(slope),
        log_coefficient=float(intercept),
        low=low if is_known else None,
        high=high if is_known else None,
    )


def _lowest(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the different sizes in ascending order and the lowest loss of each."""
    sizes, group = np.unique(np.round(x, 9), return_inverse=True)
    lowest = np.full(len(sizes), np.inf)
    np.minimum.at(lowest, group, y)
    return sizes, lowest


def _residual_square(x: FloatArray, y: FloatArray) -> tuple[float, int]:
    """Return the sum of squares around a smooth curve, and its degrees of freedom."""
    degree = min(DEGREE, len(x) - 2)
    u = (x - x.mean()) / np.ptp(x)
    rest = y - np.polyval(np.polyfit(u, y, degree), u)
    return float(rest @ rest), len(x) - degree - 1


def akima(x: FloatArray, y: FloatArray, at: FloatArray) -> FloatArray:
    """Return Akima's interpolants through k rows of values, shape (k, m).

    That of SciPy is the same, but its import costs 0.3 s.

    Parameters
    ----------
    x : ndarray of shape (n,)
        Ascending, 3 or more.
    y : ndarray of shape (k, n)
    at : ndarray of shape (m,)
        Between the first and the last x.
    """
    width = np.diff(x)
    chords = np.diff(y, axis=1) / width
    # Two more chords at each end, on a parabola through the last three values.
    before, after = (2 * ends[0] - ends[1] for ends in (chords.T, chords.T[::-1]))
    first, last = 2 * before - chords[:, 0], 2 * after - chords[:, -1]
    chords = np.column_stack([first, before, chords, after, last])
    change = np.abs(np.diff(chords, axis=1))
    right, left = change[:, 2:], change[:, :-2]
    total = right + left
    slopes = 0.5 * (chords[:, 3:] + chords[:, :-3])
    bends = total > STRAIGHT * total.max(initial=0.0)
    share = left / np.where(bends, total, 1.0)
    weighted = chords[:, 1:-2] + share * (chords[:, 2:-1] - chords[:, 1:-2])
    slopes = np.where(bends, weighted, slopes)
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(width) - 1)
    t, h = (at - x[i]) / width[i], width[i]
    back = 1.0 - t
    return np.asarray(
        back**2 * ((1.0 + 2.0 * t) * y[:, i] + t * h * slopes[:, i])
        + t**2 * ((1.0 + 2.0 * back) * y[:, i + 1] - back * h * slopes[:, i + 1])
    )


def _minima(x: FloatArray, y: FloatArray) -> FloatArray:
    """Return the minimum of each interpolant in log size, shape (k,); NaN at an edge."""
    grid = np.linspace(x[0], x[-1], POINTS * (len(x) - 1) + 1)
    lowest = akima(x, y, grid).argmin(axis=1)
    is_edge = (lowest == 0) | (lowest == len(grid) - 1)
    return np.where(is_edge, np.nan, grid[lowest])

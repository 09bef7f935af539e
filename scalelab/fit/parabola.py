"""The least-squares parabola through the losses of one budget, its minimum and interval.

References
----------
Fieller 1954, Journal of the Royal Statistical Society B 16 (the interval of a ratio).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from scalelab.arrays import FloatArray

MIN_ROWS = 3
"""Minimum number of different sizes in a budget for a parabola."""
ROUNDING = 1e-9
"""Relative width up to which an interval is rounding."""
FARTHEST = 100.0
"""Distance in log x from the centre of the grid beyond which a minimum or a limit is none."""
MAX_CONDITION = 1e12
"""Condition number above which the parabola of a replicate is not determined."""

Edge = Literal["below", "above", "not_convex"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveMinimum:
    """Minimum of a parabola in log x.

    Attributes
    ----------
    value : float
        x at the minimum; NaN if the parabola is not convex.
    low, high : float or None
        Fieller interval; None if it is unbounded, or without noise or a residual degree of freedom.
    loss : float
        Fitted loss at the minimum.
    edge : {"below", "above", "not_convex"} or None
        None for a minimum inside the grid; else the side of the grid on which it is, or
        ``not_convex`` without a minimum.
    coefficients : tuple of float
        c0, c1, c2 of the parabola in u = (log x - centre) / half_width.
    centre, half_width : float
        Centre and half width of the grid in log x.
    """

    value: float
    low: float | None
    high: float | None
    loss: float
    edge: Edge | None
    coefficients: tuple[float, float, float]
    centre: float
    half_width: float

    @property
    def offset(self) -> float:
        """Distance from the centre of the grid to the minimum, in log x."""
        return math.log(self.value) - self.centre

    def curve(self, x: FloatArray) -> FloatArray:
        """Return the parabola at x."""
        u = (np.log(x) - self.centre) / self.half_width
        c0, c1, c2 = self.coefficients
        return c0 + u * (c1 + u * c2)


def fit_parabola(x: FloatArray, y: FloatArray, level: float) -> CurveMinimum | None:
    """Return the minimum of the least-squares parabola through (log x, y)."""
    log_x = np.log(x)
    centre, half_width = (log_x.max() + log_x.min()) / 2, np.ptp(log_x) / 2
    if len(np.unique(np.round(log_x, 9))) < MIN_ROWS:
        return None
    u = (log_x - centre) / half_width
    design = np.column_stack([np.ones_like(u), u, u * u])
    c, _, _, _ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(u) - 3
    low = high = None
    farthest = FARTHEST / half_width
    if abs(c[1]) < 2 * c[2] * farthest:
        at = -c[1] / (2 * c[2])
        edge: Edge | None = "below" if at < -1 else "above" if at > 1 else None
        value, loss = math.exp(centre + half_width * at), c[0] + at * (c[1] + at * c[2])
        if freedom > 0:
            variance = np.sum((y - design @ c) ** 2) / freedom
            covariance = variance * np.linalg.inv(design.T @ design)
            bounds = fieller(c, covariance, float(special.stdtrit(freedom, (1 + level) / 2)))
            if bounds is not None and max(map(abs, bounds)) < farthest:
                ends = [math.exp(centre + half_width * bound) for bound in bounds]
                # Without noise the limits are the value, up to rounding.
                if ends[1] - ends[0] > ROUNDING * value:
                    low, high = min(ends[0], value), max(ends[1], value)
    else:
        edge, value, loss = "not_convex", math.nan, float(y.min())
    return CurveMinimum(
        value=value,
        low=low,
        high=high,
        loss=float(loss),
        edge=edge,
        coefficients=(float(c[0]), float(c[1]), float(c[2])),
        centre=float(centre),
        half_width=float(half_width),
    )


def fieller(c: FloatArray, covariance: FloatArray, t: float) -> tuple[float, float] | None:
    """Return the interval of u where the slope c1 + 2 c2 u may be 0; None if it is unbounded."""
    tt = t * t
    square = 4 * (c[2] ** 2 - tt * covariance[2, 2])
    linear = 4 * (c[1] * c[2] - tt * covariance[1, 2])
    constant = c[1] ** 2 - tt * covariance[1, 1]
    root = linear**2 - 4 * square * constant
    if square <= 0 or root < 0:
        return None
    spread = math.sqrt(root)
    return (-linear - spread) / (2 * square), (-linear + spread) / (2 * square)


def parabolas(u: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """Return c0, c1, c2 of each replicate by weighted least squares, shape (k, 3)."""
    powers = u[:, None] ** np.arange(5)
    moments = weights @ powers
    matrix = moments[:, np.add.outer(np.arange(3), np.arange(3))]
    right = weights @ (powers[:, :3] * y[:, None])
    drawn = (weights > 0) @ np.ones(len(u))
    adjugate, determinant = _adjugate(matrix)
    # The product of Frobenius norms is an upper bound of the condition number.
    size = np.linalg.norm(matrix, axis=(1, 2)) * np.linalg.norm(adjugate, axis=(1, 2))
    is_solvable = (drawn >= MIN_ROWS) & (size < MAX_CONDITION * np.abs(determinant))
    with np.errstate(divide="ignore", invalid="ignore"):
        c = np.einsum("kij,kj->ki", adjugate, right) / determinant[:, None]
    return np.where(is_solvable[:, None], c, np.nan)


def _adjugate(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return adjugate and determinant of symmetric 3 x 3 matrices, shapes (k, 3, 3) and (k,)."""
    rows = matrix[:, [1, 2, 0]], matrix[:, [2, 0, 1]]
    adjugate = np.cross(rows[0], rows[1])
    return adjugate, np.einsum("ki,ki->k", matrix[:, 0], adjugate[:, 0])

"""A power law y(C), the straight line through (log C, log y), with the interval of its exponent."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from scalelab.arrays import FloatArray
from scalelab.fit.intervals import Interval, percentile_limits


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """y = exp(log_coefficient) C^exponent, with the interval of the exponent if known."""

    exponent: float
    log_coefficient: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> Interval:
        """The exponent with its limits, NaN where they are not known."""
        low, high = (math.nan if end is None else end for end in (self.low, self.high))
        return Interval(value=self.exponent, low=low, high=high)

    @property
    def line(self) -> FloatArray:
        """Exponent and log-coefficient, shape (2,)."""
        return np.array([self.exponent, self.log_coefficient])

    def at(self, flops: float) -> float:
        """Return y at C = ``flops``."""
        return math.exp(self.log_coefficient + self.exponent * math.log(flops))


def line_through(log_c: FloatArray, log_y: FloatArray, level: float) -> PowerLaw:
    """Return the least-squares line through (log C, log y) with the t interval of its slope."""
    slope, intercept = lines_through(log_c, log_y[None, :], np.ones((1, len(log_c))))[0]
    low = high = None
    if len(log_c) > 2:
        residual = log_y - intercept - slope * log_c
        variance = residual @ residual / (len(log_c) - 2)
        error = math.sqrt(variance / np.sum((log_c - log_c.mean()) ** 2))
        half = float(special.stdtrit(len(log_c) - 2, (1 + level) / 2)) * error
        low, high = float(slope - half), float(slope + half)
    return PowerLaw(exponent=float(slope), log_coefficient=float(intercept), low=low, high=high)


def lines_through(x: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """Return weighted slope and intercept of each row of y against x, ignoring NaN."""
    w = np.where(np.isfinite(y), weights, 0.0)
    y = np.where(w > 0, y, 0.0)
    total = w.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_x = (w * x).sum(axis=1) / total
        mean_y = (w * y).sum(axis=1) / total
        dx = x - mean_x[:, None]
        slope = (w * dx * y).sum(axis=1) / (w * dx * dx).sum(axis=1)
    slope[(w > 0).sum(axis=1) < 2] = np.nan
    return np.column_stack([slope, mean_y - slope * mean_x])


def with_percentiles(law: PowerLaw, samples: FloatArray, level: float) -> PowerLaw:
    """Return the law with the percentiles of its replicates, shape (k, 2), as its interval."""
    exponents = samples[np.isfinite(samples[:, 0]), 0]
    if len(exponents) < len(samples) / 2:
        return law
    low, high = percentile_limits(exponents, level, law.exponent)
    return replace(law, low=low, high=high) if math.isfinite(low) else law

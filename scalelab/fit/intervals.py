"""Intervals: a value or predictions with their limits, and the limits of replicates.

`Interval` is one number, `Prediction` m points; `percentile_limits` makes limits of the draws of a
bootstrap or a posterior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import UsageError

DEFAULT_LEVEL = 0.9
ROUNDING = 1e-12
"""Relative width up to which an interval is rounding and shows no uncertainty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A value with its lower and upper limit, in the value's unit: low <= value <= high.

    The limits are NaN where they are not known.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """Predictions at m points.

    Attributes
    ----------
    value : ndarray of shape (m,)
        The law at its best parameters.
    low, high : ndarray of shape (m,)
        Confidence interval of the law's value, which it contains.
    pred_low, pred_high : ndarray of shape (m,)
        Prediction interval of one new run: uncertainty of the law and noise of the run. It contains
        the confidence interval.
    level : float
        Level of both intervals.
    """

    value: FloatArray
    low: FloatArray
    high: FloatArray
    pred_low: FloatArray
    pred_high: FloatArray
    level: float


def check_level(level: float) -> None:
    """Raise UsageError unless the level is between 0 and 1."""
    if not isinstance(level, (int, float)) or not 0 < level < 1:
        raise UsageError(f"level {level!r}", "a number between 0 and 1", "Use --level 0.9.")


def percentile_limits(draws: FloatArray, level: float, value: float) -> tuple[float, float]:
    """Return the central interval of draws, extended to the value if that lies outside.

    The draws can come from another estimator than the value (efficient refits, a posterior): both
    estimate the same quantity, and the longer interval covers at least as often.

    Parameters
    ----------
    draws : ndarray of shape (k,)
    level : float
        Between 0 and 1.
    value : float
        The estimate; NaN leaves the interval as it is.

    Returns
    -------
    low, high : float
        NaN without draws, or if all draws are the value itself.
    """
    if not len(draws):
        return float("nan"), float("nan")
    with np.errstate(invalid="ignore"):  # infinite replicates
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        low, high = np.fmin(low, value), np.fmax(high, value)
        if not high - low > ROUNDING * abs(high):
            return float("nan"), float("nan")
    return float(low), float(high)

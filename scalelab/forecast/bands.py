"""The compute-optimal frontier over a range of compute, with bootstrap bands, for figures.

For a single request use `scalelab.forecast.allocate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import UsageError
from scalelab.fit.outcome import ParametricFit, percentile_limits

if TYPE_CHECKING:
    from scalelab.forecast.fit_report import FitReport

MAX_REPLICATES = 400
"""Largest number of replicates in a band; more would move its edges by less than a pixel."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bands:
    """N_opt, D_opt and their loss at m values of the compute, C = 6 N D.

    Attributes
    ----------
    flops : ndarray of shape (m,)
        Compute, FLOP.
    n_params, n_params_low, n_params_high : ndarray of shape (m,)
        Optimal size and its interval over bootstrap replicates.
    n_tokens, n_tokens_low, n_tokens_high : ndarray of shape (m,)
        Optimal tokens and their interval.
    loss, low, high, pred_low, pred_high : ndarray of shape (m,)
        Loss at the optimum, with confidence and prediction interval.
    level : float
        Level of every interval.
    """

    flops: FloatArray
    n_params: FloatArray
    n_params_low: FloatArray
    n_params_high: FloatArray
    n_tokens: FloatArray
    n_tokens_low: FloatArray
    n_tokens_high: FloatArray
    loss: FloatArray
    low: FloatArray
    high: FloatArray
    pred_low: FloatArray
    pred_high: FloatArray
    level: float


def bands_between(report: FitReport, low: float, high: float, points: int = 60) -> Bands | None:
    """Return the frontier of a report between two budgets; None as in `frontier_bands`."""
    return frontier_bands(report.fit, np.geomspace(low, high, points), report.level)


def frontier_bands(fit: ParametricFit, flops: FloatArray, level: float = 0.9) -> Bands | None:
    """Return the frontier of a fit at these values of the compute.

    Returns
    -------
    Bands or None
        None if the fit is not identified or its form has no trade-off between N and D.
    """
    if fit.status == "not_identified" or set(fit.law.columns) != {"n_params", "n_tokens"}:
        return None
    try:
        n_params, n_tokens = fit.law.optimal(flops)
    except UsageError:
        return None
    if not np.all(np.isfinite(n_params) & (n_params > 0)):
        return None
    laws = fit.replicate_laws()[:MAX_REPLICATES]
    with np.errstate(all="ignore"):
        draws = np.array([law.optimal(flops) for law in laws]).reshape(-1, 2, len(flops))
    limits = np.full((2, 2, len(flops)), np.nan)
    for j, best in enumerate((n_params, n_tokens)):
        for i, value in enumerate(best):
            here = draws[:, j, i]
            limits[:, j, i] = percentile_limits(here[np.isfinite(here)], level, float(value))
    at = fit.predict({"n_params": n_params, "n_tokens": n_tokens}, level=level)
    return Bands(
        flops=flops,
        n_params=n_params,
        n_params_low=limits[0, 0],
        n_params_high=limits[1, 0],
        n_tokens=n_tokens,
        n_tokens_low=limits[0, 1],
        n_tokens_high=limits[1, 1],
        loss=at.value,
        low=at.low,
        high=at.high,
        pred_low=at.pred_low,
        pred_high=at.pred_high,
        level=level,
    )

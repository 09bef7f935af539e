"""The compute-optimal frontier over a range of compute, with bands, for figures.

For a single request use `scalelab.forecast.allocate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import NotIdentifiedError, UsageError
from scalelab.fit.intervals import percentile_limits
from scalelab.fit.outcome import ParametricFit
from scalelab.forecast.averaged import AveragedFit
from scalelab.forecast.averaged_optimum import optima
from scalelab.forecast.line import line_of
from scalelab.theory.accounting import tokens_at_6nd

if TYPE_CHECKING:
    from scalelab.forecast.fit_report import FitReport


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bands:
    """N_opt, D_opt and their loss at m values of the compute, C = 6 N D.

    Attributes
    ----------
    flops : ndarray of shape (m,)
        Compute, FLOP.
    n_params, n_params_low, n_params_high : ndarray of shape (m,)
        Optimal size and its interval over the draws.
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
    """Return the frontier of what answers for a report between two budgets, or None."""
    return report.forecaster.bands(np.geomspace(low, high, points))


def surface(report: FitReport, n_params: FloatArray, n_tokens: FloatArray) -> FloatArray | None:
    """Return the losses that the forecaster of a fit predicts, or None if it cannot."""
    if report.averaged is None and set(report.fit.law.columns) != {"n_params", "n_tokens"}:
        return None
    if not report.has_answer:
        return None
    try:
        return report.forecaster.losses(n_params, n_tokens, None)
    except NotIdentifiedError:  # runs on one line
        return None


def averaged_bands(found: AveragedFit, flops: FloatArray, level: float = 0.9) -> Bands | None:
    """Return the frontier of the averaged forecaster where the runs determine it, or None.

    Values of the compute at which they do not are left out.
    """
    line = line_of(found.rows)
    if line is not None and not line.is_isoflop:
        return None
    best = optima(found, flops)
    n_tokens = tokens_at_6nd(flops, best.n_params)
    is_known = best.is_inside
    if line is not None:
        pairs = zip(best.n_params, n_tokens, strict=True)
        is_known = is_known & np.array([line.has(float(n), float(d)) for n, d in pairs])
    if not is_known.any():
        return None
    n_limits = best.n_limits(level)[:, is_known]
    flops, n_params, n_tokens = flops[is_known], best.n_params[is_known], n_tokens[is_known]
    at = found.predict({"n_params": n_params, "n_tokens": n_tokens}, level)
    return Bands(
        flops=flops,
        n_params=n_params,
        n_params_low=n_limits[0],
        n_params_high=n_limits[1],
        n_tokens=n_tokens,
        n_tokens_low=tokens_at_6nd(flops, n_limits[1]),
        n_tokens_high=tokens_at_6nd(flops, n_limits[0]),
        loss=at.value,
        low=at.low,
        high=at.high,
        pred_low=at.pred_low,
        pred_high=at.pred_high,
        level=level,
    )


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
    laws = fit.replicate_laws()
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

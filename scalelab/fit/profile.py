"""Profile intervals: the values of a parameter for which the fit is not significantly worse.

The parameter is held at a value while all others are refitted. The interval contains the values for
which twice the rise of the objective, in units of the noise, is below a chi-square limit (Venzon
and Moolgavkar 1988). For least squares and the likelihood this is the classical profile likelihood.
For Huber and least absolute deviations the rise is scaled by the ratio of the variance of the
influence to its slope, which is correct to first order (Ronchetti and Huber 2009, section 7.6).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import DataError
from scalelab.fit.newton import TOLERANCE, Box, minimise
from scalelab.fit.outcome import DEFAULT_LEVEL, Interval, ParametricFit, check_level
from scalelab.fit.parametric import box_of
from scalelab.fit.penalty import Penalty
from scalelab.fit.powered_sum import row_model_of
from scalelab.fit.rows import design
from scalelab.records.types import Observations
from scalelab.units import plural

FloatArray = NDArray[np.float64]

HALVINGS = 50


def profile_interval(
    observations: Observations, fit: ParametricFit, name: str, level: float = DEFAULT_LEVEL
) -> Interval:
    """Return the profile interval of one parameter.

    Parameters
    ----------
    observations : Observations
        The rows that were fitted.
    fit : ParametricFit
        Their fit; the profile uses its objective and held parameters.
    name : str
        A parameter of the law.
    level : float
        Between 0 and 1.

    Returns
    -------
    Interval
        If the objective never rises enough on one side, that limit is the parameter's bound, or
        infinite.

    Raises
    ------
    UsageError
        For an unknown parameter or a level outside (0, 1).
    DataError
        If there are not more rows than parameters, so that the noise is unknown.
    """
    check_level(level)
    law = type(fit.law)
    box_of(law, {name: 0.0})
    data = design(observations, law, fit.objective, None)
    # Centring would mix the held coordinate with others.
    model = row_model_of(law, data.columns, is_centred=False)
    box = box_of(law, fit.fixed)
    j = law.names().index(name)
    best = fit.law.to_coordinates()
    penalty = _penalty(fit)
    r = model.residuals(best[None], data.rows)[0]
    limit = _limit(r, data.rows.weight, penalty, int(box.free.sum()), level)
    base = float(model.value(best[None], data.rows, penalty)[0])
    held = Box(free=box.free.copy(), scales=box.scales, low=box.low, high=box.high)
    held.free[j] = False
    start = best

    def rise(at: float) -> float:
        nonlocal start
        trial = start.copy()
        trial[j] = at
        end = minimise(model, trial[None], data.rows, penalty, held, tolerance=TOLERANCE)
        start = end.eta[0]
        return float(end.value[0]) - base - limit

    # With all others held the objective rises fastest, so this first step is too short.
    alone = model.expand(best[None], data.rows, penalty).majorant[0, j, j]
    step = math.sqrt(2.0 * limit / alone) if alone > 0 else 1e-3
    ends = []
    for side, bound in ((-1.0, box.low[j]), (1.0, box.high[j])):
        start = best
        ends.append(_crossing(rise, best[j], side * step, float(bound)))
    low, high = (float(law.coordinates[j].decode(end)) for end in ends)
    return Interval(value=fit.params[name], low=min(low, high), high=max(low, high))


def profile_intervals(
    observations: Observations, fit: ParametricFit, level: float = DEFAULT_LEVEL
) -> dict[str, Interval]:
    """Return the profile interval of every fitted parameter, by name."""
    names = [name for name in type(fit.law).names() if name not in fit.fixed]
    return {name: profile_interval(observations, fit, name, level) for name in names}


def _penalty(fit: ParametricFit) -> Penalty:
    """Return the penalty in units of the residuals (delta of the likelihood is in units of s)."""
    delta = fit.objective.threshold
    if fit.objective.loss == "likelihood":
        delta *= fit.scale or 1.0
    if delta == 0.0:
        # Least absolute deviations: a threshold far below the residuals approximates 0.
        delta = max(1e-2 * float(np.median(np.abs(fit.residuals))), 1e-15)
    return Penalty(delta=delta, overprediction=fit.objective.overprediction)


def _limit(r: FloatArray, w: FloatArray, penalty: Penalty, p: int, level: float) -> float:
    """Return the allowed rise of the objective: half the chi-square limit times the noise."""
    from scipy.stats import f

    n = int((w > 0).sum())
    if n <= p:
        raise DataError(
            f"{plural(n, 'row')} for {plural(p, 'free parameter')}",
            "more rows than parameters",
            "Add runs, or fit a form with fewer parameters.",
        )
    _, first, _, _ = penalty.parts(r, np.ones_like(r))
    variance = float(np.mean(first[w > 0] ** 2)) * n / (n - p)
    slope = _mean_slope(r[w > 0], penalty)
    return 0.5 * float(f.ppf(level, 1, n - p)) * variance / slope


def _mean_slope(r: FloatArray, penalty: Penalty) -> float:
    """Return the mean second derivative of the penalty, averaged over a window around its kink."""
    window = 1.5 * float(np.median(np.abs(r))) * len(r) ** -0.2
    if not window > penalty.delta:
        return float(np.mean(penalty.parts(r, np.ones_like(r))[2]))
    return float(penalty.delta / window * np.mean(np.abs(r) <= window))


def _crossing(rise: Callable[[float], float], at: float, step: float, bound: float) -> float:
    """Return the first zero of ``rise`` from ``at`` in growing steps; the bound without a zero."""
    inside, width = at, step
    for _ in range(60):
        outside = inside + width
        stops = (outside - bound) * math.copysign(1.0, step) >= 0
        outside = bound if stops else outside
        if rise(outside) > 0:
            break
        if stops:
            return bound
        inside, width = outside, 1.6 * width
    else:
        return math.copysign(math.inf, step)
    for _ in range(HALVINGS):
        middle = 0.5 * (inside + outside)
        if rise(middle) > 0:
            outside = middle
        else:
            inside = middle
        if abs(outside - inside) <= 1e-9 * max(abs(inside), 1e-300):
            break
    return 0.5 * (inside + outside)

r"""Approach 2: one parabola a budget, and a power law through their minima.

Within one budget the loss is fitted by least squares as a parabola, in log N for the best size and
in log D for the best token count; the minima over budgets follow :math:`N_{opt} = k C^a` and
:math:`D_{opt} = k' C^b`. A minimum outside its own grid is an extrapolation of a parabola: it is
flagged and left out of the power law. What to use when: approach 2 stands beside the parametric fit
as a check. It is biased when the grid is wide, off centre or drifting, or when alpha differs from
beta; `expected_bias` says by how much on the grid at hand.

References
----------
Hoffmann et al. 2022, arXiv:2203.15556, section 3.2. Czech 2026, arXiv:2603.22339 (the bias).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from scalelab.fit.parabola import MIN_ROWS, CurveMinimum, fit_parabola, parabolas
from scalelab.records.types import Observations
from scalelab.theory.accounting import train_flops_6nd

FloatArray = NDArray[np.float64]

MIN_GROUP = 4
"""Fewest rows that make a budget when budgets are guessed from the FLOPs."""
GROUP_WIDTH = 0.10
"""How far a row's FLOPs may lie from its budget's when budgets are guessed."""
MIN_GROUP_SPAN = 1.5
"""Least ratio of largest to smallest N in a guessed budget: copies of one run are no curve."""

Axis = Literal["n", "d"]


@dataclass(frozen=True, kw_only=True, slots=True)
class IsoflopCurve:
    """One budget: its rows and its minima in N and in D."""

    budget: float
    rows: NDArray[np.intp]
    n_params: CurveMinimum
    n_tokens: CurveMinimum

    @property
    def is_interior(self) -> bool:
        """Whether both parabolas have their minimum inside the grid."""
        return self.n_params.edge is None and self.n_tokens.edge is None


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """y = exp(log_coefficient) C^exponent, with the interval of the exponent where there is one."""

    exponent: float
    log_coefficient: float
    low: float | None = None
    high: float | None = None

    @property
    def line(self) -> FloatArray:
        """Exponent and log-coefficient, shape (2,)."""
        return np.array([self.exponent, self.log_coefficient])

    def at(self, flops: float) -> float:
        """Return y at C = ``flops``."""
        return math.exp(self.log_coefficient + self.exponent * math.log(flops))


@dataclass(frozen=True, kw_only=True, slots=True)
class IsoflopFit:
    """Approach 2 on one table.

    Attributes
    ----------
    curves : tuple of IsoflopCurve
        Every budget with enough rows, ascending, edge minima included.
    n_law, d_law : PowerLaw or None
        N_opt(C) and D_opt(C) through the interior minima; None when there are fewer than two.
    reason : str or None
        Why there is no power law.
    is_grouped : bool
        Whether budgets were guessed from the FLOPs for want of a budget column.
    keeps_edges : bool
        Whether minima outside their grid count as well.
    """

    curves: tuple[IsoflopCurve, ...]
    n_law: PowerLaw | None
    d_law: PowerLaw | None
    reason: str | None
    is_grouped: bool
    keeps_edges: bool = False

    @property
    def interior(self) -> tuple[IsoflopCurve, ...]:
        """The curves with both minima inside their grid."""
        return tuple(curve for curve in self.curves if curve.is_interior)

    @property
    def used(self) -> tuple[IsoflopCurve, ...]:
        """The curves that the power law rests on."""
        if not self.keeps_edges:
            return self.interior
        return tuple(
            curve
            for curve in self.curves
            if "not_convex" not in (curve.n_params.edge, curve.n_tokens.edge)
        )


def budgets_of(observations: Observations) -> tuple[FloatArray, bool]:
    """Return each row's budget (NaN: none), and whether it had to be guessed.

    Without a budget column, rows are grouped where their FLOPs agree within 10 %: the densest
    group first, each budget the geometric mean of its rows. A column of budgets that names no
    group of `MIN_ROWS` rows is as good as none.
    """
    if observations.budget is not None:
        finite = observations.budget[np.isfinite(observations.budget)]
        if len(finite) and np.unique(finite, return_counts=True)[1].max() >= MIN_ROWS:
            return observations.budget, False
    log_c = np.log(observations.flops)
    order = np.argsort(log_c, kind="stable")
    ladder = log_c[order]
    width = math.log1p(GROUP_WIDTH) - math.log1p(-GROUP_WIDTH)
    free = np.ones(len(ladder), bool)
    budget = np.full(len(ladder), np.nan)
    log_n = np.log(observations.n_params[order])
    while True:
        at = np.flatnonzero(free)
        if len(at) < MIN_GROUP:
            break
        until = np.searchsorted(ladder[at], ladder[at] + width, side="right")
        sizes = until - np.arange(len(at))
        start = int(np.argmax(sizes))
        if sizes[start] < MIN_GROUP:
            break
        group = at[start : until[start]]
        free[group] = False
        if np.ptp(log_n[group]) >= math.log(MIN_GROUP_SPAN):
            budget[order[group]] = math.exp(ladder[group].mean())
    return budget, True


def fit_isoflop(
    observations: Observations,
    *,
    level: float = 0.9,
    weights: FloatArray | None = None,
    keeps_edges: bool = False,
) -> IsoflopFit:
    """Return approach 2: curves, their minima with intervals, and the power laws through them.

    Parameters
    ----------
    observations : Observations
        Rows of finished runs, some at equal compute.
    level : float
        Level of the intervals.
    weights : ndarray of shape (k, n), optional
        Bootstrap replicates as row weights; the exponents' intervals are percentiles over them.
        Without, they are the t intervals of the line through the minima.
    keeps_edges : bool
        Whether minima outside their grid count as well, as in most published parabolas.
    """
    budget, is_grouped = budgets_of(observations)
    curves = tuple(
        curve
        for value in np.unique(budget[np.isfinite(budget)])
        if (curve := _curve(observations, value, np.flatnonzero(budget == value), level))
    )
    fit = IsoflopFit(
        curves=curves,
        n_law=None,
        d_law=None,
        reason=None,
        is_grouped=is_grouped,
        keeps_edges=keeps_edges,
    )
    inside = fit.used
    if len(inside) < 2:
        return replace(fit, reason=_too_few(curves))
    log_c = np.log([curve.budget for curve in inside])
    n_law = _line(log_c, np.log([curve.n_params.value for curve in inside]), level)
    d_law = _line(log_c, np.log([curve.n_tokens.value for curve in inside]), level)
    if weights is not None and len(weights):
        n_law = _with_percentiles(n_law, replicate_laws(observations, fit, weights, "n"), level)
        d_law = _with_percentiles(d_law, replicate_laws(observations, fit, weights, "d"), level)
    return replace(fit, n_law=n_law, d_law=d_law)


def replicate_laws(
    observations: Observations, fit: IsoflopFit, weights: FloatArray, axis: Axis
) -> FloatArray:
    """Return exponent and log-coefficient for each replicate, shape (k, 2); NaN where none exists.

    A curve whose rows are always resampled together keeps its parabola; what a replicate changes
    is then how much it counts in the line.

    Parameters
    ----------
    observations : Observations
    fit : IsoflopFit
        The fit whose budgets are used again.
    weights : ndarray of shape (k, n)
        Weight of each row in each replicate.
    axis : {"n", "d"}
        N_opt or D_opt.
    """
    inside = fit.used
    x = np.log(observations.n_params if axis == "n" else observations.n_tokens)
    minima = np.full((len(weights), len(inside)), np.nan)
    counts = np.ones_like(minima)
    for j, curve in enumerate(inside):
        shape = curve.n_params if axis == "n" else curve.n_tokens
        u = (x[curve.rows] - shape.centre) / shape.half_width
        own = weights[:, curve.rows]
        if (own == own[:, :1]).all():
            counts[:, j] = own[:, 0]
        c = parabolas(u, observations.loss_nats[curve.rows], own)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = -c[:, 1] / (2 * c[:, 2])
        is_good = (c[:, 2] > 0) & (fit.keeps_edges | (np.abs(at) <= 1))
        minima[is_good, j] = shape.centre + shape.half_width * at[is_good]
    return _lines(np.log([curve.budget for curve in inside]), minima, counts)


def tokens_at(n_line: FloatArray, d_line: FloatArray, flops: float) -> FloatArray:
    """Return D_opt where 6 N_opt D_opt is ``flops``, however the budgets were counted.

    Budgets in exact FLOPs differ from 6ND by a factor that changes with size; the two lines say by
    how much, since their sum is log(N_opt D_opt). Where budgets are 6ND this is the D line itself.

    Parameters
    ----------
    n_line, d_line : ndarray of shape (.., 2)
        Exponent and log-coefficient of N_opt and D_opt in the budget.
    flops : float
        Compute as 6ND.
    """
    log_product = math.log(flops / train_flops_6nd(1.0, 1.0))
    both = n_line + d_line
    with np.errstate(all="ignore"):
        log_budget = (log_product - both[..., 1]) / both[..., 0]
        return np.exp(d_line[..., 1] + d_line[..., 0] * log_budget)


def expected_bias(
    observations: Observations,
    fit: IsoflopFit,
    clean: FloatArray,
    optimal_tokens: float,
    flops: float,
) -> float | None:
    """Return D_opt(approach 2) / D_opt - 1 on this very grid without noise, at ``flops``.

    Parameters
    ----------
    observations : Observations
        The grid; its losses are replaced by the law's.
    fit : IsoflopFit
        Approach 2 on the real losses; its budgets are reused.
    clean : ndarray of shape (n,)
        The losses of the parametric law at these rows.
    optimal_tokens : float
        D_opt of that law at ``flops``.
    flops : float
        Where the two are compared, as 6ND.
    """
    if fit.d_law is None:
        return None
    used = np.concatenate([curve.rows for curve in fit.used])
    owner = np.concatenate([np.full(len(v.rows), v.budget) for v in fit.used])
    rows = replace(observations.take(used), loss_nats=clean[used], budget=owner)
    found = fit_isoflop(rows, keeps_edges=True)
    if found.n_law is None or found.d_law is None:
        return None
    return float(tokens_at(found.n_law.line, found.d_law.line, flops)) / optimal_tokens - 1


def _curve(
    observations: Observations, budget: float, rows: NDArray[np.intp], level: float
) -> IsoflopCurve | None:
    # canonical order: sums round alike, whatever the order of the table
    keys = observations.loss_nats[rows], observations.n_tokens[rows], observations.n_params[rows]
    rows = rows[np.lexsort(keys)]
    n_params = fit_parabola(observations.n_params[rows], observations.loss_nats[rows], level)
    n_tokens = fit_parabola(observations.n_tokens[rows], observations.loss_nats[rows], level)
    if n_params is None or n_tokens is None:
        return None
    return IsoflopCurve(budget=float(budget), rows=rows, n_params=n_params, n_tokens=n_tokens)


def _line(log_c: FloatArray, log_y: FloatArray, level: float) -> PowerLaw:
    slope, intercept = _lines(log_c, log_y[None, :], np.ones((1, len(log_c))))[0]
    low = high = None
    if len(log_c) > 2:
        residual = log_y - intercept - slope * log_c
        variance = residual @ residual / (len(log_c) - 2)
        error = math.sqrt(variance / np.sum((log_c - log_c.mean()) ** 2))
        reach = float(special.stdtrit(len(log_c) - 2, (1 + level) / 2)) * error
        low, high = float(slope - reach), float(slope + reach)
    return PowerLaw(exponent=float(slope), log_coefficient=float(intercept), low=low, high=high)


def _lines(x: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """Return slope and intercept of each row of y against x, weighted, NaN entries left out."""
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


def _with_percentiles(law: PowerLaw, samples: FloatArray, level: float) -> PowerLaw:
    exponents = samples[np.isfinite(samples[:, 0]), 0]
    if len(exponents) < len(samples) / 2:
        return law
    low, high = np.quantile(exponents, [(1 - level) / 2, (1 + level) / 2])
    return replace(law, low=float(low), high=float(high))


def _too_few(curves: tuple[IsoflopCurve, ...]) -> str:
    if not curves:
        return f"no budget has {MIN_ROWS} different sizes at equal FLOPs"
    inside = sum(curve.is_interior for curve in curves)
    return f"{inside} of {len(curves)} budgets have their minimum inside the grid; two are needed"

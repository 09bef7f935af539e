r"""Approach 2: one parabola per budget, and a power law through their minima.

Within one budget the loss is fitted by least squares as a parabola, in log N for the best size and
in log D for the best token count; the minima over budgets follow :math:`N_{opt} = k C^a` and
:math:`D_{opt} = k' C^b`. A minimum outside its grid is an extrapolation: it is flagged and left out
of the power law. Use approach 2 as a check of the parametric fit. It is biased if the grid is wide,
off centre or drifting, or if alpha differs from beta; `expected_bias` computes the bias for a grid.

References
----------
Hoffmann et al. 2022, arXiv:2203.15556, section 3.2. Czech 2026, arXiv:2603.22339 (the bias).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.fit.budget_outliers import outliers_of
from scalelab.fit.parabola import MIN_ROWS, CurveMinimum, fit_parabola, parabolas
from scalelab.fit.power_law import PowerLaw, line_through, lines_through, with_percentiles
from scalelab.records.types import Observations
from scalelab.theory.accounting import train_flops_6nd
from scalelab.units import plural

MIN_GROUP = 4
"""Minimum number of rows of a budget that is inferred from the FLOPs."""
GROUP_WIDTH = 0.10
"""Maximum relative distance of a row's FLOPs from an inferred budget."""
MIN_GROUP_SPAN = 1.5
"""Minimum ratio of the largest to the smallest N in an inferred budget."""
MISFIT = 3.0
"""Residual, in units of the median one of the other budgets, above which a parabola misses."""
VISIBLE = 0.01
"""Share of the range of all losses below which a residual cannot be seen in a figure."""


Axis = Literal["n", "d"]


@dataclass(frozen=True, kw_only=True, slots=True)
class IsoflopCurve:
    """The rows of one budget and the minima of their loss in N and in D.

    Attributes
    ----------
    budget : float
        FLOP.
    rows : ndarray of int
        The rows through which the parabolas go.
    n_params, n_tokens : CurveMinimum
        The interval of D is that of N, along the D of these rows as a power of their N.
    outliers : ndarray of int
        Rows of the budget that are left out; see `budget_outliers`.
    """

    budget: float
    rows: NDArray[np.intp]
    n_params: CurveMinimum
    n_tokens: CurveMinimum
    outliers: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))

    @property
    def every_row(self) -> NDArray[np.intp]:
        """The rows of the budget, outliers included."""
        return np.concatenate([self.rows, self.outliers])

    @property
    def is_interior(self) -> bool:
        """True if both parabolas have their minimum inside the grid."""
        return self.n_params.edge is None and self.n_tokens.edge is None


@dataclass(frozen=True, kw_only=True, slots=True)
class IsoflopFit:
    """Approach 2 on one table.

    Attributes
    ----------
    curves : tuple of IsoflopCurve
        Every budget with enough rows, in ascending order, including those with an edge minimum.
    n_law, d_law : PowerLaw or None
        N_opt(C) and D_opt(C) through the interior minima; None with fewer than two minima.
    reason : str or None
        Why there is no power law.
    is_grouped : bool
        Whether budgets were inferred from the FLOPs because there is no budget column.
    keeps_edges : bool
        Whether minima outside their grid are used too.
    """

    curves: tuple[IsoflopCurve, ...]
    n_law: PowerLaw | None
    d_law: PowerLaw | None
    reason: str | None
    is_grouped: bool
    keeps_edges: bool = False

    @property
    def interior(self) -> tuple[IsoflopCurve, ...]:
        """The curves with both minima inside the grid."""
        return tuple(curve for curve in self.curves if curve.is_interior)

    @property
    def used(self) -> tuple[IsoflopCurve, ...]:
        """The curves whose minima the power law is fitted to."""
        if not self.keeps_edges:
            return self.interior
        return tuple(
            curve
            for curve in self.curves
            if "not_convex" not in (curve.n_params.edge, curve.n_tokens.edge)
        )


def budgets_of(observations: Observations) -> tuple[FloatArray, bool]:
    """Return each row's budget (NaN: none), and whether budgets were inferred.

    Without a budget column, rows whose FLOPs agree within 10 % form a group, the largest group
    first; its budget is the geometric mean of its rows. A budget column without any group of
    `MIN_ROWS` rows is ignored.
    """
    if observations.budget is not None:
        finite = observations.budget[np.isfinite(observations.budget)]
        if len(finite) and np.unique(finite, return_counts=True)[1].max() >= MIN_ROWS:
            return observations.budget, False
    log_c = np.log(observations.flops)
    order = np.argsort(log_c, kind="stable")
    ascending = log_c[order]
    width = math.log1p(GROUP_WIDTH) - math.log1p(-GROUP_WIDTH)
    free = np.ones(len(ascending), bool)
    budget = np.full(len(ascending), np.nan)
    log_n = np.log(observations.n_params[order])
    while True:
        at = np.flatnonzero(free)
        if len(at) < MIN_GROUP:
            break
        until = np.searchsorted(ascending[at], ascending[at] + width, side="right")
        sizes = until - np.arange(len(at))
        start = int(np.argmax(sizes))
        if sizes[start] < MIN_GROUP:
            break
        group = at[start : until[start]]
        free[group] = False
        if np.ptp(log_n[group]) >= math.log(MIN_GROUP_SPAN):
            budget[order[group]] = math.exp(ascending[group].mean())
    return budget, True


def unusable(observations: Observations) -> str | None:
    """Return why approaches 1 and 2 cannot use these rows at all, or None."""
    if not observations.is_sized:
        return "the rows do not have all of N, D and C"
    if (observations.loss_nats <= 0).any():
        return "it needs losses above zero"
    return None


def fit_isoflop(
    observations: Observations,
    *,
    level: float = 0.9,
    weights: FloatArray | None = None,
    keeps_edges: bool = False,
) -> IsoflopFit:
    """Return approach 2: isoFLOP curves, their minima with intervals, and the power laws.

    Parameters
    ----------
    observations : Observations
        Finished runs, several at each budget.
    level : float
        Level of the intervals.
    weights : ndarray of shape (k, n), optional
        Bootstrap replicates as row weights; the intervals of the exponents are percentiles over
        them. Without weights they are the t intervals of the line through the minima.
    keeps_edges : bool
        Whether to use minima outside their grid and outliers too, as most publications do.
    """
    reason = unusable(observations)
    if reason is not None:
        return IsoflopFit(curves=(), n_law=None, d_law=None, reason=reason, is_grouped=False)
    budget, is_grouped = budgets_of(observations)
    curves = tuple(
        curve
        for value in np.unique(budget[np.isfinite(budget)])
        if (
            curve := _curve(
                observations,
                value,
                np.flatnonzero(budget == value),
                level,
                keeps_outliers=keeps_edges,
            )
        )
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
    n_law = line_through(log_c, np.log([curve.n_params.value for curve in inside]), level)
    d_law = line_through(log_c, np.log([curve.n_tokens.value for curve in inside]), level)
    if weights is not None and len(weights):
        n_law = with_percentiles(n_law, replicate_laws(observations, fit, weights, "n"), level)
        d_law = with_percentiles(d_law, replicate_laws(observations, fit, weights, "d"), level)
    return replace(fit, n_law=n_law, d_law=d_law)


def replicate_laws(
    observations: Observations, fit: IsoflopFit, weights: FloatArray, axis: Axis
) -> FloatArray:
    """Return exponent and log-coefficient of each replicate, shape (k, 2); NaN if undetermined.

    A curve whose rows always have equal weights keeps its parabola; the replicate then changes the
    weight of the curve in the line.

    Parameters
    ----------
    observations : Observations
    fit : IsoflopFit
        The fit whose budgets are used.
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
    return lines_through(np.log([curve.budget for curve in inside]), minima, counts)


def tokens_at(n_line: FloatArray, d_line: FloatArray, flops: float) -> FloatArray:
    """Return D_opt where 6 N_opt D_opt = ``flops``, for any FLOP convention of the budgets.

    Budgets in exact FLOPs differ from 6ND by a factor that depends on size. The sum of both lines
    is log(N_opt D_opt), which gives that factor. If budgets are 6ND, this is the D line itself.

    Parameters
    ----------
    n_line, d_line : ndarray of shape (.., 2)
        Exponent and log-coefficient of N_opt and D_opt as functions of the budget.
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
    """Return the bias D_opt(approach 2) / D_opt - 1 at ``flops`` on this grid without noise.

    Parameters
    ----------
    observations : Observations
        The grid; losses of the law replace its own.
    fit : IsoflopFit
        Approach 2 on the measured losses; its budgets are used.
    clean : ndarray of shape (n,)
        Losses of the parametric law at these rows.
    optimal_tokens : float
        D_opt of that law at ``flops``.
    flops : float
        Compute at which D_opt is compared, as 6ND.
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
    observations: Observations,
    budget: float,
    rows: NDArray[np.intp],
    level: float,
    *,
    keeps_outliers: bool,
) -> IsoflopCurve | None:
    # Canonical order: the result does not depend on the order of the table.
    keys = observations.loss_nats[rows], observations.n_tokens[rows], observations.n_params[rows]
    rows = rows[np.lexsort(keys)]
    n_params = fit_parabola(observations.n_params[rows], observations.loss_nats[rows], level)
    n_tokens = fit_parabola(observations.n_tokens[rows], observations.loss_nats[rows], level)
    if n_params is None or n_tokens is None:
        return None
    if not keeps_outliers:
        is_outlier = outliers_of(np.log(observations.n_params[rows]), observations.loss_nats[rows])
        if is_outlier.any():
            kept = _curve(observations, budget, rows[~is_outlier], level, keeps_outliers=True)
            return kept and replace(kept, outliers=np.sort(rows[is_outlier]))
    return IsoflopCurve(
        budget=float(budget),
        rows=rows,
        n_params=n_params,
        n_tokens=_with_interval_of(n_params, n_tokens, observations, rows),
    )


def misfits(observations: Observations, curves: Sequence[IsoflopCurve]) -> list[bool]:
    """Say of each curve whether its parabola misses its rows, so that its minimum is none.

    A parabola misses if its residual standard deviation is more than `MISFIT` times the median of
    the other budgets and at least `VISIBLE`; with fewer than two others, none does.
    """
    noise = []
    for curve in curves:
        rows = curve.rows
        residual = observations.loss_nats[rows] - curve.n_params.curve(observations.n_params[rows])
        noise.append(math.sqrt(float(residual @ residual) / max(1, len(rows) - MIN_ROWS)))
    usual = [float(np.median(noise[:i] + noise[i + 1 :] or [0.0])) for i in range(len(noise))]
    size = float(np.ptp(observations.loss_nats)) if len(noise) > 2 else math.inf
    return [
        each > MISFIT * other and each > VISIBLE * size
        for each, other in zip(noise, usual, strict=True)
    ]


def _with_interval_of(
    n_params: CurveMinimum,
    n_tokens: CurveMinimum,
    observations: Observations,
    rows: NDArray[np.intp],
) -> CurveMinimum:
    """Return the minimum in D with the interval of N, since one compute ties D to N.

    Two Fieller intervals of one budget could contradict each other where the rows differ in C.
    """
    if n_params.low is None or n_params.high is None or not math.isfinite(n_tokens.value):
        return replace(n_tokens, low=None, high=None)
    log_n, log_d = np.log(observations.n_params[rows]), np.log(observations.n_tokens[rows])
    slope = float(np.polyfit(log_n - log_n.mean(), log_d, 1)[0])
    ends = [
        n_tokens.value * (end / n_params.value) ** slope for end in (n_params.low, n_params.high)
    ]
    return replace(n_tokens, low=min(ends), high=max(ends))


def _too_few(curves: tuple[IsoflopCurve, ...]) -> str:
    if not curves:
        return f"no budget has {MIN_ROWS} or more different model sizes"
    inside = sum(curve.is_interior for curve in curves)
    return (
        f"only {inside} of {plural(len(curves), 'budget')} with a minimum inside the grid of "
        "sizes; approach 2 needs 2 or more"
    )

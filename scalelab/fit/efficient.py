"""Narrower intervals from the same rows: refits that know how noisy a run of each size is.

Huber's loss with a small delta is all but least absolute deviations: it withstands anything, and
pays with intervals a fifth to a half wider than the noise would need, most where small runs are
noisier than large ones. The value of a parameter stays the objective's; its interval need not come
from refits of that objective. `efficient` estimates from the residuals how their scale follows
compute, s(C) = exp(c0 + c1 log C), and refits with Huber's loss of r/s at a threshold where it is
close to efficient for normal and for heavy-tailed noise alike. Both objectives estimate the same
law as long as the form is right, and `agrees` tests just that (a Hausman test, over the same
replicates): where the two optima differ by more than chance, intervals fall back on refits of the
objective itself. They also do where the residuals still are a smooth function of the columns (an F
test of a quadratic): a form that bends away from the rows has no one right answer to be sure of.

A bootstrap of n rows and p parameters is too narrow by about p/n, since residuals are smaller than
errors where a row pulls the law to itself, and too narrow again since their scale is estimated.
The weights of row i therefore have the variance (1 - h_i)^-2, with h_i its leverage (the
covariance HC3), and the deviations are stretched to Student's t with n - p degrees of freedom. A
replicate is one Newton step from the efficient optimum with the Hessian of all rows: full refits
of few rows under weights add spread of their own, a tenth under heavy tails. Where the objective is
far from its parabola within the interval, the objective's own refits are kept too.

References
----------
Huber 1964 (the threshold). Carroll and Ruppert 1982, Annals of Statistics 10 (robust estimates
with an estimated scale function). Hausman 1978, Econometrica 46. MacKinnon and White 1985, Journal
of Econometrics 29 (HC3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scalelab.fit.bootstrap import ResamplingPlan
from scalelab.fit.newton import Box, minimise
from scalelab.fit.noise import compute_of
from scalelab.fit.penalty import Penalty
from scalelab.fit.replicates import (
    ENTRIES,
    MANY_ROWS,
    Replicates,
    UseNumba,
    leverages,
    refit,
    stretched,
)
from scalelab.fit.row_model import RowModel, Rows

FloatArray = NDArray[np.float64]

THRESHOLD = 1.345
"""Huber's threshold in standard deviations: 95 % efficient for normal noise."""
ROUNDS = 3
"""How often scale and optimum are estimated in turn."""
ROWS_PER_PARAMETER = 4
"""Fewest rows a parameter from which a scale function can be estimated beside the law."""
CHECKS = 200
"""Replicates of the objective itself that the test of agreement takes."""
CHANCE = 0.01
"""Share of sound data sets in which either test may find something."""
NEWTON_STEPS = 50
REACH = 1.645
"""Standard errors at which the objective is compared with its parabola."""
BENT = (0.5, 8.0)
"""How far the objective may rise there, in units of the parabola: less would make the interval too
short; much more, on the side of a wall, only makes it longer than need be."""
OUTLYING = 2.0
"""Thresholds at which a residual is cut off before it is tested for a bend."""
SQRT_HALF_PI = math.sqrt(math.pi / 2)
"""Standard deviation over mean absolute deviation of a normal distribution."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Efficient:
    """An efficient refit of the same rows.

    Attributes
    ----------
    eta : ndarray of shape (p,)
        Its optimum, in solver coordinates.
    rows : Rows
        The rows under weights of one over their variance.
    penalty : Penalty
        Huber's, in units of each row's standard deviation.
    shape : ndarray of shape (n,), or None
        Gamma shapes of replicate weights, see `scalelab.fit.bootstrap`; None where leverage
        is negligible.
    """

    eta: FloatArray
    rows: Rows
    penalty: Penalty
    shape: FloatArray | None


def efficient(
    model: RowModel, best: FloatArray, rows: Rows, box: Box, compute: FloatArray | None
) -> Efficient | None:
    """Return the efficient refit; None where the rows are too few or fitted without any noise.

    Parameters
    ----------
    model : RowModel
        The law on the rows.
    best : ndarray of shape (p,)
        Optimum of the objective.
    rows : Rows
        The rows as the objective sees them, all of one weight.
    box : Box
        Bounds and held coordinates.
    compute : ndarray of shape (n,), or None
        What the noise may depend on; None: one scale for all.
    """
    if rows.n < ROWS_PER_PARAMETER * int(box.free.sum()):
        return None
    at, weighted = best, rows
    penalty = Penalty(delta=THRESHOLD)
    for _ in range(ROUNDS):
        r = model.residuals(at[None], rows)[0]
        lever = leverages(model, at, weighted, box)
        sigma = noise_scale(r / np.sqrt(1.0 - lever), compute)
        if sigma is None:
            return None
        weighted = rows.reweighted(1.0 / sigma**2)
        penalty = replace(penalty, unit=sigma)
        end = minimise(model, at[None], weighted, penalty, box)
        if not end.converged[0]:
            return None
        at = end.eta[0]
    lever = leverages(model, at, weighted, box)
    return Efficient(
        eta=at,
        rows=weighted,
        penalty=penalty,
        shape=None if rows.n >= MANY_ROWS else (1.0 - lever) ** 2,
    )


def noise_scale(r: FloatArray, compute: FloatArray | None) -> FloatArray | None:
    """Return each row's standard deviation, log-linear in compute; None where there is no noise.

    The maximum of the Laplace likelihood, whose minus logarithm sum log s + abs(r)/s is convex in
    c0 and c1; consistent for any symmetric noise whose shape does not change with size. The slope
    is shrunk by its own standard error (James and Stein 1961, the positive part), so that equal
    noise is not weighed by chance.

    Parameters
    ----------
    r : ndarray of shape (n,)
        Residuals.
    compute : ndarray of shape (n,), or None
        Compute of each row.
    """
    size = np.abs(r)
    mean = float(size.mean())
    if not (math.isfinite(mean) and mean > 1e-12):
        return None
    x = np.zeros(len(r)) if compute is None else np.log(compute) - np.log(compute).mean()
    if np.ptp(x) < 1e-6:
        return np.full(len(r), mean * SQRT_HALF_PI)
    x = x / x.std()
    slope = 0.0
    for _ in range(NEWTON_STEPS):
        # with the level at its best, the likelihood in the slope alone
        ratio = size * np.exp(-slope * x)
        ratio = ratio / ratio.mean()
        tilt = float(np.mean(ratio * x))
        step = tilt / float(np.mean(ratio * x * x) - tilt * tilt)
        slope += min(max(step, -1.0), 1.0)
        if abs(step) < 1e-10:
            break
    error = float(ratio.std()) / math.sqrt(len(r))
    slope *= 1.0 - (error / slope) ** 2 if abs(slope) > error else 0.0
    sigma: FloatArray = np.exp(slope * x)
    sigma *= SQRT_HALF_PI * float(np.mean(size / sigma))
    return sigma if np.isfinite(sigma).all() and (sigma > 0).all() else None


def is_bent(z: FloatArray, columns: Mapping[str, FloatArray]) -> bool:
    """Return whether a quadratic in the logarithms of the columns explains the residuals.

    Parameters
    ----------
    z : ndarray of shape (n,)
        Residuals in units of the threshold; those far out are pulled in, for the test's sake.
    columns : Mapping[str, ndarray of shape (n,)]
        The design.
    """
    from scipy import special

    logs = [np.log(column) for column in columns.values()]
    logs = [(x - x.mean()) / x.std() for x in logs if np.ptp(x) > 0]
    squares = [x * y for i, x in enumerate(logs) for y in logs[i:]]
    r = np.clip(z, -OUTLYING, OUTLYING)
    r = r - r.mean()
    terms = np.stack([np.ones(len(r)), *logs, *squares], axis=1)
    found, _, rank, _ = np.linalg.lstsq(terms, r, rcond=None)
    rest = float(np.sum((r - terms @ found) ** 2))
    explained, spare = float(r @ r) - rest, len(r) - int(rank)
    if rank < 2 or spare < 1 or rest <= 0:
        return False
    ratio = explained / (rank - 1) / (rest / spare)
    return bool(special.fdtrc(rank - 1, spare, ratio) < CHANCE)


def replicate(
    model: RowModel,
    best: FloatArray,
    rows: Rows,
    penalty: Penalty,
    box: Box,
    replicates: ResamplingPlan,
    columns: Mapping[str, FloatArray],
    *,
    use_numba: UseNumba = "auto",
) -> tuple[Replicates, ResamplingPlan] | None:
    """Return efficient replicates with their plan; None where they are not to be had or trusted.

    Parameters
    ----------
    model, best, rows, penalty, box
        The objective and its optimum.
    replicates : Plan
        Of rows, smooth.
    columns : Mapping[str, ndarray of shape (n,)]
        The design.
    use_numba : {"auto", "yes", "no"}
        See `scalelab.fit.replicates.refit`.
    """
    found = efficient(model, best, rows, box, compute_of(columns))
    if found is None:
        return None
    z = model.residuals(found.eta[None], rows)[0] / found.penalty.threshold
    if is_bent(z, columns):
        return None
    shaped = replace(replicates, shape=found.shape)
    tried = replace(shaped, k=max(replicates.k, CHECKS))
    steps = newton_steps(model, found, box, tried)
    if steps is None:
        return None
    if not agrees(model, best, rows, penalty, box, found, steps, tried, use_numba):
        return None
    eta = covariance_spread(found, box, steps, tried)[: replicates.k]
    return Replicates(eta=eta, failed=0, kept=np.ones(len(eta), dtype=bool)), shaped


def newton_steps(
    model: RowModel, found: Efficient, box: Box, replicates: ResamplingPlan
) -> FloatArray | None:
    """Return each replicate's Newton step from the efficient optimum, shape (k, p).

    None where the objective there is no minimum, or far from its parabola.

    Parameters
    ----------
    model : RowModel
        The law on the rows.
    found : Efficient
        The efficient refit.
    box : Box
        Bounds and held coordinates.
    replicates : Plan
        With the shape of ``found``.
    """
    value, gradient, hessian = model.derivatives(found.eta)
    slopes, bends = gradient, hessian
    if found.rows.is_log:
        slopes = gradient / value
        bends = hessian / value - slopes[:, None] * slopes[None]
    r = model.residuals(found.eta[None], found.rows)[0]
    _, first, second, _ = found.penalty.parts(r, found.rows.weight)
    free = np.flatnonzero(box.free)
    matrix = ((slopes * second) @ slopes.T + bends @ first)[np.ix_(free, free)]
    if not np.isfinite(matrix).all() or np.linalg.eigvalsh(matrix)[0] <= 0:
        return None
    pull = (slopes * first)[free].T
    batch = max(1, ENTRIES // found.rows.n)
    sums = np.concatenate([weights @ pull for weights in replicates.weights(batch)])
    steps = np.zeros((len(sums), len(found.eta)))
    steps[:, free] = -np.linalg.solve(matrix, sums.T).T
    return steps if _is_fair(model, found, box, matrix, steps) else None


def _is_fair(
    model: RowModel, found: Efficient, box: Box, matrix: FloatArray, steps: FloatArray
) -> bool:
    """Return whether the parabola holds, within `BENT`, along the axes of the steps' spread."""
    free = np.flatnonzero(box.free)
    size, axes = np.linalg.eigh(steps[:, free].T @ steps[:, free] / len(steps))
    ends = REACH * np.sqrt(np.maximum(size, 0.0))[:, None] * axes.T
    points = np.tile(found.eta, (2 * len(free), 1))
    points[:, free] += np.concatenate([ends, -ends])
    points = np.clip(points, box.low, box.high)
    base = model.value(found.eta[None], found.rows, found.penalty)[0]
    rise = model.value(points, found.rows, found.penalty) - base
    parabola = 0.5 * np.einsum("jp,pq,jq->j", ends, matrix, ends)
    ratio = rise / np.concatenate([parabola, parabola])
    return bool(((ratio > BENT[0]) & (ratio < BENT[1])).all())


def covariance_spread(
    found: Efficient, box: Box, steps: FloatArray, replicates: ResamplingPlan
) -> FloatArray:
    """Return replicates whose deviations follow Student's t, shape (k, p)."""
    freedom = found.rows.n - int(box.free.sum())
    return stretched(found.eta, steps, freedom, box, replicates.seed)


def agrees(
    model: RowModel,
    best: FloatArray,
    rows: Rows,
    penalty: Penalty,
    box: Box,
    found: Efficient,
    steps: FloatArray,
    replicates: ResamplingPlan,
    use_numba: UseNumba,
) -> bool:
    """Return whether the objective's optimum and the efficient one differ by no more than chance.

    The covariance of the difference is that over replicates of both under the same weights.

    Parameters
    ----------
    model, best, rows, penalty, box
        The objective and its optimum.
    found : Efficient
        The efficient refit.
    steps, replicates : ndarray of shape (k, p), Plan
        Its replicates as deviations, `CHECKS` or more.
    use_numba : {"auto", "yes", "no"}
        See `scalelab.fit.replicates.refit`.
    """
    from scipy import special

    few = replace(replicates, k=CHECKS)
    own = refit(model, best, rows, penalty, box, few, use_numba=use_numba)
    gap = own.eta - found.eta - steps[:CHECKS][own.kept]
    if len(gap) < CHECKS // 2:
        return False
    size = gap[:, box.free].std(axis=0)
    if not (np.isfinite(size).all() and (size > 0).all()):
        return False
    gap, difference = gap[:, box.free] / size, (best - found.eta)[box.free] / size
    sizes, basis = np.linalg.eigh(np.cov(gap.T).reshape(len(size), len(size)))
    if sizes[0] <= 0:
        return False
    distance = float(np.sum((difference @ basis) ** 2 / sizes))
    return distance <= float(special.chdtri(len(size), CHANCE))

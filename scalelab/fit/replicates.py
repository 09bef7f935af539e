"""Refits of replicates, all at once, starting at the full fit's optimum.

Three ways, the same answer: Newton in NumPy for whole batches; the same compiled, when Numba is
there and the work is worth its start-up; and, with very many rows, one Newton step from sums that
are linear in the weights, whose error is a fraction 1/sqrt(n) of an interval.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import UsageError
from scalelab.fit.bootstrap import ResamplingPlan
from scalelab.fit.newton import Box, NewtonResult, minimise, solve_positive
from scalelab.fit.penalty import Penalty
from scalelab.fit.row_model import ExponentialSum, RowModel, Rows
from scalelab.fit.solver import descend

FloatArray = NDArray[np.float64]
UseNumba = Literal["auto", "yes", "no"]

BATCH = 512
"""Replicates in flight together in NumPy, with few rows: what its temporaries fit in a cache."""
ENTRIES = 5_000_000
"""Most weights held at a time."""
TOLERANCE = 1e-10
SOFT = 25.0
"""Where the path of thresholds starts, in units of the threshold in force."""
PATIENCE = 60
WORTH_COMPILING = 4_000_000
"""Weights from which loading compiled code pays."""
MOST_LEVERAGE = 0.95
"""Leverage at which the correction for it stops."""
MANY_ROWS = 20_000
"""Rows from which one step is enough."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Replicates:
    """Optima of the replicates.

    Attributes
    ----------
    eta : ndarray of shape (k_ok, p)
        Those that converged, in solver coordinates.
    failed : int
        How many did not.
    kept : ndarray of bool, shape (k,)
        Which replicates, in the order of the plan, converged.
    """

    eta: FloatArray
    failed: int
    kept: NDArray[np.bool_]


def refit(
    model: RowModel,
    best: FloatArray,
    rows: Rows,
    penalty: Penalty,
    box: Box,
    replicates: ResamplingPlan,
    *,
    use_numba: UseNumba = "auto",
) -> Replicates:
    """Return the optimum of every replicate.

    Parameters
    ----------
    model : RowModel
        The law on the rows.
    best : ndarray of shape (p,)
        Optimum of the whole data, where every replicate starts.
    rows : Rows
        The data, with its own weights.
    penalty : Penalty
        As in the full fit.
    box : Box
        As in the full fit.
    replicates : Plan
        What to resample.
    use_numba : {"auto", "yes", "no"}
        Whether to compile; ``auto`` when it pays.

    Raises
    ------
    UsageError
        When Numba is asked for and not installed.
    """
    if replicates.method == "none":
        return Replicates(eta=np.empty((0, len(best))), failed=0, kept=np.zeros(0, dtype=bool))
    compiled = _wants_numba(model, replicates, use_numba)
    batch = max(1, min(replicates.k if compiled else BATCH, ENTRIES // rows.n))
    ends = []
    for one in _samples(model, best, rows, box, replicates, batch):
        if rows.n >= MANY_ROWS and one.target.ndim == 1:
            ends.append(_one_step(model, best, one, penalty, box))
        else:
            ends.append(_with_patience(model, best, one, penalty, box, compiled))
    converged = np.concatenate([end.converged for end in ends])
    eta = np.concatenate([end.eta for end in ends])
    return Replicates(eta=eta[converged], failed=int((~converged).sum()), kept=converged)


def refit_clusters(
    model: RowModel,
    best: FloatArray,
    rows: Rows,
    penalty: Penalty,
    box: Box,
    replicates: ResamplingPlan,
    *,
    use_numba: UseNumba = "auto",
) -> tuple[Replicates, ResamplingPlan]:
    """Return the optimum of every replicate of whole clusters, and the plan that drew them.

    Residuals are smaller than errors where a cluster pulls the law to itself, so that plain
    replicates of 30 clusters cover 76 to 84 % at a nominal 90 % (results/LOG.md). The weight of a
    cluster therefore has the variance (1 - h)^-2, with h the largest eigenvalue of its block of
    the hat matrix (the covariance CV3 along the direction where it matters most), and deviations
    are stretched to Student's t with the clusters less the parameters as degrees of freedom.

    Parameters
    ----------
    model, best, rows, penalty, box, use_numba
        As for `refit`.
    replicates : Plan
        Of clusters, smooth.

    References
    ----------
    Bell and McCaffrey 2002, Survey Methodology 28. MacKinnon, Nielsen and Webb 2023, Journal of
    Econometrics 232 (few clusters).
    """
    member = replicates.member
    assert member is not None
    shaped = replace(
        replicates, shape=(1.0 - cluster_leverages(model, best, rows, box, member)) ** 2
    )
    plain = refit(model, best, rows, penalty, box, shaped, use_numba=use_numba)
    freedom = max(int(member.max()) + 1 - int(box.free.sum()), 1)
    return replace(plain, eta=stretched(best, plain.eta - best, freedom, box, shaped.seed)), shaped


def stretched(best: FloatArray, steps: FloatArray, freedom: int, box: Box, seed: int) -> FloatArray:
    """Return replicates, shape (k, p), whose deviations from ``best`` follow Student's t.

    Parameters
    ----------
    best : ndarray of shape (p,)
    steps : ndarray of shape (k, p)
        Deviations that are all but normal.
    freedom : int
        Degrees of freedom.
    box : Box
        Bounds.
    seed : int
        Of the replicates.
    """
    scale = np.random.default_rng((seed, 1)).chisquare(freedom, len(steps)) / freedom
    return np.clip(best + steps / np.sqrt(scale)[:, None], box.low, box.high)


def leverages(model: RowModel, best: FloatArray, rows: Rows, box: Box) -> FloatArray:
    """Return how far each row pulls its own prediction (0 to 1), shape (n,)."""
    basis = _basis(model, best, rows, box)
    return np.asarray(np.clip((basis * basis).sum(axis=1), 0.0, MOST_LEVERAGE))


def cluster_leverages(
    model: RowModel, best: FloatArray, rows: Rows, box: Box, member: NDArray[np.intp]
) -> FloatArray:
    """Return, for each row, how far its cluster pulls its own predictions (0 to 1), shape (n,)."""
    basis = _basis(model, best, rows, box)
    p = basis.shape[1]
    blocks = np.empty((int(member.max()) + 1, p, p))
    for i in range(p):
        for j in range(p):
            blocks[:, i, j] = np.bincount(member, basis[:, i] * basis[:, j])
    largest = np.linalg.eigvalsh(blocks)[:, -1]
    return np.asarray(np.clip(largest, 0.0, MOST_LEVERAGE)[member])


def _basis(model: RowModel, best: FloatArray, rows: Rows, box: Box) -> FloatArray:
    """Return an orthonormal basis, shape (n, p), of the free coordinates' effects on the rows."""
    value, gradient, _ = model.derivatives(best)
    slopes = gradient / value if rows.is_log else gradient
    basis, _ = np.linalg.qr((slopes[box.free] * np.sqrt(rows.weight)).T)
    return np.asarray(np.nan_to_num(basis))


def _wants_numba(model: RowModel, replicates: ResamplingPlan, use_numba: UseNumba) -> bool:
    if use_numba == "no" or not isinstance(model, ExponentialSum):
        return False
    is_there = importlib.util.find_spec("numba") is not None
    if use_numba == "yes":
        if not is_there:
            raise UsageError(
                "use_numba='yes' without Numba",
                "an environment with the extra scalelab[fast]",
                "Install it, or leave the choice to auto.",
            )
        return True
    is_worth = replicates.k * replicates.n >= WORTH_COMPILING or "numba" in sys.modules
    return is_there and is_worth


def _samples(
    model: RowModel, best: FloatArray, rows: Rows, box: Box, replicates: ResamplingPlan, batch: int
) -> Iterator[Rows]:
    """Yield batches of replicates as rows with their own weights, or their own targets."""
    if replicates.method != "residual":
        for weights in replicates.weights(batch):
            yield rows.reweighted(weights * rows.weight)
        return
    r = model.residuals(best[None], rows)[0]
    corrected = r / np.sqrt(1.0 - leverages(model, best, rows, box))
    for draws in replicates.draws(batch):
        compared = rows.compared + r - corrected[draws]
        target = np.exp(compared) if rows.is_log else compared
        yield Rows(target, rows.weight, rows.residual, compared)


def _with_patience(
    model: RowModel, best: FloatArray, rows: Rows, penalty: Penalty, box: Box, compiled: bool
) -> NewtonResult:
    """Fit directly, and those that do not converge again down a path of thresholds."""
    if compiled and rows.target.ndim == 1 and isinstance(model, ExponentialSum):
        from scalelab.fit.kernels_numba import refit_batch

        eta, value, converged = refit_batch(
            model, best, rows, penalty, box, max_iterations=PATIENCE, tolerance=TOLERANCE
        )
        end = NewtonResult(eta=eta, value=value, converged=converged, n_iterations=PATIENCE)
    else:
        starts = np.tile(best, (max(rows.target.size, rows.weight.size) // rows.n, 1))
        end = minimise(
            model, starts, rows, penalty, box, max_iterations=PATIENCE, tolerance=TOLERANCE
        )
    late = ~end.converged
    if not late.any():
        return end
    again = descend(
        model,
        end.eta[late],
        rows.take(late),
        penalty,
        box,
        start=SOFT * penalty.delta,
        tolerance=TOLERANCE,
        max_iterations=400,
    )
    eta, value, converged = end.eta.copy(), end.value.copy(), end.converged.copy()
    eta[late], value[late], converged[late] = again.eta, again.value, again.converged
    return NewtonResult(eta=eta, value=value, converged=converged, n_iterations=end.n_iterations)


def _one_step(
    model: RowModel, best: FloatArray, rows: Rows, penalty: Penalty, box: Box
) -> NewtonResult:
    """Take one Newton step a replicate from gradients and Hessians that are sums over rows.

    Where Huber's threshold is narrower than what n rows resolve, its second derivative is spread
    over a window that shrinks with n (Powell's estimate of a density at 0).
    """
    p = len(best)
    value, gradient, hessian = model.derivatives(best)
    r = model.residuals(best[None], rows)[0]
    slopes, bends = gradient, hessian
    if rows.is_log:
        slopes = gradient / value
        bends = hessian / value - slopes[:, None] * slopes[None]
    _, first, second, _ = penalty.parts(r, np.ones(rows.n))
    window = 1.5 * float(np.median(np.abs(r))) * rows.n**-0.2
    if penalty.unit is None and window > penalty.delta:
        side = np.where(r > 0, penalty.overprediction, 1.0)
        second = side * (penalty.delta / window) * (np.abs(r) <= window)
    rows_hessian = second * slopes[:, None] * slopes[None] + first * bends
    lower = np.tril_indices(p)
    sums = rows.weight @ np.concatenate([first * slopes, rows_hessian[lower]]).T
    matrix = np.empty((len(sums), p, p))
    matrix[:, lower[0], lower[1]] = sums[:, p:]
    matrix[:, lower[1], lower[0]] = sums[:, p:]
    held = ~box.free | (best <= box.low) | (best >= box.high)
    g = np.where(held, 0.0, sums[:, :p])
    matrix[:, held, :] = 0.0
    matrix[:, :, held] = 0.0
    matrix[:, held, held] = 1.0
    step, fine = solve_positive(matrix, -g)
    eta = np.clip(best + step, box.low, box.high)
    fine = fine & np.isfinite(eta).all(axis=1)
    return NewtonResult(eta=eta, value=np.full(len(eta), math.nan), converged=fine, n_iterations=1)

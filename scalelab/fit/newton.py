"""Damped Newton's method with the exact Hessian, for a batch of points.

Each point has its own damping. The step solves ``(H + damping M) d = -g`` with H the exact Hessian
and M the Gauss-Newton majorant, so it does not depend on the scaling of parameters. Where
``H + damping M`` is not positive definite, the step uses M alone: a descent step of iteratively
re-weighted least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.fit.penalty import Penalty
from scalelab.fit.row_model import Expansion, RowModel, Rows
from scalelab.fit.time_limit import check_time

BoolArray = NDArray[np.bool_]

TOLERANCE = 1e-13
"""A point has converged if a full step would lower the objective by less than this share."""

ABSOLUTE = 1e-28
"""Same in absolute units, per row: rounding squared, for rows that the law fits exactly."""

MAX_DAMPING = 1e8
RETURN_DAMPING = 1e-2
"""Damping from which a rejected step is corrected by `_minimise_scales`."""
SCALE_STEPS = 2
"""Steps in the scales before a trial point is rejected."""
MAX_SCALE_STEP = 5.0
"""Maximum length of such a step, in a logarithm."""
FEW = 64
"""Batch size up to which LAPACK is faster than the loop below."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Box:
    """Bounds of solver coordinates, and which of them are held.

    Attributes
    ----------
    free : ndarray of bool, shape (p,)
        False where a coordinate is held.
    scales : ndarray of bool, shape (p,)
        True for scales (A, B, E and their logarithms), False for exponents.
    low, high : ndarray of shape (p,)
        Bounds.
    """

    free: BoolArray
    scales: BoolArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NewtonResult:
    """Final state of each of s points.

    Attributes
    ----------
    eta : ndarray of shape (s, p)
    value : ndarray of shape (s,)
    converged : ndarray of bool, shape (s,)
    """

    eta: FloatArray
    value: FloatArray
    converged: BoolArray


@np.errstate(all="ignore")
def minimise(
    model: RowModel,
    eta: FloatArray,
    rows: Rows,
    penalty: Penalty,
    box: Box,
    *,
    max_iterations: int = 100,
    tolerance: float = TOLERANCE,
) -> NewtonResult:
    """Return a local minimum from each starting point.

    Parameters
    ----------
    model : RowModel
        The law on its rows.
    eta : ndarray of shape (s, p)
        Starting points in solver coordinates.
    rows : Rows
        Observed values and weights: one set for all points, or one per point.
    penalty : Penalty
        Penalty of a residual.
    box : Box
        Bounds and held coordinates.
    max_iterations : int
        Points that need more iterations count as not converged.
    tolerance : float
        See `TOLERANCE`.
    """
    best = np.array(eta, dtype=np.float64)
    value = np.full(len(best), np.inf)
    converged = np.zeros(len(best), dtype=bool)
    index = np.arange(len(best))
    at = best
    here = model.expand(at, rows, penalty)
    damping = np.full(len(best), 1e-3)
    value[:] = here.value
    index, at, here, damping, rows = _keep(np.isfinite(here.value), index, at, here, damping, rows)
    for _ in range(max_iterations):
        if not len(index):
            break
        check_time()
        step, gain = _step(here, damping, at, box)
        small = gain <= tolerance * here.value + ABSOLUTE * model.n_rows
        # The last step is still taken: it doubles the number of correct digits.
        trial = np.clip(at + step, box.low, box.high)
        there = model.expand(trial, rows, penalty)
        better = there.value <= here.value
        # After the first rejection only the damping grows; later ones also correct the scales.
        rejected = ~better & ~small & (damping >= RETURN_DAMPING)
        if rejected.any():
            trial, there = _minimise_scales(model, trial, there, rows, penalty, box, rejected)
            better = there.value <= here.value
        at = np.where(better[:, None], trial, at)
        here = _merge(better, there, here)
        ratio = damping > 0
        damping = np.where(better, damping * 0.1, np.maximum(damping * 10.0, 1e-3))
        damping[better & (damping < 1e-7)] = 0.0
        stuck = ~better & ratio & (damping > MAX_DAMPING)
        done = small | stuck
        best[index] = at
        value[index] = here.value
        converged[index[small | (stuck & (gain <= 1e-8 * here.value))]] = True
        if done.any():
            index, at, here, damping, rows = _keep(~done, index, at, here, damping, rows)
    return NewtonResult(eta=best, value=value, converged=converged)


def _minimise_scales(
    model: RowModel,
    trial: FloatArray,
    there: Expansion,
    rows: Rows,
    penalty: Penalty,
    box: Box,
    rejected: BoolArray,
) -> tuple[FloatArray, Expansion]:
    """Lower the objective at rejected trial points by steps in the scales alone.

    The region of low objective is curved where a scale and its exponent compensate each other. A
    long step leaves that region; without this correction only short steps would be accepted.
    """
    only_scales = Box(free=box.free & box.scales, scales=box.scales, low=box.low, high=box.high)
    own = rows.take(rejected)
    point = trial[rejected]
    here = _pick(there, rejected)
    for _ in range(SCALE_STEPS):
        undamped = np.full(len(point), 1e-6)
        step, _ = _step(here, undamped, point, only_scales)
        step = np.clip(step, -MAX_SCALE_STEP, MAX_SCALE_STEP)
        point = np.clip(point + step, box.low, box.high)
        here = model.expand(point, own, penalty)
    out = trial.copy()
    out[rejected] = point
    index = np.flatnonzero(rejected)
    merged = Expansion(
        value=there.value.copy(),
        gradient=there.gradient.copy(),
        hessian=there.hessian.copy(),
        majorant=there.majorant.copy(),
    )
    merged.value[index] = here.value
    merged.gradient[index] = here.gradient
    merged.hessian[index] = here.hessian
    merged.majorant[index] = here.majorant
    return out, merged


def _pick(here: Expansion, mask: BoolArray) -> Expansion:
    return Expansion(
        value=here.value[mask],
        gradient=here.gradient[mask],
        hessian=here.hessian[mask],
        majorant=here.majorant[mask],
    )


def _step(
    here: Expansion, damping: FloatArray, at: FloatArray, box: Box
) -> tuple[FloatArray, FloatArray]:
    """Return the damped step and the decrease predicted by the quadratic approximation."""
    g = here.gradient
    held = ~box.free | ((at <= box.low) & (g > 0)) | ((at >= box.high) & (g < 0))
    g = np.where(held, 0.0, g)
    size = np.einsum("spp->sp", here.majorant)
    trace = size.max(axis=1, initial=0.0, where=~held)
    ridge = 1e-15 * trace + 1e-300
    soft = here.majorant * (1.0 + damping)[:, None, None]
    hard = here.hessian + damping[:, None, None] * here.majorant
    step, fine = solve_positive(_hold(hard, held, ridge), -g)
    if not fine.all():
        bad = ~fine
        step[bad], fine[bad] = solve_positive(
            _hold(soft[bad], held[bad], 1e3 * ridge[bad]), -g[bad]
        )
    if not fine.all():
        bad = ~fine
        step[bad] = -g[bad] / np.maximum(trace[bad], 1e-300)[:, None]
    return step, -0.5 * np.einsum("sp,sp->s", g, step)


def _hold(matrix: FloatArray, held: BoolArray, ridge: FloatArray) -> FloatArray:
    out = np.where(held[:, :, None] | held[:, None, :], 0.0, matrix)
    diagonal = np.einsum("spp->sp", out)
    diagonal += np.where(held, 1.0, ridge[:, None])
    return out


def solve_positive(matrix: FloatArray, rhs: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Solve a batch of small symmetric systems by Cholesky decomposition.

    Parameters
    ----------
    matrix : ndarray of shape (s, p, p)
    rhs : ndarray of shape (s, p)

    Returns
    -------
    solution : ndarray of shape (s, p)
        Zero where the matrix is not positive definite.
    is_positive : ndarray of bool, shape (s,)
    """
    s, p = rhs.shape
    if s <= FEW:
        try:
            np.linalg.cholesky(matrix)
            x = np.asarray(np.linalg.solve(matrix, rhs[:, :, None])[:, :, 0], dtype=np.float64)
            return x, np.ones(s, dtype=np.bool_)
        except np.linalg.LinAlgError:
            positive = _is_positive(matrix) & np.isfinite(rhs).all(axis=1)
            x = np.zeros_like(rhs)
            try:
                x[positive] = np.linalg.solve(matrix[positive], rhs[positive, :, None])[:, :, 0]
                return x, positive
            except np.linalg.LinAlgError:
                pass  # singular to LAPACK only: the loop below decides
    a = np.ascontiguousarray(matrix.transpose(1, 2, 0))
    diagonal = np.einsum("pps->ps", a).copy()
    fine = np.isfinite(a).all(axis=(0, 1)) & np.isfinite(rhs).all(axis=1)
    a[:, :, ~fine] = np.eye(p)[:, :, None]
    low = np.zeros_like(a)
    for j in range(p):
        pivot = a[j, j] - (low[j, :j] ** 2).sum(axis=0)
        fine &= pivot > 1e-13 * np.abs(diagonal[j])
        root = np.sqrt(np.where(pivot > 0, pivot, 1.0))
        low[j, j] = root
        for i in range(j + 1, p):
            low[i, j] = (a[i, j] - (low[i, :j] * low[j, :j]).sum(axis=0)) / root
    x = np.where(fine, rhs.T, 0.0)
    for j in range(p):
        x[j] = (x[j] - (low[j, :j] * x[:j]).sum(axis=0)) / low[j, j]
    for j in reversed(range(p)):
        x[j] = (x[j] - (low[j + 1 :, j] * x[j + 1 :]).sum(axis=0)) / low[j, j]
    return np.ascontiguousarray(x.T), np.asarray(fine, dtype=np.bool_)


def _is_positive(matrix: FloatArray) -> BoolArray:
    """Return which matrices, shape (s, p, p), have all pivots above rounding error."""
    a = matrix.copy()
    p = a.shape[1]
    fine = np.isfinite(a).all(axis=(1, 2))
    a[~fine] = np.eye(p)
    least = 1e-13 * np.abs(np.einsum("spp->sp", a))
    for j in range(p):
        pivot = a[:, j, j]
        fine &= pivot > least[:, j]
        factor = a[:, j + 1 :, j] / np.where(pivot > 0, pivot, 1.0)[:, None]
        a[:, j + 1 :, j + 1 :] -= factor[:, :, None] * a[:, j, None, j + 1 :]
    return np.asarray(fine)


def _merge(better: BoolArray, there: Expansion, here: Expansion) -> Expansion:
    if better.all():
        return there
    return Expansion(
        value=np.where(better, there.value, here.value),
        gradient=np.where(better[:, None], there.gradient, here.gradient),
        hessian=np.where(better[:, None, None], there.hessian, here.hessian),
        majorant=np.where(better[:, None, None], there.majorant, here.majorant),
    )


def _keep(
    mask: BoolArray,
    index: NDArray[np.intp],
    at: FloatArray,
    here: Expansion,
    damping: FloatArray,
    rows: Rows,
) -> tuple[NDArray[np.intp], FloatArray, Expansion, FloatArray, Rows]:
    """Return only the points under the mask."""
    if mask.all():
        return index, at, here, damping, rows
    return index[mask], at[mask], _pick(here, mask), damping[mask], rows.take(mask)

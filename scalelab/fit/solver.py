"""Global minimum of an objective: many starts, continuation in delta, a check by SciPy.

`search` runs every start twice: through a sequence of decreasing Huber thresholds, of which the
first are nearly quadratic and have few minima, and directly on the objective. Refits under random
row weights then give further starting points ("bumping"), often beyond a barrier that the other
starts do not cross. `scipy.optimize` refines and checks the best point with the exact Hessian,
unless the gradient and the Hessian there show a minimum to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.fit.newton import TOLERANCE, Box, NewtonResult, minimise
from scalelab.fit.penalty import Penalty
from scalelab.fit.row_model import Expansion, RowModel, Rows

SHRINK = 0.2
"""Ratio of successive thresholds of a continuation."""
NEAR = 2e-3
"""Minima within this relative distance of the best objective are reported."""
SAME = 1e-5
"""Minima whose predictions all agree to this relative distance count as one."""
N_REWEIGHTED = 16
SMALLEST = 1e-9
"""Threshold used in place of 0 (least absolute deviations), relative to the residuals."""
ROUNDING = 1e-15
"""Relative decrease of the objective that its rounding hides."""
DISAGREEMENT = 1e-9
"""Relative improvement by `scipy.optimize` above which the fit warns."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Search:
    """Result of a global search.

    Attributes
    ----------
    eta : ndarray of shape (p,)
        Best point, in solver coordinates.
    value : float
        Objective at ``eta``.
    penalty : Penalty
        Penalty that was minimised (with the threshold used in place of 0).
    minima : tuple of (value, eta)
        Distinct minima within `NEAR`, best first.
    converged : bool
        Whether the best point is a minimum.
    improved : float
        Relative improvement by `scipy.optimize`.
    """

    eta: FloatArray
    value: float
    penalty: Penalty
    minima: tuple[tuple[float, FloatArray], ...]
    converged: bool
    improved: float


def search(
    model: RowModel,
    seeds: FloatArray,
    rows: Rows,
    penalty: Penalty,
    box: Box,
    *,
    n_starts: int,
) -> Search:
    """Return the best minimum over many starts.

    Parameters
    ----------
    model : RowModel
        The law on its rows.
    seeds : ndarray of shape (s, p)
        Starting points in solver coordinates, best first.
    rows : Rows
        Observed values and weights.
    penalty : Penalty
        Threshold 0 means least absolute deviations.
    box : Box
        Bounds and held coordinates.
    n_starts : int
        Number of seeds to use: half are the best, half are spread over the others.
    """
    starts = choose(seeds, n_starts)
    smooth = Penalty(delta=math.inf, overprediction=penalty.overprediction)
    first = minimise(model, starts, rows, smooth, box, max_iterations=30)
    scale = _typical_residual(model, first, rows)
    target = Penalty(
        delta=max(penalty.delta, SMALLEST * scale), overprediction=penalty.overprediction
    )
    ends: list[NewtonResult] = []
    if math.isinf(target.delta):
        ends.append(minimise(model, first.eta, rows, target, box))
    else:
        apart = distinct(model, first.eta, first.value)
        ends.append(descend(model, first.eta[apart], rows, target, box, start=scale))
        direct = Penalty(
            delta=max(target.delta, 1e-2 * scale), overprediction=penalty.overprediction
        )
        straight = minimise(model, starts[: n_starts // 2], rows, direct, box, max_iterations=60)
        apart = distinct(model, straight.eta, straight.value)
        ends.append(descend(model, straight.eta[apart], rows, target, box, start=direct.delta))
    ends.append(_reweighted(model, _best(ends), rows, target, box))
    return _conclude(model, ends, rows, target, box)


def refine(model: RowModel, starts: FloatArray, rows: Rows, penalty: Penalty, box: Box) -> Search:
    """Return the best minimum near a few good points."""
    return _conclude(model, [minimise(model, starts, rows, penalty, box)], rows, penalty, box)


def _conclude(
    model: RowModel, ends: list[NewtonResult], rows: Rows, target: Penalty, box: Box
) -> Search:
    """Refine the best result and list the other minima near it."""
    eta = np.concatenate([end.eta for end in ends])
    value = np.concatenate([end.value for end in ends])
    settled = np.concatenate([end.converged for end in ends])
    top = int(np.argmin(value))
    polished, polished_value = polish(model, eta[top], rows, target, box)
    improved = float((value[top] - polished_value) / max(abs(value[top]), 1e-300))
    if polished_value < value[top]:
        eta[top], value[top] = polished, polished_value
    order = distinct(model, eta, value, settled | (np.arange(len(value)) == top))
    near = [i for i in order if value[i] <= value[top] * (1.0 + NEAR)]
    return Search(
        eta=eta[top],
        value=float(value[top]),
        penalty=target,
        minima=tuple((float(value[i]), eta[i]) for i in near),
        converged=bool(settled[top]) or improved < DISAGREEMENT,
        improved=improved,
    )


def descend(
    model: RowModel,
    eta: FloatArray,
    rows: Rows,
    target: Penalty,
    box: Box,
    *,
    start: float,
    between: int = 12,
    max_iterations: int = 100,
    tolerance: float = TOLERANCE,
) -> NewtonResult:
    """Return minima at the target's threshold, reached through decreasing thresholds."""
    delta = start if math.isfinite(target.delta) else 0.0
    while delta * SHRINK > target.delta:
        delta *= SHRINK
        step = replace(target, delta=delta)
        eta = minimise(model, eta, rows, step, box, max_iterations=between, tolerance=1e-8).eta
    return minimise(
        model, eta, rows, target, box, max_iterations=max_iterations, tolerance=tolerance
    )


def choose(seeds: FloatArray, n_starts: int) -> FloatArray:
    """Return ``n_starts`` seeds: half are the best, half are spread evenly over the others."""
    if len(seeds) <= n_starts:
        return seeds
    best = (n_starts + 1) // 2
    rest = np.linspace(best, len(seeds) - 1, n_starts - best).astype(int)
    return np.asarray(seeds[np.concatenate([np.arange(best), rest])])


def distinct(
    model: RowModel,
    eta: FloatArray,
    value: FloatArray,
    eligible: NDArray[np.bool_] | None = None,
) -> list[int]:
    """Return positions of points with different predictions, best first.

    Predictions are compared instead of parameters: a parameter without effect on them does not make
    two minima of one.
    """
    kept: list[int] = []
    # A prediction that is not finite differs from every other.
    with np.errstate(all="ignore"):
        predicted = model.predicted(eta)
        for i in np.argsort(value, kind="stable"):
            if not np.isfinite(value[i]) or (eligible is not None and not eligible[i]):
                continue
            same = np.abs(predicted[kept] / predicted[i] - 1.0).max(axis=1) < SAME
            if not same.any():
                kept.append(int(i))
    return kept


def polish(
    model: RowModel, eta: FloatArray, rows: Rows, penalty: Penalty, box: Box
) -> tuple[FloatArray, float]:
    """Return point and value after refinement by SciPy's exact trust-region method.

    The free coordinates are transformed so that the majorant is the identity: the trust region is
    then a ball in terms of the residuals.
    """
    free = box.free & (eta > box.low) & (eta < box.high)
    here = model.expand(eta[None], rows, penalty)
    scale = float(here.value[0])
    if not free.any() or not math.isfinite(scale) or scale <= 0:
        return eta, scale
    majorant = here.majorant[0][np.ix_(free, free)] / scale
    if not np.isfinite(majorant).all():
        return eta, scale
    sizes, vectors = np.linalg.eigh(majorant)
    basis = vectors / np.sqrt(np.maximum(sizes, 1e-12 * sizes.max() + 1e-300))
    slope = basis.T @ here.gradient[0][free] / scale
    bend = basis.T @ here.hessian[0][np.ix_(free, free)] @ basis / scale
    if _is_lowest(slope, bend):
        return eta, scale
    from scipy.optimize import minimize

    def at(z: FloatArray) -> FloatArray:
        out = eta.copy()
        out[free] = np.clip(eta[free] + basis @ z, box.low[free], box.high[free])
        return out

    seen: dict[bytes, Expansion] = {}

    def expanded(z: FloatArray) -> Expansion:
        # SciPy evaluates the three functions below at the same points.
        key = z.tobytes()
        if key not in seen:
            seen[key] = model.expand(at(z)[None], rows, penalty)
        return seen[key]

    # Where the law overflows, an infinite value makes SciPy reject the step; SciPy does not accept
    # derivatives that are not finite.
    def value(z: FloatArray) -> float:
        found = float(expanded(z).value[0]) / scale
        return found if math.isfinite(found) else math.inf

    def gradient(z: FloatArray) -> FloatArray:
        return _finite(basis.T @ expanded(z).gradient[0][free]) / scale

    def hessian(z: FloatArray) -> FloatArray:
        exact = expanded(z).hessian[0][np.ix_(free, free)]
        return _finite(basis.T @ exact @ basis) / scale

    with np.errstate(all="ignore"):
        try:
            end = minimize(
                value,
                np.zeros(int(free.sum())),
                jac=gradient,
                hess=hessian,
                method="trust-exact",
                options={"gtol": 1e-9, "maxiter": 30, "initial_trust_radius": 1e-3},
            )
        except ValueError:
            return eta, scale  # a singular Hessian or an infinite factor: the point stays
    return at(end.x), float(expanded(end.x).value[0])


def _is_lowest(slope: FloatArray, bend: FloatArray) -> bool:
    """Return whether no step can lower the objective by more than its rounding.

    The import of `scipy.optimize` costs more than a fit, so a point that passes is not refined.
    """
    if not (np.isfinite(slope).all() and np.isfinite(bend).all()):
        return False
    sizes, vectors = np.linalg.eigh(bend)
    if sizes[0] <= 0:
        return False
    return bool(0.5 * np.sum((slope @ vectors) ** 2 / sizes) < ROUNDING)


def _finite(values: FloatArray) -> FloatArray:
    return np.where(np.isfinite(values), values, 0.0)


def _reweighted(
    model: RowModel, best: FloatArray, rows: Rows, target: Penalty, box: Box
) -> NewtonResult:
    """Return minima reached from the optima of randomly re-weighted rows."""
    weights = rows.weight * np.random.default_rng(0).exponential(size=(N_REWEIGHTED, model.n_rows))
    starts = np.tile(best, (N_REWEIGHTED, 1))
    moved = minimise(
        model, starts, rows.reweighted(weights), target, box, max_iterations=25, tolerance=1e-6
    )
    return minimise(model, moved.eta, rows, target, box, max_iterations=60)


def _best(ends: list[NewtonResult]) -> FloatArray:
    tops = [(end.value.min(), i) for i, end in enumerate(ends)]
    end = ends[min(tops)[1]]
    return np.asarray(end.eta[np.argmin(end.value)])


def _typical_residual(model: RowModel, result: NewtonResult, rows: Rows) -> float:
    """Return twice the median absolute residual at the best point, where continuation starts."""
    best = result.eta[np.argmin(result.value)]
    r = np.abs(model.residuals(best[None], rows)[0][rows.weight > 0])
    r = r[np.isfinite(r)]
    return max(2.0 * float(np.median(r)) if len(r) else 0.0, 1e-12)

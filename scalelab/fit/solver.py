"""The global minimum of an objective: many starts, continuation in delta, a second opinion.

`search` runs every start twice: down a path of shrinking Huber thresholds, whose first, nearly
quadratic, stretch has few minima, and straight at the objective, which can end elsewhere. Refits
under random row weights then shake the result ("bumping"), since a replicate's optimum often lies
beyond a barrier that the plain starts do not cross. The winner is polished and checked by
`scipy.optimize` with the exact Hessian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scalelab.fit.newton import TOLERANCE, Box, NewtonResult, minimise
from scalelab.fit.penalty import Penalty
from scalelab.fit.row_model import Expansion, RowModel, Rows

FloatArray = NDArray[np.float64]

SHRINK = 0.2
"""Factor between the thresholds of one continuation."""
NEAR = 2e-3
"""Minima within this share of the best are reported."""
SAME = 1e-5
"""Minima whose predictions agree to this share everywhere are one."""
N_SHAKES = 16
SMALLEST = 1e-9
"""Threshold that stands in for 0 (least absolute deviations), as a share of the residuals."""
DISAGREEMENT = 1e-9
"""Relative improvement by the second solver above which it is said aloud."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Search:
    """What a global search found.

    Attributes
    ----------
    eta : ndarray of shape (p,)
        Best point, in solver coordinates.
    value : float
        Objective there.
    penalty : Penalty
        The penalty in force at the end (with the threshold that stands in for 0).
    minima : tuple of (value, eta)
        Distinct minima within `NEAR`, best first.
    hits : int
        Starts that ended at the best minimum.
    n_ends : int
        Starts that ended anywhere.
    converged : bool
        Whether the best point is a minimum to rounding.
    improved : float
        Relative improvement that `scipy.optimize` still found.
    """

    eta: FloatArray
    value: float
    penalty: Penalty
    minima: tuple[tuple[float, FloatArray], ...]
    hits: int
    n_ends: int
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
        What was observed, with weights.
    penalty : Penalty
        Threshold 0 asks for least absolute deviations.
    box : Box
        Bounds and held coordinates.
    n_starts : int
        How many of the seeds to use: half the best, half spread over the rest.
    """
    starts = choose(seeds, n_starts)
    smooth = Penalty(delta=math.inf, overprediction=penalty.overprediction)
    first = minimise(model, starts, rows, smooth, box, max_iterations=30)
    scale = _spread(model, first, rows)
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
    ends.append(_shake(model, _best(ends), rows, target, box))
    return _conclude(model, ends, rows, target, box)


def refine(model: RowModel, starts: FloatArray, rows: Rows, penalty: Penalty, box: Box) -> Search:
    """Return the best minimum near a few good points: what is left to do on very many rows."""
    return _conclude(model, [minimise(model, starts, rows, penalty, box)], rows, penalty, box)


def _conclude(
    model: RowModel, ends: list[NewtonResult], rows: Rows, target: Penalty, box: Box
) -> Search:
    """Polish the best end and list the minima beside it."""
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
        hits=int((value <= value[top] * (1.0 + 1e-8)).sum()),
        n_ends=int(np.isfinite(value).sum()),
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
    """Return minima at the target's threshold, reached through a path of larger ones."""
    delta = start if math.isfinite(target.delta) else 0.0
    while delta * SHRINK > target.delta:
        delta *= SHRINK
        step = replace(target, delta=delta)
        eta = minimise(model, eta, rows, step, box, max_iterations=between, tolerance=1e-8).eta
    return minimise(
        model, eta, rows, target, box, max_iterations=max_iterations, tolerance=tolerance
    )


def choose(seeds: FloatArray, n_starts: int) -> FloatArray:
    """Return half the best seeds and half spread evenly over the others."""
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
    """Return positions of points that predict differently, best first.

    Predictions are compared, not parameters, so that a parameter that has run off to where it no
    longer matters does not make two minima of one.
    """
    kept: list[int] = []
    # Beyond all numbers a prediction equals no other.
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
    """Return the point and value where `scipy.optimize` ends, by its exact trust-region method.

    It starts at ``eta`` and moves the free coordinates in a basis where the majorant is the
    identity, so that its trust region is a ball in what the residuals can see.
    """
    from scipy.optimize import minimize

    free = box.free & (eta > box.low) & (eta < box.high)
    here = model.expand(eta[None], rows, penalty)
    scale = float(here.value[0])
    if not free.any() or not math.isfinite(scale) or scale <= 0:
        return eta, scale
    spread, vectors = np.linalg.eigh(here.majorant[0][np.ix_(free, free)] / scale)
    basis = vectors / np.sqrt(np.maximum(spread, 1e-12 * spread.max() + 1e-300))

    def at(z: FloatArray) -> FloatArray:
        out = eta.copy()
        out[free] = np.clip(eta[free] + basis @ z, box.low[free], box.high[free])
        return out

    seen: dict[bytes, Expansion] = {}

    def expanded(z: FloatArray) -> Expansion:
        # the three functions below are asked for the same few points
        key = z.tobytes()
        if key not in seen:
            seen[key] = model.expand(at(z)[None], rows, penalty)
        return seen[key]

    # A step may leave what can be computed: an infinite value there makes the method turn back,
    # and it refuses derivatives that are not finite.
    def value(z: FloatArray) -> float:
        found = float(expanded(z).value[0]) / scale
        return found if math.isfinite(found) else math.inf

    def gradient(z: FloatArray) -> FloatArray:
        return _finite(basis.T @ expanded(z).gradient[0][free]) / scale

    def hessian(z: FloatArray) -> FloatArray:
        exact = expanded(z).hessian[0][np.ix_(free, free)]
        return _finite(basis.T @ exact @ basis) / scale

    with np.errstate(all="ignore"):
        end = minimize(
            value,
            np.zeros(int(free.sum())),
            jac=gradient,
            hess=hessian,
            method="trust-exact",
            options={"gtol": 1e-9, "maxiter": 30, "initial_trust_radius": 1e-3},
        )
    return at(end.x), float(expanded(end.x).value[0])


def _finite(values: FloatArray) -> FloatArray:
    return np.where(np.isfinite(values), values, 0.0)


def _shake(
    model: RowModel, best: FloatArray, rows: Rows, target: Penalty, box: Box
) -> NewtonResult:
    """Refit from the optima of randomly re-weighted rows."""
    weights = rows.weight * np.random.default_rng(0).exponential(size=(N_SHAKES, model.n_rows))
    starts = np.tile(best, (N_SHAKES, 1))
    shaken = minimise(
        model, starts, rows.reweighted(weights), target, box, max_iterations=25, tolerance=1e-6
    )
    return minimise(model, shaken.eta, rows, target, box, max_iterations=60)


def _best(ends: list[NewtonResult]) -> FloatArray:
    tops = [(end.value.min(), i) for i, end in enumerate(ends)]
    end = ends[min(tops)[1]]
    return np.asarray(end.eta[np.argmin(end.value)])


def _spread(model: RowModel, result: NewtonResult, rows: Rows) -> float:
    """Return the typical absolute residual at the best point: the start of a continuation."""
    best = result.eta[np.argmin(result.value)]
    r = np.abs(model.residuals(best[None], rows)[0][rows.weight > 0])
    r = r[np.isfinite(r)]
    return max(2.0 * float(np.median(r)) if len(r) else 0.0, 1e-12)

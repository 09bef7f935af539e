"""Replicate fits in compiled code, one replicate at a time on all cores: needs the extra ``fast``.

The same iteration as `scalelab.fit.newton` for surfaces that are sums of exponentials, without the
steps back to a valley's floor: what does not converge here is handed back to NumPy.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scalelab.fit.newton import Box
from scalelab.fit.penalty import Penalty
from scalelab.fit.row_model import ExponentialSum, Rows

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

CHUNK = 64
"""Replicates handed to a thread at a time."""
SUMS_IN_ANY_ORDER = {"reassoc", "contract"}
"""What the compiler may do to arithmetic: sums in vector units differ by rounding alone."""


def refit_batch(
    model: ExponentialSum,
    best: FloatArray,
    rows: Rows,
    penalty: Penalty,
    box: Box,
    *,
    max_iterations: int,
    tolerance: float,
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Return (eta, value, converged) of replicates that start at ``best``.

    Parameters
    ----------
    model : ExponentialSum
        The law on its rows.
    best : ndarray of shape (p,)
        Where every replicate starts.
    rows : Rows
        Weights of shape (k, n); one target for all.
    penalty, box
        As for `scalelab.fit.newton.minimise`.
    max_iterations : int
        Replicates still moving after that many count as not converged.
    tolerance : float
        See `scalelab.fit.newton.TOLERANCE`.
    """
    k = len(rows.weight)
    eta = np.tile(best, (k, 1))
    value = np.empty(k)
    converged = np.zeros(k, dtype=np.bool_)
    offset = -1 if model.offset is None else model.offset
    # most features are zero: each term has its own scale and exponent
    term, coordinate = np.nonzero(model.features.any(axis=1))
    features = np.ascontiguousarray(model.features[term, :, coordinate])
    ends = np.searchsorted(term, np.arange(len(model.features)), side="right")
    thresholds = np.broadcast_to(penalty.threshold, rows.n).astype(np.float64)

    def run(start: int) -> None:
        part = slice(start, start + CHUNK)
        _newton(
            features, coordinate, ends, rows.compared, rows.weight[part], rows.is_log, offset,
            thresholds, penalty.overprediction, box.free, box.low, box.high,
            max_iterations, tolerance, eta[part], value[part], converged[part],
        )  # fmt: skip

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(run, range(0, k, CHUNK)))
    return eta, value, converged


@njit(cache=True, nogil=True, error_model="numpy", fastmath=SUMS_IN_ANY_ORDER)
def _expand(  # type: ignore[no-untyped-def]  # pragma: no cover
    f, coordinate, ends, compared, weight, is_log, offset, deltas, over, at, g, H, M,
    slopes, J, scratch,
):  # fmt: skip
    """Fill gradient, Hessian and majorant (lower triangles) at one point; return the value.

    Loops run over rows inside and over coordinates outside, which is what a processor's vector
    units want. The last three, shapes (len(f), n), (p, n) and (5, n), are only room to work in.
    """
    n = f.shape[1]
    n_active = len(f)
    p = len(at)
    total, part, first, bend, top = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    total[:] = 0.0 if offset < 0 else at[offset]
    start = 0
    for t in range(len(ends)):
        part[:] = 0.0
        for q in range(start, ends[t]):
            x = at[coordinate[q]]
            for i in range(n):
                part[i] += x * f[q, i]
        for i in range(n):
            part[i] = math.exp(part[i])
            total[i] += part[i]
        for q in range(start, ends[t]):
            for i in range(n):
                slopes[q, i] = part[i] * f[q, i]
        start = ends[t]
    value = 0.0
    for i in range(n):
        r = (math.log(total[i]) if is_log else total[i]) - compared[i]
        w = weight[i] * over if r > 0.0 else weight[i]
        inside = min(max(r, -deltas[i]), deltas[i])
        pull = w * inside
        value += pull * (r - 0.5 * inside)
        first[i] = pull
        bend[i] = w if inside == r else 0.0
        top[i] = w if inside == r else pull / r
    if is_log:
        for i in range(n):
            bend[i] -= first[i]
            total[i] = 1.0 / total[i]
        for q in range(n_active):
            for i in range(n):
                slopes[q, i] *= total[i]
    J[:] = 0.0
    if offset >= 0:
        for i in range(n):
            J[offset, i] = total[i] if is_log else 1.0
    for q in range(n_active):
        j = coordinate[q]
        for i in range(n):
            J[j, i] += slopes[q, i]
    for j in range(p):
        g[j] = _dot(first, J[j])
        for i in range(n):
            total[i] = bend[i] * J[j, i]
            part[i] = top[i] * J[j, i]
        for m in range(j + 1):
            H[j, m] = _dot(total, J[m])
            M[j, m] = _dot(part, J[m])
    start = 0
    for t in range(len(ends)):
        for q in range(start, ends[t]):
            for i in range(n):
                total[i] = first[i] * slopes[q, i]
            for s in range(start, q + 1):
                H[coordinate[q], coordinate[s]] += _dot(total, f[s])
        start = ends[t]
    return value


@njit(cache=True, nogil=True, error_model="numpy", fastmath=SUMS_IN_ANY_ORDER)
def _dot(x, y):  # type: ignore[no-untyped-def]  # pragma: no cover
    out = 0.0
    for i in range(len(x)):
        out += x[i] * y[i]
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _solve(A, g, held, ridge, L, d):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Solve A d = -g on the coordinates not held, by Cholesky; return whether A is positive."""
    p = len(g)
    for j in range(p):
        for m in range(j + 1):
            a = A[j, m]
            if held[j] or held[m]:
                a = 1.0 if j == m else 0.0
            elif j == m:
                a += ridge
            for q in range(m):
                a -= L[j, q] * L[m, q]
            if j == m:
                if not a > 1e-13 * abs(A[j, j]) and not held[j]:
                    return False
                L[j, j] = math.sqrt(a)
            else:
                L[j, m] = a / L[m, m]
    for j in range(p):
        x = 0.0 if held[j] else -g[j]
        for m in range(j):
            x -= L[j, m] * d[m]
        d[j] = x / L[j, j]
    for j in range(p - 1, -1, -1):
        x = d[j]
        for m in range(j + 1, p):
            x -= L[m, j] * d[m]
        d[j] = x / L[j, j]
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def _newton(  # type: ignore[no-untyped-def]  # pragma: no cover
    features, coordinate, ends, compared, weights, is_log, offset, deltas, over, free, low, high,
    max_iterations, tolerance, eta, values, converged,
):  # fmt: skip
    """Minimise for each row of ``weights``, writing into the last three arguments."""
    k, n = weights.shape
    p = len(free)
    g, g_new, d, trial = np.empty(p), np.empty(p), np.empty(p), np.empty(p)
    H, H_new, M, M_new = np.empty((p, p)), np.empty((p, p)), np.empty((p, p)), np.empty((p, p))
    A, L = np.empty((p, p)), np.zeros((p, p))
    held = np.empty(p, dtype=np.bool_)
    for b in range(k):
        at = eta[b]
        # a bootstrap leaves out a third of the rows
        drawn = np.flatnonzero(weights[b])
        f, w = features[:, drawn], weights[b][drawn]
        observed, delta = compared[drawn], deltas[drawn]
        m = len(drawn)
        slopes, J, scratch = np.empty((len(f), m)), np.empty((p, m)), np.empty((5, m))
        value = _expand(
            f, coordinate, ends, observed, w, is_log, offset, delta, over, at, g, H, M,
            slopes, J, scratch,
        )  # fmt: skip
        damping = 1e-3
        for _ in range(max_iterations):
            size = 0.0
            for j in range(p):
                held[j] = (
                    (not free[j])
                    or (at[j] <= low[j] and g[j] > 0)
                    or (at[j] >= high[j] and g[j] < 0)
                )
                if not held[j]:
                    size = max(size, M[j, j])
            ridge = 1e-15 * size + 1e-300
            A[:] = H + damping * M
            if not _solve(A, g, held, ridge, L, d):
                A[:] = M * (1.0 + damping)
                if not _solve(A, g, held, 1e3 * ridge, L, d):
                    break
            gain = 0.0
            for j in range(p):
                if not held[j]:
                    gain -= 0.5 * g[j] * d[j]
                trial[j] = min(max(at[j] + d[j], low[j]), high[j])
            small = gain <= tolerance * value + 1e-28 * n
            new = _expand(
                f, coordinate, ends, observed, w, is_log, offset, delta, over, trial,
                g_new, H_new, M_new, slopes, J, scratch,
            )  # fmt: skip
            if new <= value:
                value = new
                at[:] = trial
                g, g_new = g_new, g
                H, H_new = H_new, H
                M, M_new = M_new, M
                damping *= 0.1
                if damping < 1e-7:
                    damping = 0.0
            else:
                damping = max(damping * 10.0, 1e-3)
            if small:
                converged[b] = True
                break
            if damping > 1e8:
                break
        values[b] = value

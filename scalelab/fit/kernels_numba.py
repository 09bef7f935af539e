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
from scalelab.fit.surfaces import ExponentialSum, Rows

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

CHUNK = 64
"""Replicates handed to a thread at a time."""


def refit_batch(
    surface: ExponentialSum,
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
    surface : ExponentialSum
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
    offset = -1 if surface.offset is None else surface.offset
    features = np.ascontiguousarray(surface.features.transpose(1, 0, 2))
    # most features are zero: each term has its own scale and exponent
    is_active = features.any(axis=0)
    counts = is_active.sum(axis=1)
    active = np.argsort(~is_active, axis=1, kind="stable")
    thresholds = np.broadcast_to(penalty.threshold, rows.n).astype(np.float64)

    def run(start: int) -> None:
        part = slice(start, start + CHUNK)
        _newton(
            features, active, counts, rows.compared, rows.weight[part], rows.is_log, offset,
            thresholds, penalty.overprediction, box.free, box.low, box.high,
            max_iterations, tolerance, eta[part], value[part], converged[part],
        )  # fmt: skip

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(run, range(0, k, CHUNK)))
    return eta, value, converged


@njit(cache=True, nogil=True, error_model="numpy")
def _expand(  # type: ignore[no-untyped-def]  # pragma: no cover
    features, active, counts, compared, weight, is_log, offset, deltas, over, at, g, H, M
):  # fmt: skip
    """Fill gradient, Hessian and majorant (lower triangles) at one point; return the value."""
    n, n_terms, p = features.shape
    g[:] = 0.0
    H[:] = 0.0
    M[:] = 0.0
    J = np.zeros(p)
    part = np.empty(n_terms)
    value = 0.0
    for i in range(n):
        w = weight[i]
        if w == 0.0:
            continue
        total = 0.0 if offset < 0 else at[offset]
        for t in range(n_terms):
            z = 0.0
            for a in range(counts[t]):
                j = active[t, a]
                z += features[i, t, j] * at[j]
            part[t] = math.exp(z)
            total += part[t]
        inverse = 1.0 / total if is_log else 1.0
        r = (math.log(total) if is_log else total) - compared[i]
        if r > 0.0:
            w *= over
        inside = min(max(r, -deltas[i]), deltas[i])
        first = w * inside
        value += first * (r - 0.5 * inside)
        bend = w if inside == r else 0.0
        top = w if inside == r else first / r
        if is_log:
            bend -= first
        for j in range(p):
            J[j] = 0.0
        if offset >= 0:
            J[offset] = inverse
        for t in range(n_terms):
            share = part[t] * inverse
            for a in range(counts[t]):
                j = active[t, a]
                f = share * features[i, t, j]
                J[j] += f
                scaled = first * f
                for b in range(a + 1):
                    m = active[t, b]
                    H[j, m] += scaled * features[i, t, m]
        for j in range(p):
            g[j] += first * J[j]
            for m in range(j + 1):
                both = J[j] * J[m]
                H[j, m] += bend * both
                M[j, m] += top * both
    return value


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
    features, active, counts, compared, weights, is_log, offset, deltas, over, free, low, high,
    max_iterations, tolerance, eta, values, converged,
):  # fmt: skip
    """Minimise for each row of ``weights``, writing into the last three arguments."""
    k = len(weights)
    n, _, p = features.shape
    g, g_new, d, trial = np.empty(p), np.empty(p), np.empty(p), np.empty(p)
    H, H_new, M, M_new = np.empty((p, p)), np.empty((p, p)), np.empty((p, p)), np.empty((p, p))
    A, L = np.empty((p, p)), np.zeros((p, p))
    held = np.empty(p, dtype=np.bool_)
    for b in range(k):
        at = eta[b]
        value = _expand(
            features, active, counts, compared, weights[b], is_log, offset, deltas, over, at,
            g, H, M,
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
                features, active, counts, compared, weights[b], is_log, offset, deltas, over, trial,
                g_new, H_new, M_new,
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

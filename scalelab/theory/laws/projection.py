"""Variable projection: the best linear coefficients for given exponents, many at once.

Forms such as ``E + A N^-alpha + B D^-beta`` are linear in ``E, A, B`` once the exponents are
given, so a grid over the exponents alone covers the whole space (Golub and Pereyra 1973; for
scaling laws Czech 2026, arXiv:2603.22339). Coefficients are kept positive by trying every subset.
"""

from __future__ import annotations

from itertools import combinations, product

import numpy as np

from scalelab.arrays import FloatArray

EXPONENTS = np.geomspace(0.04, 1.6, 12)
"""Grid of exponents that covers every published fit of losses."""

VANISHED = 1e-4
"""Share of the target that a coefficient forced to 0 gets instead, so that its logarithm exists."""


def exponent_grid(count: int, exponents: FloatArray = EXPONENTS) -> FloatArray:
    """Return all combinations of ``count`` exponents, shape (s, count)."""
    return np.array(list(product(exponents, repeat=count)))


def project(basis: FloatArray, target: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return positive coefficients that fit the target best, relative to its size.

    Parameters
    ----------
    basis : ndarray of shape (s, q, n)
        For each of s grid points, q basis functions at n rows; none is zero everywhere.
    target : ndarray of shape (n,)
        Positive.

    Returns
    -------
    coefficients : ndarray of shape (s, q)
        All positive: a coefficient whose best value is 0 is set to a small share of the target.
    misfit : ndarray of shape (s,)
        Sum of squared relative residuals.
    """
    s, q, _ = basis.shape
    scaled = basis / target
    norm = np.sqrt(np.einsum("sqn,sqn->sq", scaled, scaled))
    unit = scaled / norm[..., None]
    gram = unit @ unit.transpose(0, 2, 1)
    onto = unit.sum(axis=2)
    best = np.zeros((s, q))
    misfit = np.full(s, np.inf)
    for size in range(1, q + 1):
        for chosen in combinations(range(q), size):
            cols = list(chosen)
            sub, right = gram[:, cols][:, :, cols], onto[:, cols][..., None]
            try:
                part = np.linalg.solve(sub + 1e-13 * np.eye(size), right)[..., 0]
            except np.linalg.LinAlgError:  # functions that are equal on these rows
                part = np.linalg.solve(sub + 1e-9 * np.eye(size), right)[..., 0]
            cost = len(target) - np.einsum("sq,sq->s", part, onto[:, cols])
            better = (part > 0).all(axis=1) & (cost < misfit)
            best[better] = 0.0
            best[np.ix_(better, cols)] = part[better]
            misfit[better] = cost[better]
    coefficients = best / norm
    floor = VANISHED / np.abs(scaled).mean(axis=2)
    return np.where(coefficients > 0, coefficients, floor), misfit


def ranked(theta: FloatArray, misfit: FloatArray) -> FloatArray:
    """Return starting points sorted by misfit, best first, without those that are not finite."""
    order = np.argsort(misfit, kind="stable")
    order = order[np.isfinite(misfit[order]) & np.isfinite(theta[order]).all(axis=1)]
    return np.asarray(theta[order])

"""Rows in which misfit and noise are diagonal, and the evidence of one linearised form on them.

For one correlation length, an eigendecomposition of the kernel makes every misfit and every noise a
diagonal matrix; the form's linear part is added by Woodbury's identity. So the evidence of a grid
of misfits and noises costs one decomposition of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from scalelab.arrays import FloatArray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Spectrum:
    """The decomposition of the kernel of m rows, relative to their noise.

    Attributes
    ----------
    turn : ndarray of shape (m, m)
        Maps columns of the rows: ``turn.T @ K @ turn`` is diagonal, the noise becomes the identity.
    values : ndarray of shape (m,)
        That diagonal, for a misfit of 1.
    log_scale : float
        Log determinant of the noise's covariance, for a noise of 1.
    """

    turn: FloatArray
    values: FloatArray
    log_scale: float

    def whitening(self, misfit: float, noise: float) -> FloatArray:
        """Return a matrix (m, m) that maps rows of this misfit and noise to independent ones."""
        return self.turn.T / np.sqrt(misfit**2 * self.values + noise**2)[:, None]


def spectrum_of(kernel: FloatArray, noise: FloatArray) -> Spectrum:
    """Return the spectrum of a kernel, shape (m, m), and independent noise.

    ``noise`` holds the standard deviations of the rows, shape (m,).
    """
    values, vectors = np.linalg.eigh(kernel / np.outer(noise, noise))
    return Spectrum(
        turn=vectors / noise[:, None],
        values=np.maximum(values, 0.0),
        log_scale=2 * float(np.log(noise).sum()),
    )


def spectra_of(kernels: Iterable[FloatArray], covariance: FloatArray) -> Iterator[Spectrum]:
    """Yield the spectra of kernels, shape (m, m), and noise of this covariance, shape (m, m)."""
    root = cholesky(covariance, lower=True, check_finite=False)
    inverse = solve_triangular(root, np.eye(len(root)), lower=True, check_finite=False)
    log_scale = 2 * float(np.log(np.diag(root)).sum())
    for kernel in kernels:
        values, vectors = np.linalg.eigh(inverse @ kernel @ inverse.T)
        yield Spectrum(
            turn=inverse.T @ vectors, values=np.maximum(values, 0.0), log_scale=log_scale
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Grid:
    """Misfits and noises of rows, the same for every form.

    Attributes
    ----------
    spectrum : Spectrum
    inverse : ndarray of shape (k, m)
        Inverse variances of the m turned rows for k misfits and noises.
    log_det : ndarray of shape (k,)
        Log determinants of the covariances.
    """

    spectrum: Spectrum
    inverse: FloatArray
    log_det: FloatArray

    @classmethod
    def of(cls, spectrum: Spectrum, pairs: Sequence[tuple[float, float]]) -> Grid:
        """Return the grid of these misfits and noises."""
        misfit, noise = np.array(pairs).T
        inverse = 1.0 / ((misfit**2)[:, None] * spectrum.values + (noise**2)[:, None])
        log_det = spectrum.log_scale - np.log(inverse).sum(axis=1)
        return cls(spectrum=spectrum, inverse=inverse, log_det=log_det)


def log_evidence(y: FloatArray, slope: FloatArray, grid: Grid) -> FloatArray:
    """Return the log density of turned losses for k misfits and noises, up to a constant, (k,).

    Parameters
    ----------
    y : ndarray of shape (m,)
        Log losses relative to the linearised form, turned.
    slope : ndarray of shape (m, p)
        Derivative of the form by its parameters, turned; these are standard normal.
    grid : Grid
    """
    p = slope.shape[1]
    joint = np.column_stack([slope, y])
    upper = np.triu_indices(p + 1)
    # All products of two columns at once: one matrix product instead of k small ones.
    products = grid.inverse @ (joint[:, upper[0]] * joint[:, upper[1]])
    inner = np.empty((len(products), p + 1, p + 1))
    inner[:, upper[0], upper[1]] = products
    inner[:, upper[1], upper[0]] = products
    along, square = inner[:, :p, p], inner[:, p, p]
    inner = inner[:, :p, :p] + np.eye(p)
    square = square - (along * np.linalg.solve(inner, along[:, :, None])[:, :, 0]).sum(axis=1)
    return np.asarray(-0.5 * (square + np.linalg.slogdet(inner)[1] + grid.log_det))


def distances(features: FloatArray) -> FloatArray:
    """Return the distances between all points, shape (n, n)."""
    gaps = features[:, None] - features[None]
    return np.asarray(np.sqrt((gaps**2).sum(axis=2)))


def matern(distance: FloatArray, length: float) -> FloatArray:
    """Return the Matern kernel of smoothness 3/2."""
    scaled = math.sqrt(3.0) / length * distance
    out: FloatArray = np.exp(-scaled)
    scaled += 1.0
    out *= scaled
    return out

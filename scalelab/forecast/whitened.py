"""The components of the average: forms with choices of misfit, noise, length, growth and share."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

from scalelab.arrays import FloatArray
from scalelab.forecast.modes import FormPosterior
from scalelab.forecast.points import NOISE_GROWTH, Points
from scalelab.forecast.spectrum import Spectrum, distances, matern, spectra_of, spectrum_of

MISFITS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
NOISES = (0.001, 0.0018, 0.0032, 0.0056, 0.01, 0.02, 0.04)
LENGTHS = (1.0, 2.0, 4.0, 8.0)
GROWTHS = (0.0, 0.15, 0.3)
"""Grids of tau, sigma (both of the log loss), length (natural logs) and growth exponent g."""
ALL = tuple(product(LENGTHS, GROWTHS))
SHARES = (0.0, 1.0)
"""Grid of rho: variance of the noise that rows of one cluster share, relative to their own."""
PAIRS = tuple(product(MISFITS, NOISES))
CENTRES, SPREADS = (0.001, 0.003, 3.0), (1.6, 1.2, 0.6)
"""Prior medians of tau, sigma and length, and the spreads of their logarithms. Those of tau were
chosen on simulated tables (results/tables/backtest.md): a small median keeps intervals narrow where
a form is true, a wide spread admits a large misfit where the rows show one."""
DEGREES = 4.0
"""Degrees of freedom of the Student-t noise."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Whitened(Spectrum):
    """The spectrum of the rows for a length, a growth g and a share rho of the noise."""

    length: float
    growth: float
    share: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Component:
    """One form with one choice of misfit, noise, length and growth.

    Attributes
    ----------
    form : FormPosterior
        The form at the mode of its parameters.
    misfit, noise : float
        tau and sigma.
    system : Whitened
    weight : float
    y, slope : ndarray of shape (m,), (m, p)
        Whitened losses relative to the linearised form, and its whitened derivative.
    """

    form: FormPosterior
    misfit: float
    noise: float
    system: Whitened
    weight: float
    y: FloatArray
    slope: FloatArray

    def solve(self, across: FloatArray, *, is_joint: bool = True) -> tuple[FloatArray, FloatArray]:
        """Return (n,) and (n, n): prediction and reduction of the covariance at n points.

        Parameters
        ----------
        across : ndarray of shape (m, n)
            Prior covariance of the rows with the points.
        is_joint : bool
            If not, the reduction is that of the variances alone, shape (n,).
        """
        diagonal, root = self._roots()
        turned = self.system.turn.T @ across
        scaled = turned / diagonal[:, None]
        inner = solve_triangular(root, self.slope.T @ scaled, lower=True)
        own = solve_triangular(root, self.slope.T @ (self.y / diagonal), lower=True)
        shift = scaled.T @ self.y - inner.T @ own
        if not is_joint:
            return shift, (turned * scaled).sum(axis=0) - (inner**2).sum(axis=0)
        return shift, turned.T @ scaled - inner.T @ inner

    def inverse_of_rows(self, y: FloatArray) -> FloatArray:
        """Return the inverse covariance of the whitened rows times y, shape (m, k)."""
        diagonal, root = self._roots()
        scaled = self.slope / diagonal[:, None]
        along = cho_solve((root, True), scaled.T @ y)
        return np.asarray(y / diagonal[:, None] - scaled @ along)

    def _roots(self) -> tuple[FloatArray, FloatArray]:
        """Return the diagonal of misfit and noise, and the root of the form's part (Woodbury)."""
        diagonal = self.misfit**2 * self.system.values + self.noise**2
        inner = np.eye(self.slope.shape[1]) + self.slope.T @ (self.slope / diagonal[:, None])
        return diagonal, cholesky(inner, lower=True)


def systems(
    points: Points,
    widened: FloatArray,
    clusters: NDArray[np.intp],
    asked: Collection[tuple[float, float]] = ALL,
) -> Iterator[Whitened]:
    """Yield the whitened rows for each length, growth and share.

    Parameters
    ----------
    points : Points
    widened : ndarray of shape (m,)
        Factor of each row's own noise variance.
    clusters : ndarray of int, shape (m,)
        Rows with the same number share a part of their noise.
    asked : collection of (float, float)
        Pairs of length and growth; the default is all.
    """
    gaps = distances(points.features)
    kernels = {length: matern(gaps, length) for length in dict(asked)}
    shared = clusters[:, None] == clusters
    shares = SHARES if shared.sum() > len(points) else SHARES[:1]
    for growth, share in product(GROWTHS, shares):
        lengths = [length for length in kernels if (length, growth) in asked]
        if not lengths:
            continue
        growths = noise_growth(points, growth)
        own = growths**2 * widened
        if share:
            noise = share * np.outer(growths, growths) * shared + np.diag(own)
            spectra = spectra_of((kernels[length] for length in lengths), noise)
        else:
            spectra = (spectrum_of(kernels[length], np.sqrt(own)) for length in lengths)
        for length, found in zip(lengths, spectra, strict=True):
            yield Whitened(
                turn=found.turn,
                values=found.values,
                log_scale=found.log_scale,
                length=length,
                growth=growth,
                share=share,
            )


def log_priors(length: float) -> FloatArray:
    """Return the log prior density of each of `PAIRS` with a length, up to a constant."""
    values = np.column_stack([PAIRS, np.full(len(PAIRS), length)])
    return np.asarray(-0.5 * ((np.log(values / CENTRES) / SPREADS) ** 2).sum(axis=1))


def student(residual: FloatArray, points: Points) -> FloatArray:
    """Return the factor of each row's noise variance under Student-t noise, shape (m,)."""
    relative = residual / points.noise_growth
    scale = max(1.4826 * float(np.median(np.abs(relative))), 1e-6)
    return np.asarray(np.maximum((DEGREES + (relative / scale) ** 2) / (DEGREES + 1), 1.0))


def noise_growth(points: Points, growth: float) -> FloatArray:
    """Return the noise relative to that at the reference compute, for an exponent g."""
    return np.asarray(points.noise_growth ** (growth / NOISE_GROWTH))

"""The posterior mode of one form, with the misfit, noise and length that explain the rows best.

The mode is found by Levenberg-Marquardt from several starts; the hyperparameters maximise the
evidence of the form linearised there, under weak priors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from scalelab.arrays import FloatArray
from scalelab.forecast.points import Points
from scalelab.forecast.priors import Prior
from scalelab.forecast.spectrum import (
    RowCovariances,
    Spectrum,
    covariances_of,
    distances,
    log_evidence,
)
from scalelab.theory.laws.base import Law

MISFIT_GRID = (0.001, 0.003, 0.01, 0.03, 0.1)
NOISE_GRID = (0.0005, 0.001, 0.002, 0.005, 0.01)
LENGTH_GRID = (1.0, 2.0, 4.0, 8.0)
"""Grids of tau, sigma (in log loss) and of the kernel's length (in natural logs of N and D)."""
MISFIT, NOISE, LENGTH = 0.01, 0.002, 4.0
SPREADS = (1.0, 1.0, 0.5)
"""Prior medians of tau, sigma and the length, and the spreads of their logarithms."""
N_STARTS = 2
MAX_STEPS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    """Misfit of a form (tau), noise of a run (sigma), and correlation length of the misfit."""

    misfit: float = MISFIT
    noise: float = NOISE
    length: float = LENGTH

    @property
    def log_prior(self) -> float:
        """Log density of these hyperparameters, up to a constant."""
        centres = zip(
            (self.misfit, self.noise, self.length), (MISFIT, NOISE, LENGTH), SPREADS, strict=True
        )
        return -0.5 * sum((math.log(value / m) / s) ** 2 for value, m, s in centres)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FormPosterior:
    """The posterior of one form.

    Attributes
    ----------
    prior : Prior
    z : ndarray of shape (p,)
        Posterior mode, standardised.
    hyperparameters : Hyperparameters
    log_evidence : float
    weight : float
        Weight in the average.
    """

    prior: Prior
    z: FloatArray
    hyperparameters: Hyperparameters
    log_evidence: float
    weight: float = 1.0

    @property
    def theta(self) -> FloatArray:
        """Posterior mode in the law's coordinates, shape (p,)."""
        return self.prior.theta(self.z)

    @property
    def law(self) -> Law:
        """The law at the posterior mode, in units of the median loss of the runs."""
        return self.prior.law.from_coordinates(self.theta)


def row_covariances(here: Points, widened: FloatArray | None = None) -> RowCovariances:
    """Return the covariances of rows, the same for every form.

    ``widened`` is a factor of each row's noise variance, shape (m,); None for 1.
    """
    noise = here.noise_growth if widened is None else here.noise_growth * np.sqrt(widened)
    return covariances_of(distances(here.features), noise, LENGTH_GRID)


def random_starts(prior: Prior, rng: np.random.Generator) -> list[FloatArray]:
    """Return standardised coordinates to search a mode from: the prior's centre and draws."""
    p = len(prior.mean)
    return [np.zeros(p), *rng.standard_normal((N_STARTS, p))]


def fit_form(
    prior: Prior,
    here: Points,
    y: FloatArray,
    starts: Sequence[FloatArray],
    hyperparameters: Hyperparameters,
    covariances: RowCovariances,
) -> FormPosterior:
    """Return the posterior of one form, by alternating between mode and hyperparameters.

    Parameters
    ----------
    prior : Prior
    here : Points
        The rows, m of them.
    y : ndarray of shape (m,)
        Their log losses, relative to the median.
    starts : sequence of ndarray of shape (p,)
        Standardised coordinates from which the mode is searched.
    hyperparameters : Hyperparameters
        Those of the first search.
    covariances : RowCovariances
        From `row_covariances`.
    """
    for _ in range(2):
        root = cholesky(
            hyperparameters.misfit**2 * covariances.kernels[hyperparameters.length]
            + np.diag((hyperparameters.noise * covariances.noise) ** 2),
            lower=True,
            check_finite=False,
        )
        ends = [_mode(prior, here.columns, y, root, start) for start in starts]
        z = min(ends, key=lambda end: end[1])[0]
        starts = [z]
        value, slope = prior.log_loss(z, here.columns)
        evidence, best = _best_hyperparameters(y - value + slope @ z, slope, covariances.spectra)
        if best == hyperparameters:
            break
        hyperparameters = best
    return FormPosterior(prior=prior, z=z, hyperparameters=hyperparameters, log_evidence=evidence)


def _mode(
    prior: Prior,
    columns: Mapping[str, FloatArray],
    y: FloatArray,
    root: FloatArray,
    z: FloatArray,
) -> tuple[FloatArray, float]:
    """Return the posterior mode near z and its misfit, by Levenberg-Marquardt."""

    def at(z: FloatArray) -> tuple[FloatArray, FloatArray, float]:
        value, slope = prior.log_loss(z, columns)
        joint = np.column_stack([y - value, slope])
        white = solve_triangular(root, joint, lower=True, check_finite=False)
        return white[:, 0], white[:, 1:], 0.5 * float(white[:, 0] @ white[:, 0] + z @ z)

    residual, slope, cost = at(z)
    damping = 1e-3
    for _ in range(MAX_STEPS):
        hessian = slope.T @ slope + np.eye(len(z))
        diagonal = np.diag(np.diag(hessian))
        gradient = slope.T @ residual - z
        gain = 0.0
        while damping < 1e8:
            step = np.linalg.solve(hessian + damping * diagonal, gradient)
            tried = at(z + step)
            if tried[2] < cost:
                gain, z = cost - tried[2], z + step
                residual, slope, cost = tried
                damping = max(damping / 5.0, 1e-9)
                break
            damping *= 4.0
        if gain < 1e-6:
            break
    return z, cost


def _best_hyperparameters(
    y: FloatArray, slope: FloatArray, spectra: Mapping[float, Spectrum]
) -> tuple[float, Hyperparameters]:
    """Return the largest log evidence of the linearised form and its hyperparameters."""
    best = (-math.inf, Hyperparameters())
    pairs = tuple(product(MISFIT_GRID, NOISE_GRID))
    for length, spectrum in spectra.items():
        turned = spectrum.turn.T @ slope
        evidences = log_evidence(spectrum.turn.T @ y, turned, spectrum, *np.array(pairs).T)
        for (misfit, noise), evidence in zip(pairs, evidences, strict=True):
            hyperparameters = Hyperparameters(misfit=misfit, noise=noise, length=length)
            if evidence + hyperparameters.log_prior > best[0]:
                best = (evidence + hyperparameters.log_prior, hyperparameters)
    return best

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

from scalelab.arrays import FloatArray
from scalelab.forecast.points import Points
from scalelab.forecast.priors import Prior
from scalelab.forecast.spectrum import Grid, distances, log_evidence, matern, spectrum_of
from scalelab.theory.laws.base import Law

MISFIT_GRID = (0.001, 0.003, 0.01, 0.03, 0.1)
NOISE_GRID = (0.0005, 0.001, 0.002, 0.005, 0.01)
LENGTH_GRID = (1.0, 2.0, 4.0, 8.0)
"""Grids of tau, sigma (in log loss) and of the kernel's length (in natural logs of N and D)."""
PAIRS = tuple(product(MISFIT_GRID, NOISE_GRID))
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


CHOICES = tuple(
    Hyperparameters(misfit=misfit, noise=noise, length=length)
    for length in LENGTH_GRID
    for misfit, noise in PAIRS
)
LOG_PRIORS = np.array([each.log_prior for each in CHOICES])
"""The grid of hyperparameters, and the logs of their prior densities."""


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


def row_grids(here: Points, widened: FloatArray | None = None) -> dict[float, Grid]:
    """Return the rows for each length of `LENGTH_GRID`, the same for every form.

    ``widened`` is a factor of each row's noise variance, shape (m,); None for 1.
    """
    noise = here.noise_growth if widened is None else here.noise_growth * np.sqrt(widened)
    gaps = distances(here.features)
    spectra = {length: spectrum_of(matern(gaps, length), noise) for length in LENGTH_GRID}
    return {length: Grid.of(spectrum, PAIRS) for length, spectrum in spectra.items()}


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
    grids: Mapping[float, Grid],
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
    grids : Mapping[float, Grid]
        From `row_grids`.
    """
    at = np.stack(starts)
    for _ in range(2):
        white = grids[hyperparameters.length].spectrum.whitening(
            hyperparameters.misfit, hyperparameters.noise
        )
        z = _mode(prior, here.columns, y, white, at)
        at = z[None]
        value, slope = prior.log_loss(z, here.columns)
        evidence, best = _best_hyperparameters(y - value + slope @ z, slope, grids)
        if best == hyperparameters:
            break
        hyperparameters = best
    return FormPosterior(prior=prior, z=z, hyperparameters=hyperparameters, log_evidence=evidence)


def _mode(
    prior: Prior,
    columns: Mapping[str, FloatArray],
    y: FloatArray,
    white: FloatArray,
    z: FloatArray,
) -> FloatArray:
    """Return the best posterior mode near several points, by Levenberg-Marquardt.

    The points move together, each with its own damping: one evaluation of the law serves them all.

    Parameters
    ----------
    prior : Prior
    columns : Mapping[str, ndarray of shape (m,)]
    y : ndarray of shape (m,)
    white : ndarray of shape (m, m)
        Makes residuals independent and of variance 1.
    z : ndarray of shape (s, p)
    """

    def at(z: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        value, slope = prior.log_losses(z, columns)
        s, p, m = slope.shape
        joint = np.concatenate([(y - value)[:, None], slope], axis=1).reshape(-1, m)
        turned = (joint @ white.T).reshape(s, 1 + p, m)
        residual = turned[:, 0]
        squares = np.einsum("sm,sm->s", residual, residual) + np.einsum("sp,sp->s", z, z)
        return residual, turned[:, 1:], 0.5 * squares

    def system(z: FloatArray, residual: FloatArray, slope: FloatArray) -> tuple[FloatArray, ...]:
        hessian = slope @ slope.transpose(0, 2, 1) + np.eye(z.shape[1])
        return hessian, (slope @ residual[:, :, None])[:, :, 0] - z

    residual, slope, cost = at(z)
    hessian, gradient = system(z, residual, slope)
    damping, steps = np.full(len(z), 1e-3), np.zeros(len(z), dtype=int)
    ends, costs, index = z.copy(), cost.copy(), np.arange(len(z))
    while len(index):
        diagonal = np.einsum("spp->sp", hessian)
        damped = hessian + (damping[:, None] * diagonal)[:, :, None] * np.eye(z.shape[1])
        trial = z + np.linalg.solve(damped, gradient[:, :, None])[:, :, 0]
        residual, slope, tried = at(trial)
        better = tried < cost
        gain = np.where(better, cost - tried, 0.0)
        damping = np.where(better, np.maximum(damping / 5.0, 1e-9), damping * 4.0)
        steps += better
        if better.any():
            z = np.where(better[:, None], trial, z)
            cost = np.where(better, tried, cost)
            new_hessian, new_gradient = system(trial, residual, slope)
            hessian = np.where(better[:, None, None], new_hessian, hessian)
            gradient = np.where(better[:, None], new_gradient, gradient)
        ends[index], costs[index] = z, cost
        going = np.where(better, (gain >= 1e-6) & (steps < MAX_STEPS), damping < 1e8)
        if not going.all():
            index, z, cost = index[going], z[going], cost[going]
            hessian, gradient = hessian[going], gradient[going]
            damping, steps = damping[going], steps[going]
    return np.asarray(ends[int(np.argmin(costs))])


def _best_hyperparameters(
    y: FloatArray, slope: FloatArray, grids: Mapping[float, Grid]
) -> tuple[float, Hyperparameters]:
    """Return the largest log evidence of the linearised form and its hyperparameters."""
    turns = (grid.spectrum.turn.T for grid in grids.values())
    evidences = np.concatenate(
        [
            log_evidence(turn @ y, turn @ slope, grid)
            for turn, grid in zip(turns, grids.values(), strict=True)
        ]
    )
    totals = np.where(np.isnan(evidences), -np.inf, evidences + LOG_PRIORS)
    best = int(np.argmax(totals))
    return float(totals[best]), CHOICES[best]

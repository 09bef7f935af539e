r"""Posterior of the losses of all runs given those of a few, averaged over several forms.

The model of the log loss of a run x is

.. math:: \log L(x) = \log f_k(\theta, x) + \delta(x) + \varepsilon, \qquad
          \delta \sim GP(0, \tau^2 \kappa(x, x')), \qquad
          \varepsilon \sim N(0, \sigma^2 (C_{ref} / C)^{2 g})

for each form k. Its parameters have the priors of `scalelab.forecast.priors`. The misfit delta is
smooth over decades of N, D and repeats, so that runs near the target count for more. The noise is
larger for smaller runs. The posterior of the parameters is Gaussian, at the mode with the
Gauss-Newton (Laplace) covariance; tau, sigma and the length of kappa maximise the evidence under
weak priors. Forms are averaged by evidence. One Gaussian with the mean and covariance of the
mixture approximates it, so disagreement between forms adds to the variance.

References
----------
Kennedy and O'Hagan 2001, "Bayesian calibration of computer models" (the misfit delta).
MacKay 1992, "Bayesian interpolation" (evidence). Matern kernel: Rasmussen and Williams 2006, 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from scalelab.arrays import FloatArray
from scalelab.forecast.one_thread import on_one_thread
from scalelab.forecast.priors import Prior, priors_of
from scalelab.forecast.spectrum import (
    RowCovariances,
    Spectrum,
    covariances_of,
    distances,
    log_evidence,
    matern,
)
from scalelab.theory.accounting import train_flops_6nd
from scalelab.theory.laws.base import Law

Positions = NDArray[np.intp]

MISFIT_GRID = (0.001, 0.003, 0.01, 0.03, 0.1)
NOISE_GRID = (0.0005, 0.001, 0.002, 0.005, 0.01)
LENGTH_GRID = (1.0, 2.0, 4.0, 8.0)
"""Grids of tau, sigma (in log loss) and of the kernel's length (in natural logs of N and D)."""
MISFIT, NOISE, LENGTH = 0.01, 0.002, 4.0
SPREADS = (1.0, 1.0, 0.5)
"""Prior medians of tau, sigma and the length, and the spreads of their logarithms."""
NOISE_GROWTH = 0.15
"""Exponent g: the noise is 1.4 times larger for a tenth of the compute."""
N_STARTS = 2
MAX_STEPS = 60
NEGLIGIBLE_WEIGHT = 1e-3
"""Weight below which a form is left out of the average."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Points:
    """Finished runs, run pool and targets, as columns.

    Attributes
    ----------
    columns : Mapping[str, ndarray of shape (n,)]
        ``n_params``, ``n_tokens`` and, where data repeat, ``unique_tokens``.
    reference_flops : float
        C_ref, the compute at which the noise is sigma.
    """

    columns: Mapping[str, FloatArray]
    reference_flops: float

    def __len__(self) -> int:
        return len(self.columns["n_params"])

    def at(self, where: Any) -> Points:
        """Return the points at these positions."""
        return Points(
            columns={name: values[where] for name, values in self.columns.items()},
            reference_flops=self.reference_flops,
        )

    @property
    def features(self) -> FloatArray:
        """Coordinates of the misfit, shape (n, q): log N, log D and the log of the repeats."""
        N, D = self.columns["n_params"], self.columns["n_tokens"]
        axes = [np.log(N), np.log(D)]
        if "unique_tokens" in self.columns:
            axes.append(np.log(np.maximum(D / self.columns["unique_tokens"], 1.0)))
        return np.stack(axes, axis=1)

    @property
    def noise_growth(self) -> FloatArray:
        """Noise relative to that at the reference compute, shape (n,); at least 1."""
        flops = train_flops_6nd(self.columns["n_params"], self.columns["n_tokens"])
        return np.asarray(np.minimum(flops / self.reference_flops, 1.0) ** -NOISE_GROWTH)


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
    def law(self) -> Law:
        """The law at the posterior mode, in units of the median loss of the runs."""
        return self.prior.law.from_coordinates(self.prior.theta(self.z))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Posterior:
    """A Gaussian over the log losses of all points, averaged over the forms.

    Attributes
    ----------
    points : Points
    forms : tuple of FormPosterior
    mean : ndarray of shape (n,)
        Expected log loss.
    plus, minus : ndarray of shape (n, a), (n, b)
        Covariance = plus plus' - minus minus' + sum_k misfits[k] kappa(lengths[k]).
    misfits, lengths : tuple of float
        Of each form: variance of the misfit times the weight, and its correlation length.
    noise : ndarray of shape (n,)
        Noise variance of a run at each point.
    """

    points: Points
    forms: tuple[FormPosterior, ...]
    mean: FloatArray
    plus: FloatArray
    minus: FloatArray
    misfits: tuple[float, ...]
    lengths: tuple[float, ...]
    noise: FloatArray

    def covariance(self, j: int, features: FloatArray) -> FloatArray:
        """Return the covariance of point j with every point, shape (n,)."""
        out = self.plus @ self.plus[j] - self.minus @ self.minus[j]
        distance = np.sqrt(((features - features[j]) ** 2).sum(axis=1))
        for variance, length in zip(self.misfits, self.lengths, strict=True):
            out += variance * matern(distance, length)
        return np.asarray(out)

    def variance(self) -> FloatArray:
        """Return the variance of each point's noise-free log loss, shape (n,)."""
        parts = (self.plus**2).sum(axis=1) - (self.minus**2).sum(axis=1) + sum(self.misfits)
        return np.asarray(np.maximum(parts, 0.0))

    @property
    def best(self) -> FormPosterior:
        """The form of the largest weight."""
        return max(self.forms, key=lambda form: form.weight)


@on_one_thread
def fit_posterior(
    points: Points,
    observed: Positions,
    losses: FloatArray,
    *,
    rng: np.random.Generator,
    before: Sequence[FormPosterior] = (),
) -> Posterior:
    """Return the posterior over all points given the losses of some.

    Parameters
    ----------
    points : Points
    observed : ndarray of int, shape (m,)
        Positions of the finished runs; without any, the result is the prior.
    losses : ndarray of shape (m,)
        Their losses, positive.
    rng : numpy.random.Generator
        Source of additional random starts of each search for the mode.
    before : sequence of FormPosterior
        Posteriors of earlier rounds, as additional starts.
    """
    level = float(np.median(np.log(losses))) if len(losses) else 0.0
    y = np.log(losses) - level
    here = points.at(observed)
    earlier = {form.prior.law: form for form in before}
    priors = priors_of(points.columns)
    if len(y):
        covariances = row_covariances(here)
        found = [
            fit_form(prior, here, y, rng, earlier.get(prior.law), covariances) for prior in priors
        ]
    else:
        found = [_untouched(prior) for prior in priors]
    return _average(points, observed, y, level, found)


def _untouched(prior: Prior) -> FormPosterior:
    return FormPosterior(
        prior=prior,
        z=np.zeros(len(prior.mean)),
        hyperparameters=Hyperparameters(),
        log_evidence=0.0,
    )


def row_covariances(here: Points, widened: FloatArray | None = None) -> RowCovariances:
    """Return the covariances of rows, the same for every form.

    ``widened`` is a factor of each row's noise variance, shape (m,); None for 1.
    """
    noise = here.noise_growth if widened is None else here.noise_growth * np.sqrt(widened)
    return covariances_of(distances(here.features), noise, LENGTH_GRID)


def fit_form(
    prior: Prior,
    here: Points,
    y: FloatArray,
    rng: np.random.Generator,
    known: FormPosterior | None,
    covariances: RowCovariances,
) -> FormPosterior:
    """Return the posterior of one form, by alternating between mode and hyperparameters."""
    p = len(prior.mean)
    starts = [np.zeros(p), *rng.standard_normal((N_STARTS, p))]
    if known is not None:
        starts.append(np.linalg.solve(prior.mix, known.prior.theta(known.z) - prior.mean))
    hyperparameters = Hyperparameters() if known is None else known.hyperparameters
    for _ in range(2):
        root = cholesky(
            hyperparameters.misfit**2 * covariances.kernels[hyperparameters.length]
            + np.diag((hyperparameters.noise * covariances.noise) ** 2),
            lower=True,
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
        white = solve_triangular(root, np.column_stack([y - value, slope]), lower=True)
        return white[:, 0], white[:, 1:], 0.5 * float(white[:, 0] @ white[:, 0] + z @ z)

    residual, slope, cost = at(z)
    damping = 1e-3
    for _ in range(MAX_STEPS):
        hessian = slope.T @ slope + np.eye(len(z))
        gradient = slope.T @ residual - z
        gain = 0.0
        while damping < 1e8:
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), gradient)
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


def _average(
    points: Points,
    observed: Positions,
    y: FloatArray,
    level: float,
    found: Sequence[FormPosterior],
) -> Posterior:
    """Return one Gaussian of the mixture's mean and covariance; y is relative to ``level``."""
    logs = np.array([form.log_evidence for form in found])
    weights = np.exp(logs - logs.max())
    weights = np.where(weights < NEGLIGIBLE_WEIGHT * weights.sum(), 0.0, weights)
    weights /= weights.sum()
    kept = [
        FormPosterior(
            prior=form.prior,
            z=form.z,
            hyperparameters=form.hyperparameters,
            log_evidence=form.log_evidence,
            weight=float(weight),
        )
        for form, weight in zip(found, weights, strict=True)
        if weight > 0
    ]
    parts = [_conditioned(points, observed, y, form) for form in kept]
    means = np.stack([part[0] for part in parts], axis=1)
    share = np.array([form.weight for form in kept])
    mean = means @ share
    roots = np.sqrt(share)
    growth = points.noise_growth
    return Posterior(
        points=points,
        forms=tuple(kept),
        mean=level + mean,
        plus=np.hstack(
            [
                *(r * part[1] for r, part in zip(roots, parts, strict=True)),
                roots * (means - mean[:, None]),
            ]
        ),
        minus=np.hstack([r * part[2] for r, part in zip(roots, parts, strict=True)]),
        misfits=tuple(form.weight * form.hyperparameters.misfit**2 for form in kept),
        lengths=tuple(form.hyperparameters.length for form in kept),
        noise=sum(form.weight * form.hyperparameters.noise**2 for form in kept) * growth**2,
    )


def _conditioned(
    points: Points, observed: Positions, y: FloatArray, form: FormPosterior
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return mean (n,), root of the prior covariance (n, p) and of its reduction (n, m)."""
    value, slope = form.prior.log_loss(form.z, points.columns)
    if not len(observed):
        return value, slope, np.zeros((len(value), 0))
    hyperparameters, features = form.hyperparameters, points.features
    gaps = features[:, None] - features[observed]
    across = hyperparameters.misfit**2 * matern(
        np.sqrt((gaps**2).sum(axis=2)), hyperparameters.length
    )
    across += slope @ slope[observed].T
    total = across[observed] + np.diag((hyperparameters.noise * points.noise_growth[observed]) ** 2)
    root = cholesky(total, lower=True)
    taken = solve_triangular(root, across.T, lower=True).T
    centre = value - slope @ form.z
    mean = centre + taken @ solve_triangular(root, y - centre[observed], lower=True)
    return mean, slope, taken

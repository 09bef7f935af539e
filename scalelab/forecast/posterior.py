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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from scalelab.arrays import FloatArray
from scalelab.forecast.modes import (
    FormPosterior,
    Hyperparameters,
    fit_form,
    random_starts,
    row_grids,
)
from scalelab.forecast.one_thread import on_one_thread
from scalelab.forecast.points import Points
from scalelab.forecast.priors import Prior, priors_of
from scalelab.forecast.spectrum import matern

Positions = NDArray[np.intp]

NEGLIGIBLE_WEIGHT = 1e-3
"""Weight below which a form is left out of the average."""


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
        grids = row_grids(here)
        found = []
        for prior in priors:
            known = earlier.get(prior.law)
            starts, hyperparameters = random_starts(prior, rng), Hyperparameters()
            if known is not None:
                starts.append(prior.standardised(known.theta))
                hyperparameters = known.hyperparameters
            found.append(fit_form(prior, here, y, starts, hyperparameters, grids))
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

"""Draws of the law from few rows or few clusters: its posterior, with unknown noise.

With fewer than `ROWS_PER_PARAMETER` rows per parameter, refits of resampled rows see too little of
the noise: with as many rows as parameters, every refit passes through every row. This module
samples the posterior of the parameters instead. The noise is normal with an unknown standard
deviation, which is integrated out: the density of the parameters is RSS^(-(n-1)/2) times a weak
prior. For a linear law that is Student's t with n - p - 1 degrees of freedom, one less than usual,
because a flat prior on curved parameters covers too little (results/tables/few_rows.md). The draws
follow the curvature of the law.

Rows of one cluster share an error, with an unknown share of the variance that is sampled too.

The prior only bounds directions that the rows do not determine: exponents near `EXPONENT`, terms
and the irreducible loss near their least-squares values, all with wide spreads.

References
----------
Goodman and Weare 2010, Communications in Applied Mathematics and Computational Science 5 (the
sampler, which is invariant to linear changes of the parameters).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from scalelab.arrays import FloatArray
from scalelab.fit.newton import minimise
from scalelab.fit.noise import NOISE_LEVELS
from scalelab.fit.penalty import Penalty
from scalelab.fit.replicates import Optimum
from scalelab.fit.time_limit import check_time
from scalelab.theory.laws.base import Law

ROWS_PER_PARAMETER = 4
"""Rows per parameter below which the draws come from here."""
SPARE_ROWS = 2
"""Minimum number of rows beyond the parameters: fewer do not determine the noise."""
MOST_ROWS = 2000
"""Maximum number of rows of few clusters, for speed."""
WALKERS = 400
STEPS, EVERY = 100, 10
"""Steps before draws are kept, and again after that; steps between two draws of a walker."""
STRETCH = 2.0
"""Largest factor of a move of the sampler."""
SHAPES = ("alpha", "beta")
"""Exponents with a common prior."""
EXPONENT, EXPONENT_SPREAD = 0.35, 0.35
TERM_SPREAD = 2.0
"""Standard deviation of a logarithmic coordinate: of a term at the middle of the rows."""
OFFSET_SPREAD = 1.0
"""Standard deviation of the irreducible loss, as a share of the mean loss."""
OTHER_SPREAD = 1.0
SHARED_SPREAD = 2.0
"""Standard deviation of the logarithm of shared over own variance, around 0."""
TINY = 1e-9
"""Residuals below this share of the target are rounding, not noise."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FewRows:
    """Draws from few rows.

    Attributes
    ----------
    eta : ndarray of shape (k, p)
        Posterior draws in solver coordinates.
    noise : ndarray of shape (levels,)
        Quantiles `NOISE_LEVELS` of the noise of a new run, in the unit of the residuals.
    """

    eta: FloatArray
    noise: FloatArray


def draw_few(
    law: type[Law],
    optimum: Optimum,
    n: int,
    member: NDArray[np.intp] | None,
    k: int,
    seed: int,
    *,
    steps: int = STEPS,
) -> FewRows | None:
    """Return k posterior draws; None if no point near the optimum has a finite density.

    Parameters
    ----------
    law : type[Law]
        The form.
    optimum : Optimum
        The objective and its optimum, from which the least-squares optimum is found.
    n : int
        Number of observations: less than the number of rows if some are equal.
    member : ndarray of int, shape (rows,), or None
        Number of each row's cluster; None if the rows are independent.
    k : int
        Number of draws.
    seed : int
        Seed of the sampler.
    steps : int
        Steps of the sampler before draws are kept, and again after that.
    """
    model, rows, box = optimum.model, optimum.rows, optimum.box
    best = minimise(model, optimum.eta[None], rows, Penalty(delta=math.inf), box).eta[0]
    free = np.flatnonzero(box.free)
    scale = float(rows.weight.sum()) / n
    mean_target = float(rows.target.mean())
    least = n * scale * (TINY * (1.0 if rows.is_log else mean_target)) ** 2
    is_shape = np.array([c.name in SHAPES for c in law.coordinates])
    centre = np.where(is_shape, EXPONENT, best)
    spread = _spreads(law, mean_target)
    counts = None if member is None else np.bincount(member).astype(np.float64)
    groups = None if member is None else np.equal.outer(member, np.unique(member)).astype(float)

    def log_density(points: FloatArray) -> FloatArray:
        eta = np.tile(best, (len(points), 1))
        eta[:, free] = points[:, : len(free)]
        theta = model.theta(eta)
        is_inside = ((theta >= box.low) & (theta <= box.high)).all(axis=1)
        with np.errstate(all="ignore"):
            r = model.residuals(eta, rows)
            z = ((np.where(is_shape, theta, eta) - centre) / spread)[:, free]
            out = -0.5 * (z * z).sum(axis=1)
            square = (r * r) @ rows.weight + least
            if groups is not None and counts is not None:
                # Sherman and Morrison: the variance of a cluster is I + shared 11'.
                log_shared = points[:, -1]
                swollen = 1.0 + np.exp(log_shared)[:, None] * counts
                sums = (r * np.sqrt(rows.weight)) @ groups
                square -= (np.exp(log_shared)[:, None] / swollen * sums * sums).sum(axis=1)
                out -= 0.5 * np.log(swollen).sum(axis=1) + 0.5 * (log_shared / SHARED_SPREAD) ** 2
            out -= 0.5 * (n - 1) * np.log(square)
        return np.where(is_inside & np.isfinite(out), out, -np.inf)

    rng = np.random.default_rng((seed, 2))
    spare = max(n - len(free), 1)
    r = model.residuals(best[None], rows)[0]
    sigma = math.sqrt((float((r * r) @ rows.weight) + least) / scale / spare)
    start = best[free] + _first_steps(optimum, best, sigma * math.sqrt(scale), spread[free], rng)
    if member is not None:
        start = np.column_stack([start, rng.standard_normal(WALKERS)])
    chain = sample(log_density, start, steps, rng)
    if chain is None:
        return None
    eta = np.tile(best, (k, 1))
    eta[:, free] = chain[np.linspace(0, len(chain) - 1, k).astype(int), : len(free)]
    return FewRows(eta=eta, noise=sigma * special.stdtrit(spare, NOISE_LEVELS))


def sample(
    log_density: Callable[[FloatArray], FloatArray],
    start: FloatArray,
    steps: int,
    rng: np.random.Generator,
) -> FloatArray | None:
    """Return draws from a density by the stretch move, shape (draws, p).

    Parameters
    ----------
    log_density : callable
        Logarithm of the density up to a constant, (s, p) to (s,); minus infinity outside.
    start : ndarray of shape (walkers, p)
        Walkers without a finite density start at one that has it; None without any.
    steps : int
        Steps before draws are kept, and again after that.
    rng : numpy Generator
    """
    at, here = start.copy(), log_density(start)
    fine = np.flatnonzero(np.isfinite(here))
    if not len(fine):
        return None
    lost = np.flatnonzero(~np.isfinite(here))
    at[lost], here[lost] = at[fine[lost % len(fine)]], here[fine[lost % len(fine)]]
    walkers, p = at.shape
    halves = np.arange(walkers // 2), np.arange(walkers // 2, walkers)
    kept = []
    for step in range(2 * steps):
        check_time()
        for own, other in (halves, halves[::-1]):
            z = ((STRETCH - 1.0) * rng.random(len(own)) + 1.0) ** 2 / STRETCH
            mate = at[other[rng.integers(len(other), size=len(own))]]
            trial = mate + z[:, None] * (at[own] - mate)
            there = log_density(trial)
            odds = (p - 1) * np.log(z) + there - here[own]
            moved = np.log1p(-rng.random(len(own))) < odds
            at[own[moved]], here[own[moved]] = trial[moved], there[moved]
        if step >= steps and step % EVERY == 0:
            kept.append(at.copy())
    return np.concatenate(kept)


def _spreads(law: type[Law], mean_target: float) -> FloatArray:
    """Return the prior's standard deviation of each coordinate, shape (p,)."""
    return np.array(
        [
            EXPONENT_SPREAD
            if c.name in SHAPES
            else TERM_SPREAD
            if c.is_log
            else OFFSET_SPREAD * mean_target
            if c.name == law.offset
            else OTHER_SPREAD
            for c in law.coordinates
        ]
    )


def _first_steps(
    optimum: Optimum, best: FloatArray, sigma: float, spread: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Return a draw from the linearised posterior for each walker, shape (walkers, p)."""
    value, gradient, _ = optimum.model.derivatives(best)
    slopes = gradient / value if optimum.rows.is_log else gradient
    slopes = np.nan_to_num(slopes[optimum.box.free] * np.sqrt(optimum.rows.weight))
    precision = slopes @ slopes.T / (sigma * sigma) + np.diag(spread**-2.0)
    size = np.sqrt(np.diag(precision))
    scaled = precision / np.outer(size, size)
    if not np.isfinite(scaled).all():
        return np.zeros((WALKERS, len(size)))
    values, vectors = np.linalg.eigh(scaled)
    z = rng.standard_normal((WALKERS, len(size))) / np.sqrt(np.maximum(values, 1e-12))
    return np.asarray((z @ vectors.T) / size)

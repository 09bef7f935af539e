"""A mixture of Gaussians over log losses, with quantiles and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from scalelab.arrays import FloatArray

REACH = 12.0
"""Standard deviations around the outermost components in which quantiles are searched."""
N_BISECTIONS = 60


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mixture:
    """Distribution of the log loss at each of n points.

    Attributes
    ----------
    weights : ndarray of shape (k,)
        Weights of the components; their sum is 1.
    means, variances : ndarray of shape (k, n)
        Mean and variance of the noise-free log loss.
    noise : ndarray of shape (k, n)
        Variance of a new run around it.
    """

    weights: FloatArray
    means: FloatArray
    variances: FloatArray
    noise: FloatArray

    def quantile(self, q: float, *, is_new_run: bool = False) -> FloatArray:
        """Return the quantile of the log loss at each point, shape (n,), by bisection."""
        spread = self._spread(is_new_run)
        low = (self.means - REACH * spread).min(axis=0)
        high = (self.means + REACH * spread).max(axis=0)
        for _ in range(N_BISECTIONS):
            middle = (low + high) / 2
            is_below = self.weights @ ndtr((middle - self.means) / spread) < q
            low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
        return np.asarray((low + high) / 2)

    def quantiles(self, levels: Sequence[float]) -> FloatArray:
        """Return quantiles of new runs, shape (len(levels), n)."""
        return np.stack([self.quantile(q, is_new_run=True) for q in levels])

    def probability_below(self, log_losses: FloatArray, *, is_new_run: bool = False) -> FloatArray:
        """Return the probability of a log loss below each of these, shape (n,)."""
        spread = self._spread(is_new_run)
        return np.asarray(self.weights @ ndtr((log_losses - self.means) / spread))

    def crps(self, log_losses: FloatArray) -> FloatArray:
        """Return the continuous ranked probability score of new runs, shape (n,).

        Source: Grimit et al. 2006, "The continuous ranked probability score for circular variables
        and its application to mesoscale forecast ensemble verification", equation 5.
        """
        spread = self._spread(True)
        own = self.weights @ _expected_distance(log_losses - self.means, spread)
        gaps = self.means[:, None] - self.means[None]
        both = np.sqrt(spread[:, None] ** 2 + spread[None] ** 2)
        pair = np.einsum("i,j,ijn->n", self.weights, self.weights, _expected_distance(gaps, both))
        return np.asarray(own - pair / 2)

    def _spread(self, is_new_run: bool) -> FloatArray:
        return np.asarray(np.sqrt(self.variances + (self.noise if is_new_run else 0.0)))


def _expected_distance(mean: FloatArray, spread: FloatArray) -> FloatArray:
    """Return E|X| for X normal with this mean and standard deviation."""
    z = mean / spread
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return np.asarray(mean * (2 * ndtr(z) - 1) + 2 * spread * density)

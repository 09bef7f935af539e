"""Which runs are left out together when mixture laws are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray

LEFT_OUT = 10
"""Runs of a fold of ``leave_10_out``; fewer where there are fewer than 50 runs."""
FEWEST_SIZES = 4
"""Sizes from which ``leave_size_out`` is used: a law of N has three parameters."""
SCHEMES = {
    "leave_10_out": "leave 10 runs out",
    "leave_mixture_out": "leave a mixture out",
    "leave_size_out": "leave a size out",
}
"""Ways to leave runs out, in words."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Folds:
    """Folds of several schemes, one after the other.

    Attributes
    ----------
    schemes : tuple of str
        ``leave_10_out``, ``leave_mixture_out``, ``leave_size_out``, those that the runs allow.
    counts : tuple of int
        Folds of each scheme.
    kept : ndarray of shape (folds, n)
        1 for a run that is fitted, 0 for one that is left out.
    """

    schemes: tuple[str, ...]
    counts: tuple[int, ...]
    kept: FloatArray

    def gather(self, predicted: FloatArray) -> FloatArray:
        """Return each run's prediction by the fold without it: (folds, n) to (schemes, n)."""
        out = np.empty((len(self.schemes), self.kept.shape[1]))
        start = 0
        for j, count in enumerate(self.counts):
            rows = slice(start, start + count)
            left_out = np.argmin(self.kept[rows], axis=0)
            out[j] = predicted[rows][left_out, np.arange(out.shape[1])]
            start += count
        return out


def folds_of(mixtures: NDArray[np.intp], n_params: FloatArray | None, *, seed: int = 0) -> Folds:
    """Return the folds of all schemes that these runs allow.

    Parameters
    ----------
    mixtures : ndarray of int, shape (n,)
        Number of the mixture of each run. ``leave_mixture_out`` is used if mixtures repeat.
    n_params : ndarray of shape (n,), or None
        Sizes, for ``leave_size_out``.
    seed : int
        Seed of the random folds.
    """
    n = len(mixtures)
    count = max(-(-n // LEFT_OUT), 5)
    part = np.random.default_rng(seed).permutation(n) % count
    labels: dict[str, NDArray[np.intp]] = {"leave_10_out": part}
    if len(np.unique(mixtures)) < n:
        labels["leave_mixture_out"] = mixtures
    if n_params is not None:
        sizes, number = np.unique(n_params, return_inverse=True)
        if len(sizes) >= FEWEST_SIZES and len(sizes) < n // 2:
            labels["leave_size_out"] = np.asarray(number).reshape(-1)
    kept = [
        (label != k).astype(np.float64) for label in labels.values() for k in range(label.max() + 1)
    ]
    return Folds(
        schemes=tuple(labels),
        counts=tuple(int(label.max()) + 1 for label in labels.values()),
        kept=np.array(kept),
    )

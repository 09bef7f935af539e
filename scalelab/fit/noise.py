"""Noise of a new run around the law: errors of the fitted rows with the nearest compute."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scalelab.arrays import FloatArray

NOISE_LEVELS = (np.arange(201) + 0.5) / 201
"""Quantiles of the residuals that represent the noise of a new run."""
NEAREST = 20
"""Minimum number of rows for the noise at a point; a third of all rows if that is more."""
MAX_WINDOWS = 64
"""Most windows of neighbouring rows; of more, evenly spaced ones are used."""
WIDTH = 0.1
"""Standard deviation of the weights of windows around a point, in natural logs of compute. It is
small, so that the noise is that of the nearest rows, and only does not jump between windows."""


def local_noise(errors: FloatArray, compute: FloatArray, wanted: FloatArray) -> FloatArray:
    """Return quantiles of the errors of the rows nearest in compute, shape (m, levels).

    The quantiles are at least as wide as those of all rows: few rows give quantiles that are too
    narrow.

    Parameters
    ----------
    errors, compute : ndarray of shape (n,)
        Errors and compute of the fitted rows.
    wanted : ndarray of shape (m,)
        Compute of the requested points.
    """
    order = np.argsort(compute, kind="stable")
    # Rows of one budget are one group, in spite of rounding; a window has whole groups.
    place = np.round(np.log(compute[order]), 9)
    errors = errors[order]
    size = min(len(errors), max(NEAREST, len(errors) // 3))
    ends = np.stack([place[: len(place) - size + 1], place[size - 1 :]], axis=1)
    ends = np.unique(ends, axis=0)
    some = np.unique(np.linspace(0, len(ends) - 1, MAX_WINDOWS).round().astype(int))
    low, high = ends[some].T
    spans = zip(np.searchsorted(place, low), np.searchsorted(place, high, "right"), strict=True)
    quantiles = np.stack([np.quantile(errors[i:j], NOISE_LEVELS) for i, j in spans])
    centres = (low + high) / 2
    # Windows around the point, weighted by nearness: the noise does not jump along compute.
    at = np.clip(np.log(wanted), centres.min(), centres.max())
    square = ((at[:, None] - centres) / WIDTH) ** 2
    weights = np.exp(-0.5 * (square - square.min(axis=1, keepdims=True)))
    out: FloatArray = weights @ quantiles / weights.sum(axis=1, keepdims=True)
    overall = np.quantile(errors, NOISE_LEVELS)
    return np.where(NOISE_LEVELS < 0.5, np.minimum(out, overall), np.maximum(out, overall))


def compute_of(columns: Mapping[str, FloatArray]) -> FloatArray | None:
    """Return compute up to a constant factor (N D, or the FLOPs); None without such columns."""
    if "n_params" in columns and "n_tokens" in columns:
        return np.asarray(columns["n_params"] * columns["n_tokens"], dtype=np.float64)
    return columns.get("flops")

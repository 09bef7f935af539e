"""Noise of a new run around the law: errors of the fitted rows with the nearest compute."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scalelab.arrays import FloatArray

NOISE_LEVELS = (np.arange(201) + 0.5) / 201
"""Quantiles of the residuals that represent the noise of a new run."""
NEAREST = 20
"""Minimum number of rows for the noise at a point; a third of all rows if that is more."""


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
    place = np.log(compute[order])
    errors = errors[order]
    size = min(len(errors), max(NEAREST, len(errors) // 3))
    windows: FloatArray = np.lib.stride_tricks.sliding_window_view(place, size)
    low, high = windows[:, 0], windows[:, -1]
    at = np.log(wanted)
    # The nearest rows are the window whose farther end is nearest to the point. For windows centred
    # beyond the point the farther end is the upper one, otherwise the lower one.
    above = np.minimum(np.searchsorted(low + high, 2 * at), len(low) - 1)
    below = np.searchsorted(low, low[np.maximum(above - 1, 0)])
    is_below = np.maximum(high[below] - at, at - low[below]) <= np.maximum(
        high[above] - at, at - low[above]
    )
    first, which = np.unique(np.where(is_below, below, above), return_inverse=True)
    own = np.lib.stride_tricks.sliding_window_view(errors, size)[first]
    out: FloatArray = np.quantile(own, NOISE_LEVELS, axis=1).T[which]
    overall = np.quantile(errors, NOISE_LEVELS)
    return np.where(NOISE_LEVELS < 0.5, np.minimum(out, overall), np.maximum(out, overall))


def compute_of(columns: Mapping[str, FloatArray]) -> FloatArray | None:
    """Return compute up to a constant factor (N D, or the FLOPs); None without such columns."""
    if "n_params" in columns and "n_tokens" in columns:
        return np.asarray(columns["n_params"] * columns["n_tokens"], dtype=np.float64)
    return columns.get("flops")

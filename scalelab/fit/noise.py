"""What a new run may differ by from the law: the errors of the fitted rows nearest in compute."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

NOISE_LEVELS = (np.arange(201) + 0.5) / 201
"""Quantiles of the residuals that stand for a new run's noise."""
NEAREST = 20
"""Fewest rows whose residuals stand for the noise at a point; otherwise a third of all."""


def local_noise(errors: FloatArray, compute: FloatArray, wanted: FloatArray) -> FloatArray:
    """Return quantiles of the errors of the rows nearest in compute, shape (m, levels).

    Never inside the quantiles of all rows: a valley's bottom, where predictions are asked for, is
    thinly sampled at any one budget, and few rows make narrow quantiles.

    Parameters
    ----------
    errors, compute : ndarray of shape (n,)
        Of the fitted rows.
    wanted : ndarray of shape (m,)
        Compute of the points asked for.
    """
    order = np.argsort(compute, kind="stable")
    place = np.log(compute[order])
    errors = errors[order]
    size = min(len(errors), max(NEAREST, len(errors) // 3))
    windows: FloatArray = np.lib.stride_tricks.sliding_window_view(place, size)
    low, high = windows[:, 0], windows[:, -1]
    at = np.log(wanted)
    # The window of nearest rows is the one whose further end is nearest. That end is the upper one
    # from the first window with its middle beyond the point on, the lower one before it.
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
    """Return what orders rows by compute: N D or the FLOPs; None for a form that has neither."""
    if "n_params" in columns and "n_tokens" in columns:
        return np.asarray(columns["n_params"] * columns["n_tokens"], dtype=np.float64)
    return columns.get("flops")

"""Compute-optimal allocation without a closed form: scans along C = 6 N D."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from scalelab.arrays import FloatArray
from scalelab.theory.accounting import FLOPS_PER_PARAM_TRAIN

N_COARSE = 241
N_FINE, ROUNDS = 41, 7
"""Points of a finer scan and number of such scans; each narrows the bracket 20 times."""


def best_split(
    loss: Callable[[FloatArray, FloatArray], FloatArray], flops: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Return the (N, D) of lowest loss at each budget.

    A coarse scan in log N brackets the minimum and finer scans narrow it to rounding. Fitted
    losses may fall again far outside their data (huge N on few tokens), so the optimum is the local
    minimum nearest to N = D, or the lowest point if there is none.

    ``loss`` takes N and D as arrays of one shape.
    """
    product = np.asarray(flops, dtype=np.float64) / FLOPS_PER_PARAM_TRAIN
    flat = np.atleast_1d(product).ravel()

    def at(log_n: FloatArray) -> FloatArray:
        N = np.exp(log_n)
        return loss(N, flat / N)

    share = np.linspace(0.05, 0.95, N_COARSE)[:, None] * np.log(flat)
    values = at(share)
    inner = values[1:-1]
    is_minimum = (inner <= values[:-2]) & (inner <= values[2:])
    distance = np.abs(np.arange(1, N_COARSE - 1) - N_COARSE // 2)[:, None]
    nearest = np.where(is_minimum, distance, N_COARSE).argmin(axis=0) + 1
    lowest = np.where(is_minimum.any(axis=0), nearest, np.nanargmin(values, axis=0))
    for _ in range(ROUNDS):
        lowest = np.clip(lowest, 1, len(share) - 2)
        low = np.take_along_axis(share, lowest[None] - 1, axis=0)[0]
        high = np.take_along_axis(share, lowest[None] + 1, axis=0)[0]
        share = np.linspace(low, high, N_FINE)
        lowest = at(share).argmin(axis=0)
    N = np.exp(np.take_along_axis(share, lowest[None], axis=0)[0]).reshape(product.shape)
    return N, product / N

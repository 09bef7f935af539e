"""What repeated tokens of the sources are worth: weights and tokens as if each was seen once.

Source: Muennighoff et al. 2023, arXiv:2305.16264, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.theory.laws.data_constrained import R_D, log_worth


def effective_data(
    weights: FloatArray,
    n_tokens: FloatArray | float,
    unique_tokens: Mapping[str, float],
    sources: Sequence[str],
) -> tuple[FloatArray, FloatArray]:
    """Return weights (.., m) and tokens (..) of new text that are worth as much.

    Parameters
    ----------
    weights : ndarray of shape (.., m)
        Shares of the training tokens.
    n_tokens : ndarray of shape (..) or float
        Training tokens.
    unique_tokens : Mapping[str, float]
        Distinct tokens of sources; a source without them is never repeated.
    sources : sequence of str, length m
    """
    tokens = np.broadcast_to(np.asarray(n_tokens, dtype=np.float64), weights.shape[:-1])
    worth = weights * tokens[..., None]
    for j, name in enumerate(sources):
        if name in unique_tokens:
            unique = unique_tokens[name]
            drawn = worth[..., j]
            repeats = np.maximum(drawn / unique, 1.0)
            once = np.minimum(drawn, unique)
            worth[..., j] = once * np.exp(log_worth(np.log(repeats), math.log(R_D)))
    total = worth.sum(axis=-1)
    return worth / total[..., None], total

"""Which source each training sequence of a mixture comes from.

Sources take turns by the divisor method of Webster: the j-th sequence of a source with weight w is
due at ``(j + 1/2) / w``, and sequences are drawn in the order in which they are due. So the first n
sequences of a run hold n w of each of K sources, to within (1 + K w) / 2 sequences, for every n:
every batch has the mixture's proportions, and runs of different lengths begin with the same
sequences (branches of a WSD trunk). The order needs no state: any part of it can be computed
directly.

References
----------
Balinski and Young 1982, "Fair Representation", appendix A (Webster's method; it is monotone in n).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from scalelab.units import round_significant

WEIGHT_DIGITS = 6
"""Significant digits of a weight that count, as in the hash of a run."""
BLOCK = 1024
"""Number of consecutive sequences that are placed together."""

Weights = tuple[float, ...]


def n_drawn(weights: Weights, n: int) -> NDArray[np.int64]:
    """Return how many of the first ``n`` sequences come from each source, shape (n_sources,)."""
    shares = _shares(weights)
    # If the last of n sequences is due at t, rounding gives |t - n| <= K / 2, so that no source has
    # fewer sequences than this.
    least = np.maximum(np.floor(n * shares) - len(shares) - 1, 0).astype(np.int64)
    left = n - int(least.sum())
    width = np.where(shares > 0, left, 0)
    sources, _ = _in_order(shares, least, least + width)
    found: NDArray[np.int64] = least + np.bincount(sources[:left], minlength=len(shares))
    return found


def drawn(weights: Weights, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the sequences from ``first`` to before ``last`` of a run come from.

    Parameters
    ----------
    weights : tuple of float
        Weight of each source, 0 or more, not all 0.
    first, last : int
        Places among all sequences of the run, from 0.

    Returns
    -------
    sources : ndarray of int64, shape (last - first,)
        Index of the source of each sequence.
    ranks : ndarray of int64, shape (last - first,)
        How many sequences were drawn from that source before.
    """
    blocks = range(first // BLOCK, -(-last // BLOCK))
    parts = [_block(weights, block) for block in blocks]
    found = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    start = blocks.start * BLOCK
    sources, ranks = found[:, first - start : last - start]
    return sources, ranks


@functools.lru_cache(maxsize=64)
def _block(weights: Weights, block: int) -> NDArray[np.int64]:
    """Return sources and ranks of consecutive sequences, shape (2, BLOCK)."""
    ends = (n_drawn(weights, (block + side) * BLOCK) for side in (0, 1))
    return np.stack(_in_order(_shares(weights), *ends))


def _in_order(
    shares: NDArray[np.float64], first: NDArray[np.int64], last: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return sources and ranks of the sequences from ``first`` to ``last`` of each source, as due.

    Division is exact to the last bit on every machine, and equal times are in source order.
    """
    n = last - first
    sources = np.repeat(np.arange(len(shares)), n)
    offsets = np.arange(len(sources)) - np.repeat(np.cumsum(n) - n, n)
    ranks = first[sources] + offsets
    order = np.argsort((ranks + 0.5) / shares[sources], kind="stable")
    return sources[order], ranks[order]


@functools.lru_cache(maxsize=64)
def _shares(weights: Weights) -> NDArray[np.float64]:
    rounded = [round_significant(weight, WEIGHT_DIGITS) for weight in weights]
    return np.array(rounded) / math.fsum(rounded)

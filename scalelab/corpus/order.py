"""Training order: a seeded permutation with random access.

A run reads the corpus in chunks, in the order of a permutation that changes every epoch. Any entry
can be computed at a cost independent of the corpus size, and without state between steps. It uses
no random number generator of a library. So a run can resume at any step, and gives the same order
on any machine and NumPy version.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
BLOCK = 1024
"""Number of consecutive entries that are computed together."""

_UintArray = NDArray[np.uint64]


def permuted(places: NDArray[np.int64], n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the entries of a permutation of ``range(n)`` at the given places.

    A Feistel network permutes the integers below the smallest power of two that is at least ``n``.
    Applying it until the value is below ``n`` (cycle walking) gives a permutation of ``range(n)``.

    Parameters
    ----------
    places : ndarray of int64, shape (k,)
        Places from 0 to n - 1, in any order.
    n : int
        Length of the permutation, from 1.
    seed, epoch : int
        Each pair gives a different permutation.

    Returns
    -------
    ndarray of int64, shape (k,)
        Distinct for distinct places.

    References
    ----------
    Black and Rogaway 2002, "Ciphers with arbitrary finite domains", CT-RSA, sections 3 and 5.
    """
    if n == 1:
        return np.zeros(len(places), dtype=np.int64)
    keys = _round_keys(seed, epoch, n)
    bits = max(2, (n - 1).bit_length())
    entries = _encrypt(places.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(entries >= n)
    while len(outside):
        entries[outside] = _encrypt(entries[outside], bits, keys)
        outside = outside[entries[outside] >= n]
    return entries.astype(np.int64)


def permuted_run(start: int, stop: int, n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the entries at consecutive places, ``permuted`` of ``range(start, stop)``.

    Places are 0 to n - 1. Entries are computed in blocks, so that consecutive steps share the work.
    """
    blocks = range(start // BLOCK, -(-stop // BLOCK))
    parts = [_block(block, n, seed, epoch) for block in blocks]
    entries = parts[0] if len(parts) == 1 else np.concatenate(parts)
    first = blocks.start * BLOCK
    return entries[start - first : stop - first]


@functools.lru_cache(maxsize=64)
def _block(block: int, n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    places = np.arange(block * BLOCK, min((block + 1) * BLOCK, n), dtype=np.int64)
    entries = permuted(places, n, seed=seed, epoch=epoch)
    entries.flags.writeable = False
    return entries


@functools.lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int, n: int) -> tuple[np.uint64, ...]:
    digest = hashlib.sha512(f"scalelab order {seed} {epoch} {n}".encode()).digest()
    return tuple(np.frombuffer(digest, dtype="<u8", count=ROUNDS).astype(np.uint64))


def _encrypt(values: _UintArray, bits: int, keys: tuple[np.uint64, ...]) -> _UintArray:
    low_bits = np.uint64(bits // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << np.uint64(bits - bits // 2)) - np.uint64(1)
    high, low = values >> low_bits, values & low_mask
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
        high = high ^ (_mix(low + even) & high_mask)
        low = low ^ (_mix(high + odd) & low_mask)
    return (high << low_bits) | low


def _mix(values: _UintArray) -> _UintArray:
    """Return SplitMix64's finaliser (Steele, Lea and Flood 2014, OOPSLA, figure 18)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

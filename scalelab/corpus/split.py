"""The split into training and evaluation documents, and the tokens of the evaluation set.

The split depends only on the text of each document: documents are ordered by a hash of their text,
and the lowest share of all hashes is held out. So equal documents are never on both sides, file
names do not matter, and new documents do not move existing ones. The share is the smallest power
of one half that gives enough evaluation tokens. If it shrinks because there is more text, some
held-out documents move to training. Training documents never become held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# From 2^-20 of a corpus to half of it.
SHARES = tuple(2.0**-k for k in range(20, 0, -1))

# If at most a sixteenth of the corpus is held out, one document adds at most this many tokens.
# Tokens of one document are correlated, so more documents reduce the standard error, more tokens of
# one document do not.
WINDOW_TOKENS = 4096
SPREAD_UP_TO = 1 / 16

_DIGEST_BYTES = 16


def new_digest(document: bytes = b"") -> hashlib.blake2b:
    """Return the hash that orders documents (BLAKE2b, 16 bytes), to be updated with more text."""
    return hashlib.blake2b(document, digest_size=_DIGEST_BYTES, person=b"scalelab split")


def digest(document: bytes) -> bytes:
    """Return the hash of a whole document."""
    return new_digest(document).digest()


def is_enough(lengths: Sequence[int], share: float, eval_tokens: int) -> bool:
    """Return whether held-out documents of these lengths (tokens) are enough at this share."""
    window = WINDOW_TOKENS if share <= SPREAD_UP_TO else max(lengths, default=0)
    return sum(min(length, window) for length in lengths) >= eval_tokens


def smallest_window(lengths: Sequence[int], eval_tokens: int) -> int:
    """Return the shortest window for which all documents together give ``eval_tokens``.

    ``lengths`` are the tokens of each held-out document, in sum at least ``eval_tokens``.
    """
    # Documents shorter than the window give all their tokens, the others one window each.
    ascending = sorted(lengths)
    given = 0
    for index, length in enumerate(ascending):
        n_longer = len(ascending) - index
        if given + n_longer * length >= eval_tokens:
            return -(-(eval_tokens - given) // n_longer)
        given += length
    raise AssertionError("held-out documents were found to be enough")


def window(tokens: NDArray[np.generic], length: int, low_digest: int) -> NDArray[np.generic]:
    """Return at most ``length`` tokens of a document, from an offset given by its hash.

    Not from the beginning, which often differs from the rest of a text (licences, imports).
    """
    start = low_digest % (len(tokens) - length + 1) if len(tokens) > length else 0
    return tokens[start : start + length]

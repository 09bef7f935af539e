"""Which documents are held out, and which of their tokens are the evaluation set.

A document's side depends on its own text: documents are ordered by a hash of it, and those whose
hash lies in the lowest share of all hashes are held out. So equal documents are never on both
sides, neither names nor file systems matter, and where documents are added, those present before
keep their side. The share is the smallest power of one half that gives enough evaluation tokens;
only when it shrinks, because there is more text, do some held-out documents pass to training.
Documents of training never become held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# 2^-20 of a corpus, up to half of it.
SHARES = tuple(2.0**-k for k in range(20, 0, -1))

# Up to a sixteenth of the corpus, one document gives the evaluation set no more than this: tokens
# of one document vary together, so the standard error falls with documents rather than tokens.
WINDOW_TOKENS = 4096
SPREAD_UP_TO = 1 / 16

_DIGEST_BYTES = 16


def digest(document: bytes) -> bytes:
    """Return the hash that orders documents: 16 bytes of BLAKE2b."""
    return hashlib.blake2b(document, digest_size=_DIGEST_BYTES, person=b"scalelab split").digest()


def is_enough(lengths: Sequence[int], share: float, eval_tokens: int) -> bool:
    """Say whether held-out documents of these lengths (tokens) give enough at this share."""
    window = WINDOW_TOKENS if share <= SPREAD_UP_TO else max(lengths, default=0)
    return sum(min(length, window) for length in lengths) >= eval_tokens


def smallest_window(lengths: Sequence[int], eval_tokens: int) -> int:
    """Return the shortest window that gives ``eval_tokens`` when every document gives its share.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each held-out document; their sum is at least ``eval_tokens``.
    eval_tokens : int
        Tokens wanted.
    """
    # Documents shorter than the window give all they have, the others one window each.
    ascending = sorted(lengths)
    given = 0
    for index, length in enumerate(ascending):
        n_longer = len(ascending) - index
        if given + n_longer * length >= eval_tokens:
            return -(-(eval_tokens - given) // n_longer)
        given += length
    raise AssertionError("held-out documents were found to be enough")


def window(tokens: NDArray[np.generic], length: int, low_digest: int) -> NDArray[np.generic]:
    """Return at most ``length`` tokens of a document, from a place that its hash decides.

    Beginnings are unlike the rest of a text (licences, imports), so not from there.
    """
    start = low_digest % (len(tokens) - length + 1) if len(tokens) > length else 0
    return tokens[start : start + length]

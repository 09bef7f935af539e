"""What of a stream of tokens is held out: windows, and the rest of their documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.shards import Shard
from scalelab.corpus.split import WINDOW_TOKENS
from scalelab.corpus.token_stream import TokenStream
from scalelab.errors import DataError

FEWEST_WINDOWS = 16
SEARCHED_TOKENS = 1 << 20
"""How far from a window the end of its document is searched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """A held-out part of the stream: evaluated from ``start`` to ``stop``, left out to ``end``."""

    start: int
    stop: int
    end: int


def held_out(stream: TokenStream, eval_tokens: int, end_token: int | None) -> list[HeldOut]:
    """Return windows that together hold ``eval_tokens``, spread evenly over the stream.

    Each begins after the first end of a document from the middle of its part of the stream, and
    the rest of its last document is left out of training, too. A document that is longer than
    `SEARCHED_TOKENS` or than its part of the stream is cut.

    Raises
    ------
    DataError
        When fewer than twice as many tokens exist.
    """
    n_tokens = len(stream)
    require_enough(n_tokens, eval_tokens)
    window = min(WINDOW_TOKENS, -(-eval_tokens // FEWEST_WINDOWS))
    n_windows = -(-eval_tokens // window)
    found: list[HeldOut] = []
    for index in range(n_windows):
        length = min(window, eval_tokens - index * window)
        last = (index + 1) * n_tokens // n_windows
        start = (index * n_tokens // n_windows + last - length) // 2
        if end_token is not None:
            begin = _find_end(stream, start, last - length, end_token)
            start = start if begin is None else begin
        stop = start + length
        end = stop
        if end_token is not None:
            # The window may end with a document.
            end = _find_end(stream, stop - 1, last, end_token) or stop
        found.append(HeldOut(start=start, stop=stop, end=end))
    return found


def require_enough(n_tokens: int, eval_tokens: int) -> None:
    """Raise DataError when fewer than twice as many tokens exist as are held out."""
    if 2 * eval_tokens > n_tokens:
        raise DataError(
            f"{n_tokens:,} tokens for an evaluation set of {eval_tokens:,}",
            "at least twice as many tokens as the evaluation set has",
            f"Use a smaller evaluation set, for example --eval-tokens {max(1, n_tokens // 16)}.",
        )


def _find_end(stream: TokenStream, start: int, limit: int, end_token: int) -> int | None:
    """Return the place after the first end of a document from ``start``; None up to ``limit``."""
    limit = min(limit, start + SEARCHED_TOKENS)
    while start < limit:
        part = read_stream(stream, start, min(limit, start + WINDOW_TOKENS))
        ends = np.flatnonzero(part == end_token)
        if len(ends):
            return start + int(ends[0]) + 1
        start += len(part)
    return None


def read_stream(stream: TokenStream, start: int, stop: int) -> NDArray[Any]:
    """Return the tokens from ``start`` to ``stop``, shape (stop - start,)."""
    row = np.empty((1, stop - start), dtype=np.int64)
    stream.read_rows(np.array([start], dtype=np.int64), row)
    return row.ravel()


def without(shards: tuple[Shard, ...], parts: list[HeldOut], itemsize: int) -> tuple[Shard, ...]:
    """Return the shards without the held-out parts."""
    kept: list[Shard] = []
    before = index = 0
    for shard in shards:
        place, end = before, before + shard.n_tokens
        while index < len(parts) and parts[index].start < end:
            part = parts[index]
            kept.append(_cut(shard, place - before, max(part.start, before) - before, itemsize))
            place = min(part.end, end)
            if part.end > end:
                break
            index += 1
        kept.append(_cut(shard, place - before, end - before, itemsize))
        before = end
    return tuple(shard for shard in kept if shard.n_tokens)


def _cut(shard: Shard, first: int, end: int, itemsize: int) -> Shard:
    return Shard(
        name=shard.name,
        n_tokens=end - first,
        sha256="",
        offset=shard.offset + first * itemsize,
    )

"""Tokens of several memory-mapped files as one stream."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.shards import Shard
from scalelab.errors import DataError

CACHED_BYTES = 8 << 30
"""Files that are larger together may not stay in memory."""


class TokenStream:
    """Reads tokens from memory-mapped shards as from one array.

    Parameters
    ----------
    folder : Path
        Folder of the shards.
    shards : tuple of Shard
        In order.
    dtype : str
        Type of a token on disk.
    is_random : bool
        Whether rows are read in random order; then the system does not read ahead in large files.
    """

    def __init__(
        self, folder: Path, shards: tuple[Shard, ...], dtype: str, *, is_random: bool = True
    ) -> None:
        kind = np.dtype(dtype).newbyteorder("<")
        # Plain arrays: a slice of np.memmap is several times slower.
        files = {
            name: _map(folder / name) for name in dict.fromkeys(shard.name for shard in shards)
        }
        is_large = sum(map(len, files.values())) > CACHED_BYTES
        if is_random and is_large and hasattr(mmap, "MADV_RANDOM"):
            # Reading ahead would read many times the row.
            for content in files.values():
                content.madvise(mmap.MADV_RANDOM)
        self._maps = [
            np.frombuffer(files[shard.name], dtype=kind, count=shard.n_tokens, offset=shard.offset)
            for shard in shards
        ]
        self._starts = list(accumulate((shard.n_tokens for shard in shards), initial=0))
        self._edges = np.array(self._starts)
        self._windows: dict[tuple[int, int], NDArray[Any]] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def read_rows(self, starts: NDArray[np.int64], rows: NDArray[np.integer]) -> None:
        """Fill ``rows``, shape (k, length), with the tokens from each of ``starts``, shape (k,)."""
        length = rows.shape[1]
        if len(self._maps) == 1:
            rows[...] = self._window(0, length)[starts]
            return
        shards = np.searchsorted(self._edges, starts, side="right") - 1
        is_whole = starts + length <= self._edges[shards + 1]
        for shard in np.unique(shards[is_whole]).tolist():
            here = is_whole & (shards == shard)
            rows[here] = self._window(shard, length)[starts[here] - self._starts[shard]]
        for index in np.flatnonzero(~is_whole).tolist():
            self._read_into(rows[index], int(starts[index]))

    def chunks(self, length: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield all tokens in order as arrays of at most ``length``, each with its position."""
        for start, tokens in zip(self._starts, self._maps, strict=False):
            for offset in range(0, len(tokens), length):
                yield start + offset, tokens[offset : offset + length]

    def _window(self, shard: int, length: int) -> NDArray[Any]:
        """Return a shard as rows of ``length`` tokens, one from each token; copies nothing."""
        key = (shard, length)
        if key not in self._windows:
            self._windows[key] = np.lib.stride_tricks.sliding_window_view(self._maps[shard], length)
        return self._windows[key]

    def _read_into(self, row: NDArray[np.integer], start: int) -> None:
        shard = bisect_right(self._starts, start) - 1
        filled = 0
        while filled < len(row):
            offset = start + filled - self._starts[shard]
            part = self._maps[shard][offset : offset + len(row) - filled]
            row[filled : filled + len(part)] = part
            filled += len(part)
            shard += 1


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def outside_vocabulary(
    shards: tuple[Shard, ...], place: int, token: int, vocab_size: int
) -> DataError:
    """Return the error for the token at a position of the shards, with its byte in its file."""
    ends = list(accumulate(shard.n_tokens for shard in shards))
    shard = shards[bisect_right(ends, place)]
    inside = place - (ends[bisect_right(ends, place)] - shard.n_tokens)
    return DataError(
        f"token {token} at position {place:,} of the tokens: token {inside:,} after byte "
        f"{shard.offset:,} of {shard.name}",
        f"tokens from 0 to {vocab_size - 1}",
        f"Give the real vocabulary, for example --vocab-size {max(token, vocab_size) + 1}, or the "
        "type of the tokens, for example --token-dtype uint32.",
    )

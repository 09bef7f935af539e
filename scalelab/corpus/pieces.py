"""Encode documents of any size: a long one is encoded in pieces, with the same tokens."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.tokenizer import Tokenizer

PIECE_BYTES = 8 << 20
SEARCH_BYTES = 64 << 10
SPILL_TOKENS = 64 << 20
"""Tokens of one document from which they are kept on disk."""

# A byte-level BPE starts a new word at a space or line end after a visible character (GPT-2's
# pattern), so pieces cut there have the tokens of the whole.
_WORD_END = re.compile(rb"[!-~](?=[ \n\t\r])")

Spans = NDArray[np.int64]
"""First byte and end of each document in a text, shape (n, 2)."""


def encode_pieces(
    tokenizer: Tokenizer, text: NDArray[np.uint8], spans: Spans
) -> Iterator[tuple[NDArray[Any], int, bool]]:
    """Yield tokens of documents, where their text ends, and whether the document ends there.

    Parameters
    ----------
    tokenizer : Tokenizer
    text : ndarray of uint8
        The text of all documents.
    spans : ndarray of int64, shape (n, 2)
        First byte and end of each document in ``text``.
    """
    ends: deque[tuple[int, bool]] = deque()

    def pieces() -> Iterator[bytes]:
        for first, last in spans:
            start, end = int(first), int(last)
            while True:
                cut = _piece_end(text, start, end)
                ends.append((cut, cut == end))
                yield text[start:cut].tobytes()
                if cut == end:
                    break
                start = cut

    for tokens in tokenizer.encode(pieces()):
        end, is_last = ends.popleft()
        # Each piece is encoded as a document, with the token that ends it.
        yield (tokens if is_last else tokens[:-1]), end, is_last


def encode_whole(
    tokenizer: Tokenizer, text: NDArray[np.uint8], spans: Spans, scratch: Path
) -> Iterator[NDArray[Any]]:
    """Yield the tokens of each document, shape (n,); those of a very long one are on disk."""
    parts: list[NDArray[Any]] = []
    n_spilled = 0
    for tokens, _, is_last in encode_pieces(tokenizer, text, spans):
        parts.append(tokens)
        if not is_last:
            continue
        if sum(map(len, parts)) > SPILL_TOKENS:
            file = scratch / f"held-out-{n_spilled}"
            n_spilled += 1
            with file.open("wb") as out:
                for part in parts:
                    out.write(part.data)
            yield np.asarray(np.memmap(file, dtype=tokens.dtype, mode="r"))
        else:
            yield parts[0] if len(parts) == 1 else np.concatenate(parts)
        parts = []


def _piece_end(text: NDArray[np.uint8], start: int, end: int) -> int:
    """Return where the piece from ``start`` ends: after the last word that ends in its limit."""
    limit = start + PIECE_BYTES
    if limit >= end:
        return end
    first = max(start, limit - SEARCH_BYTES)
    found = [match.end() for match in _WORD_END.finditer(text[first:limit].tobytes())]
    return first + found[-1] if found else character_start(text, limit)


def character_start(text: NDArray[np.uint8], at: int) -> int:
    """Return the start of the UTF-8 character that has the byte ``at``."""
    while at < len(text) and text[at] & 0xC0 == 0x80:
        at -= 1
    return at

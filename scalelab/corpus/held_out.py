"""The evaluation set: whole documents by their hash, or the end of each document.

Whole documents are held out if there are enough of them; see `scalelab.corpus.split`. A corpus of
one text, or of few with very different lengths, cannot be split this way. Then a stretch at the end
of each document is held out, which starts at a line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.pieces import SEARCH_BYTES, Spans, character_start, encode_whole
from scalelab.corpus.source import DataSource
from scalelab.corpus.split import SHARES, is_enough, smallest_window, window
from scalelab.corpus.spool import Progress, Spool
from scalelab.corpus.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer, cached_bpe
from scalelab.corpus.tokenizer_files import source_tokenizer
from scalelab.units import plural

DOCUMENTS, STRETCH = "documents", "stretch"
LEAST_STRETCH_BYTES = 256
"""A shorter end of a document is not worth a cut, if there are other documents."""


SPREAD_OVER = 16
"""Tokens of the documents of a text that is only evaluated, over the tokens of the set."""


class TooFewError(Exception):
    """The text cannot be split in this way; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """A corpus in two parts.

    Attributes
    ----------
    kind : str
        ``documents`` or ``stretch``.
    share : float
        Share that is held out: of all hashes, or of the bytes.
    window_tokens : int
        Largest number of tokens of one document in the evaluation set.
    eval_tokens : ndarray, shape (eval_tokens,)
        The evaluation set.
    n_held_out, n_held_out_bytes : int
        Documents that are held out, whole or with their end, and the bytes of their text.
    held_out : list of ndarray
        Tokens of each of them.
    train : ndarray of int64, shape (n, 2)
        First byte and end of the text of each training document.
    """

    kind: str
    share: float
    window_tokens: int
    eval_tokens: NDArray[Any]
    n_held_out: int
    n_held_out_bytes: int
    held_out: list[NDArray[Any]]
    train: Spans


def split_documents(source: DataSource, spool: Spool, tokenizer: Tokenizer, scratch: Path) -> Split:
    """Hold out whole documents.

    Raises
    ------
    TooFewError
        When half of the documents have too few tokens.
    """
    held_out: list[NDArray[Any]] = []
    for share in SHARES:
        end = int(np.searchsorted(spool.high, np.uint64(int(share * 2**64))))
        spans = spool.spans(len(held_out), end)
        held_out.extend(encode_whole(tokenizer, spool.text, spans, scratch))
        if is_enough([len(tokens) for tokens in held_out], share, source.eval_tokens):
            break
    else:
        found = sum(len(tokens) for tokens in held_out)
        raise TooFewError(f"half of them hold {plural(found, 'token')}")
    return _of_documents(source, spool, held_out, share)


def whole_set(source: DataSource, spool: Spool, tokenizer: Tokenizer, scratch: Path) -> Split:
    """Return a text that is only evaluated: as many documents in hash order as are needed.

    They have `SPREAD_OVER` times its tokens, so that a document gives few of them. The set is
    smaller than ``eval_tokens`` if the text is.
    """
    held_out: list[NDArray[Any]] = []
    for share in (*SHARES, 1.0):
        end = len(spool)
        if share < 1:
            end = int(np.searchsorted(spool.high, np.uint64(int(share * 2**64))))
        held_out.extend(
            encode_whole(tokenizer, spool.text, spool.spans(len(held_out), end), scratch)
        )
        if sum(map(len, held_out)) >= SPREAD_OVER * source.eval_tokens:
            break
    split = _of_documents(source, spool, held_out, share)
    return replace(split, train=split.train[:0])


def _of_documents(
    source: DataSource, spool: Spool, held_out: list[NDArray[Any]], share: float
) -> Split:
    """Return the split that holds out these documents, the first in hash order."""
    lengths = [len(tokens) for tokens in held_out]
    length = smallest_window(lengths, min(source.eval_tokens, sum(lengths)))
    windows = [
        window(tokens, length, int(low)) for tokens, low in zip(held_out, spool.low, strict=False)
    ]
    return Split(
        kind=DOCUMENTS,
        share=share,
        window_tokens=length,
        eval_tokens=np.concatenate(windows)[: source.eval_tokens],
        n_held_out=len(held_out),
        n_held_out_bytes=_n_bytes(spool.spans(0, len(held_out))),
        held_out=held_out,
        train=spool.spans(len(held_out)),
    )


def split_stretch(source: DataSource, spool: Spool, tokenizer: Tokenizer, scratch: Path) -> Split:
    """Hold out the end of each document, as much of each as of the others.

    Raises
    ------
    TooFewError
        When half of the text has too few tokens.
    """
    # A token has at least one byte.
    share = source.eval_tokens / spool.n_bytes
    while True:
        share = min(share, 0.5)
        train = _without_ends(spool, share)
        ends = np.stack([train[:, 1], spool.spans()[:, 1]], axis=1)
        ends = ends[ends[:, 0] < ends[:, 1]]
        held_out = list(encode_whole(tokenizer, spool.text, ends, scratch))
        found = sum(len(tokens) for tokens in held_out)
        if found >= source.eval_tokens:
            break
        if share == 0.5:
            raise TooFewError(f"half of the text holds {plural(found, 'token')}")
        share *= max(1.02, 1.01 * source.eval_tokens / found) if found else 2.0
    return Split(
        kind=STRETCH,
        share=float((ends[:, 1] - ends[:, 0]).sum() / spool.n_bytes),
        window_tokens=max(map(len, held_out)),
        eval_tokens=np.concatenate(held_out)[: source.eval_tokens],
        n_held_out=len(held_out),
        n_held_out_bytes=_n_bytes(ends),
        held_out=held_out,
        train=train,
    )


def _n_bytes(spans: Spans) -> int:
    return int((spans[:, 1] - spans[:, 0]).sum())


def _without_ends(spool: Spool, share: float) -> Spans:
    """Return each document without about this share at its end, which starts at a line."""
    spans = spool.spans()
    lengths = np.ceil(share * (spans[:, 1] - spans[:, 0])).astype(np.int64)
    least = LEAST_STRETCH_BYTES if len(spool) > 1 else 1
    for index in np.flatnonzero(lengths >= least):
        start, end = map(int, spans[index])
        half = _half(spool, start, end)
        spans[index, 1] = _line_start(spool.text, half, max(half, end - int(lengths[index])))
    return spans


def _line_start(text: NDArray[np.uint8], first: int, at: int) -> int:
    """Return the last start of a line from ``first`` to ``at``, else of a word, else ``at``."""
    low = max(first, at - SEARCH_BYTES)
    before = text[low:at].tobytes()
    found = before.rfind(b"\n") + 1 or before.rfind(b" ") + 1
    return low + found if found else max(first, character_start(text, at))


def _half(spool: Spool, start: int, end: int) -> int:
    """Return the middle of a document; a stretch never begins before it."""
    return character_start(spool.text, start + (end - start + 1) // 2)


def make_tokenizer(
    source: DataSource, spool: Spool, kind: str, cache: Path, progress: Progress
) -> Tokenizer:
    """Return the tokenizer of a source; train a BPE on text that is never held out.

    Raises
    ------
    TooFewError
        When there is no such text.
    """
    made = source_tokenizer(source)
    if made is not None:
        return made
    if source.bpe_size is None:
        return ByteTokenizer()
    first = 0
    spans = spool.spans()
    key = b""
    if kind == DOCUMENTS:
        # The half that no share holds out. In hash order, that half is a random sample.
        first = int(np.searchsorted(spool.high, np.uint64(1 << 63)))
        spans = spans[first:]
    else:
        spans[:, 1] = [_half(spool, int(start), int(end)) for start, end in spans]
        key = b"first halves"
    sizes = np.cumsum(spans[:, 1] - spans[:, 0])
    n = _n_up_to(sizes, source.bpe_sample)
    if not n:
        raise TooFewError("no document would be left to train the tokenizer on")
    n_bytes = int(sizes[n - 1])
    halves = np.stack([spool.high[first : first + n], spool.low[first : first + n]])
    progress("training the tokenizer", 0, n_bytes)
    file = cached_bpe(
        texts_of(spool.text, spans[:n], source.bpe_sample),
        hashlib.sha256(halves.astype(">u8").tobytes() + key).hexdigest(),
        source.bpe_size,
        cache,
    )
    progress("training the tokenizer", n_bytes, n_bytes)
    return BpeTokenizer(file)


def never_held_out(spool: Spool, n_bytes: int) -> tuple[Spans, bytes]:
    """Return about ``n_bytes`` of text that no way to split the documents holds out, and its hash.

    These are the first halves of documents from the half that no share holds out, or of all
    documents if there is none in that half: then only the end of each document can be held out.
    """
    first = int(np.searchsorted(spool.high, np.uint64(1 << 63)))
    first = 0 if first == len(spool) else first
    spans = spool.spans(first)
    spans[:, 1] = [_half(spool, int(start), int(end)) for start, end in spans]
    n = _n_up_to(np.cumsum(spans[:, 1] - spans[:, 0]), n_bytes)
    halves = np.stack([spool.high[first : first + n], spool.low[first : first + n]])
    return spans[:n], hashlib.sha256(halves.astype(">u8").tobytes() + b"first halves").digest()


def _n_up_to(ends: NDArray[np.int64], n_bytes: int) -> int:
    """Return how many documents end within ``n_bytes``, at least one if there is one."""
    return min(len(ends), max(1, int(np.searchsorted(ends, n_bytes, side="right"))))


def texts_of(text: NDArray[np.uint8], spans: Spans, n_bytes: int) -> Iterator[bytes]:
    """Yield the text of documents to train a tokenizer on, at most 4 times ``n_bytes`` each."""
    for start, end in spans.tolist():
        limit = start + 4 * n_bytes
        yield text[start : end if end <= limit else character_start(text, limit)].tobytes()

"""Encode with tiktoken: the tokens of the tokenizers library, several times as fast.

tiktoken merges bytes in the order of ranks. A trained byte-level BPE numbers its tokens in the
order of its merges, so its vocabulary is a table of ranks unless two merges make the same token.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The pattern of the ByteLevel step of the tokenizers library, which is GPT-2's.
_WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
BLANK_BLOCK = 100_000
"""The regular expressions of tiktoken give up at about a million blanks in a row."""
TASK_BYTES = 256 << 10
"""Bytes of text that a thread encodes at a time."""

Ids = Callable[[str], list[int]]


def rank_encoder(tokenizer_json: str, end_of_document: str) -> Ids | None:
    """Return the function from text to tokens that tiktoken computes, if it can.

    Parameters
    ----------
    tokenizer_json : str
        A byte-level BPE as the tokenizers library writes it.
    end_of_document : str
        The token that no text has.

    Returns
    -------
    function or None
        None without tiktoken, or if its tokens could differ.
    """
    if importlib.util.find_spec("tiktoken") is None:
        return None
    import tiktoken

    model = json.loads(tokenizer_json)["model"]
    characters = byte_characters()
    ranks: dict[bytes, int] = {
        bytes(characters[character] for character in token): index
        for token, index in model["vocab"].items()
        if token != end_of_document
    }
    if not _is_in_rank_order(model["merges"], model["vocab"]):
        return None
    encoding = tiktoken.Encoding(
        "trained", pat_str=_WORDS, mergeable_ranks=ranks, special_tokens={}
    )
    encode: Ids = encoding.encode_ordinary
    return encode


def _is_in_rank_order(merges: Iterable[Any], vocabulary: Mapping[str, int]) -> bool:
    """Say whether each merge makes a token of its own, in the order of the tokens."""
    made = [
        vocabulary["".join(merge if isinstance(merge, list) else merge.split(" "))]
        for merge in merges
    ]
    return all(first < second for first, second in itertools.pairwise(made))


def byte_characters() -> dict[str, int]:
    """Return the byte of each character of the byte-level alphabet (GPT-2, `bytes_to_unicode`)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {
        **{chr(byte): byte for byte in shown},
        **{chr(256 + index): byte for index, byte in enumerate(hidden)},
    }


def has_long_blank(text: str) -> bool:
    """Say whether a text has a row of blanks on which tiktoken may give up."""
    # A stretch of two blocks holds a whole one; isspace returns at the first visible character.
    return len(text) >= BLANK_BLOCK and any(
        text[start : start + BLANK_BLOCK].isspace()
        for start in range(0, len(text) - BLANK_BLOCK + 1, BLANK_BLOCK)
    )


def encode_in_threads(
    encode: Ids, texts: Iterable[bytes], end_token: int, dtype: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """Yield the tokens of each text and its end token, in order; all cores encode.

    At most two tasks for each core wait, so memory is bounded.
    """
    n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2

    def run(task: list[bytes]) -> list[NDArray[Any]]:
        return [
            np.asarray([*encode(text.decode("utf-8")), end_token], dtype=dtype) for text in task
        ]

    with ThreadPoolExecutor(n_threads) as threads:
        tasks = batches(texts, TASK_BYTES)
        waiting = [threads.submit(run, task) for task in itertools.islice(tasks, 2 * n_threads)]
        while waiting:
            yield from waiting.pop(0).result()
            waiting += [threads.submit(run, task) for task in itertools.islice(tasks, 1)]


def batches(documents: Iterable[bytes], n_bytes: int) -> Iterator[list[bytes]]:
    """Yield the documents in lists of about ``n_bytes``."""
    batch: list[bytes] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= n_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

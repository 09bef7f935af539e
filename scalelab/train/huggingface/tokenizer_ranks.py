"""A rank file of tiktoken as a ``tokenizer.json``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from scalelab.corpus.merged_ranks import byte_characters
from scalelab.corpus.tokenizer_files import RankTokenizer
from scalelab.train.huggingface.tokenizer_parts import (
    bpe_model,
    byte_level,
    byte_level_steps,
    with_end,
)

_POSSESSIVE_COUNT = re.compile(r"(\{\d+(?:,\d*)?\})\+")


def ranks_json(tokenizer: RankTokenizer) -> dict[str, Any]:
    """Return the content of a ``tokenizer.json`` with the tokens, the merges and the pattern."""
    characters = {byte: character for character, byte in byte_characters().items()}

    def text(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    ranks = tokenizer.ranks
    merges = [
        [text(left), text(right)]
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
        if (pair := _merged(token, rank, ranks)) is not None
        for left, right in [pair]
    ]
    split = {
        "type": "Split",
        "pattern": {"Regex": _pattern(tokenizer.pattern)},
        "behavior": "Isolated",
        "invert": False,
    }
    content = byte_level_steps({"type": "Sequence", "pretokenizers": [split, byte_level()]})
    # tiktoken looks a whole word up before it merges bytes.
    content["model"] = bpe_model(
        {text(token): rank for token, rank in ranks.items()}, merges, ignore_merges=True
    )
    return with_end(content, tokenizer.end_token)


def _merged(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """Return the two tokens that merge to this one; None for a byte, or if no merge makes it."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
        first = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[first] >= rank:
            return None
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _pattern(pattern: str) -> str:
    """Return a pattern of tiktoken for the regular expressions of the tokenizers library.

    There, ``$`` also stands before a line break, and ``{1,3}+`` repeats the whole.
    """
    return _POSSESSIVE_COUNT.sub(r"\1", pattern).replace("$", r"\z")

"""Choose the final loss of a run among its logged values, and read its unit from its name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import UsageError, did_you_mean

NATS, BITS, BPB, PERPLEXITY = "nats", "bits", "bits-per-byte", "perplexity"
LOSS_UNITS = (NATS, BITS, BPB, PERPLEXITY)
LARGEST_NATS = 14.0
"""A uniform guess over a million tokens costs 13.8 nats."""
SMALLEST_NATS = 0.1

_HELD_OUT = r"(?:^|_)(?:val|valid|validation|eval|evaluation|test|heldout|held_out|dev)(?:_|$)"
_LOSS = r"(?:^|_)(?:loss|nll|ce|cross_entropy|xent)(?:_|$)"
_BPB = r"(?:^|_)(?:bpb|bits_per_byte)(?:_|$)"
_BITS = r"(?:^|_)(?:bits_per_token|bpt|bits_per_char|bpc)(?:_|$)"
_PPL = r"(?:^|_)(?:ppl|perplexity|perplexities)(?:_|$)"
_OTHER = (
    r"(?:^|_)(?:aux|balance|router|z|scale|time|lower|upper|std|stderr|min|max|best|ema|"
    r"norm|grad|hparam|count|runtime|second|samples|steps|kl|value|policy|reward|moe|mtp|distill)(?:_|$)"
)


def plain(name: str) -> str:
    """Return a name in lower case with one ``_`` for each other character."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def unit_of(name: str) -> str:
    """Return the unit of a loss, one of `LOSS_UNITS`, from its name."""
    word = plain(name)
    for pattern, unit in ((_BPB, BPB), (_BITS, BITS), (_PPL, PERPLEXITY)):
        if re.search(pattern, word):
            return unit
    return NATS


def is_held_out(name: str) -> bool:
    """Return whether a loss of this name is measured on held-out data."""
    return bool(re.search(_HELD_OUT, plain(name)))


def rank_losses(names: Iterable[str]) -> list[str]:
    """Return the names that are losses, the one to fit first.

    Held-out losses come before training losses; nats before bits per byte before perplexity;
    short names before long ones.
    """
    ranked = []
    for name in names:
        word = plain(name)
        unit = unit_of(name)
        if unit == NATS and not re.search(_LOSS, word):
            continue
        if re.search(_OTHER, word.replace("z_loss", "z")) or "acc" in word.split("_"):
            continue
        is_train = not is_held_out(name)
        ranked.append((is_train, LOSS_UNITS.index(unit), word.count("_"), len(word), name))
    return [name for *_, name in sorted(ranked)]


def checked_unit(unit: str) -> str:
    """Return a unit of losses that the user wrote.

    Raises
    ------
    UsageError
        If it is not known.
    """
    found = {"bpb": BPB, "ppl": PERPLEXITY, "bits_per_byte": BPB}.get(unit.lower(), unit.lower())
    if found not in LOSS_UNITS:
        raise UsageError(
            f"--loss-unit {unit}",
            f"one of {', '.join(LOSS_UNITS)}",
            f"{did_you_mean(unit, LOSS_UNITS)}Write for example --loss-unit bits-per-byte.",
        )
    return found


def in_nats(values: FloatArray, unit: str) -> FloatArray:
    """Return losses in nats per token; bits per byte stay as they are."""
    if unit == BITS:
        return values * math.log(2)
    if unit == PERPLEXITY:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(values)
    return values

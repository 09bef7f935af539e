"""Whether the losses of two sources compare: one metric, one text, and per token one tokenizer."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from scalelab.records.metric import BITS_PER_BYTE, Metric
from scalelab.records.types import Observations

YES, UNKNOWN, NO = "yes", "unknown", "no"
OF_SWEEP = "sweep"
"""First word of the source of rows that were trained here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparability:
    """Whether the losses of a source compare with those of the reference.

    Attributes
    ----------
    answer : {"yes", "unknown", "no"}
    reasons : tuple of str
        What differs, or what is not known; empty for yes.
    do : str
        What makes them comparable, with a command; empty for yes and for a law.
    """

    answer: str
    reasons: tuple[str, ...] = ()
    do: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"answer": self.answer, "reasons": list(self.reasons), "do": self.do or None}


def comparability(
    name: str, rows: Observations | None, reference: str, base: Observations | None
) -> Comparability:
    """Return whether the losses of two sources compare.

    Parameters
    ----------
    name, reference : str
        Names of the source and of the reference.
    rows, base : Observations or None
        Their runs; None for a law, which has no losses to compare.
    """
    laws = [each for each, of in ((name, rows), (reference, base)) if of is None]
    if rows is None or base is None:
        are = "is a law" if len(laws) == 1 else "are laws"
        return Comparability(answer=NO, reasons=(f"{' and '.join(laws)} {are} without runs",))
    different, unknown = _found(name, rows, reference, base)
    if not different and not unknown:
        return Comparability(answer=YES)
    return Comparability(
        answer=NO if different else UNKNOWN,
        reasons=tuple(different or unknown),
        do=_remedy(name, rows, reference, base),
    )


def _found(
    name: str, rows: Observations, reference: str, base: Observations
) -> tuple[list[str], list[str]]:
    """Return what differs and what is not known."""
    different: list[str] = []
    unknown: list[str] = []
    if rows.metric.text != base.metric.text:
        different.append(
            f"the losses of {name} are {_words(rows.metric)}, those of {reference} "
            f"{_words(base.metric)}"
        )
    ours, theirs = rows.evaluated, base.evaluated
    both = ((name, ours), (reference, theirs))
    is_per_byte = rows.metric.unit == base.metric.unit == BITS_PER_BYTE
    other_tokens = set(ours.tokenizers) != set(theirs.tokenizers)
    unstated: dict[str, list[str]] = {}
    if not is_per_byte:
        for each, of in both:
            if len(of.tokenizers) > 1:
                different.append(f"{each} has several tokenizers ({', '.join(of.tokenizers)})")
        without = [each for each, of in both if not of.tokenizers]
        if without:
            unstated.setdefault(" and ".join(without), []).append("the tokenizer")
        elif other_tokens:
            different.append(
                f"the losses are per token of different tokenizers ({', '.join(ours.tokenizers)} "
                f"and {', '.join(theirs.tokenizers)})"
            )
    without = [each for each, of in both if not of.texts]
    if without:
        unstated.setdefault(" and ".join(without), []).append("the evaluated text")
    elif is_per_byte and ours.sources and theirs.sources:
        # With another tokenizer, the tokens of the same documents have another fingerprint.
        if len({*ours.sources, *theirs.sources}) > 1:
            different.append(_texts(name, ours.sources, reference, theirs.sources))
    elif ours.is_named != theirs.is_named or (is_per_byte and other_tokens and not ours.is_named):
        unknown.append("whether both losses are of one text")
    elif len({*ours.texts, *theirs.texts}) > 1:
        if not ours.sources or ours.sources != theirs.sources:
            different.append(_texts(name, ours.texts, reference, theirs.texts))
        elif not other_tokens:
            different.append("the losses are of different held-out tokens of one text")
    unknown += [f"{' and '.join(things)} of {who}" for who, things in unstated.items()]
    return different, unknown


def _texts(name: str, ours: tuple[str, ...], reference: str, theirs: tuple[str, ...]) -> str:
    return (
        f"the losses are of different texts ({', '.join(ours)} of {name}, {', '.join(theirs)} of "
        f"{reference})"
    )


def _words(metric: Metric) -> str:
    return f"{metric.text} in {metric.unit}"


def _remedy(name: str, rows: Observations, reference: str, base: Observations) -> str:
    both = shlex.join([reference, name])
    ours, theirs = rows.evaluated, base.evaluated
    if len(ours.sources) == 1 and ours.sources == theirs.sources and rows.metric == base.metric:
        term = rows.metric.terms[0].name
        return (
            "The text is the same, so bits per byte compare: "
            f"`scalelab compare {both} --metric bpb:{term}`."
        )
    again = f"`scalelab compare {both} --metric bpb:both`"
    if all(each.source.startswith(OF_SWEEP) for each in (rows, base)):
        return (
            "To compare the losses, evaluate both on one text in bits per byte: "
            f"`scalelab evaluate {both} --eval-set both=text.txt`, then {again}. Runs without kept "
            "weights need a new sweep with --eval-set both=text.txt."
        )
    return (
        "To compare the losses, both need a loss on one text in bits per byte: a column "
        f"both_bits_per_byte in each table, then {again}. If text and tokenizer are the same, "
        "state them in the columns eval_fingerprint and tokenizer of each table."
    )

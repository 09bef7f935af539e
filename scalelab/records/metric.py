"""The metric of a fit: which loss of the runs it is about, in which unit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scalelab.errors import UsageError, did_you_mean

NATS, BITS_PER_BYTE, ERROR_RATE = "nats/token", "bits/byte", "error rate"
HELDOUT_SET = "heldout"
ALL = "all"
LOSS, BPB, TASK, ACCURACY = "loss", "bpb", "task", "acc"
UNITS = {LOSS: NATS, BPB: BITS_PER_BYTE, TASK: BITS_PER_BYTE, ACCURACY: ERROR_RATE}
"""Unit by kind of a term."""
KEYS = {NATS: "loss_nats", BITS_PER_BYTE: "loss_bits_per_byte", ERROR_RATE: "error_rate"}
"""Name of a loss in JSON and CSV by its unit."""
_SUFFIX = {BITS_PER_BYTE: "bits_per_byte", ERROR_RATE: "error_rate"}
FORMS = "SET, bpb:SET, task:NAME, acc:NAME, or a weighted mean such as 0.7*code+0.3*web"
SUM_TOLERANCE = 1e-6

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One evaluation set or task of a metric.

    Attributes
    ----------
    kind : str
        ``loss``, ``bpb`` (bits per byte of a set), ``task`` (bits per byte of the right answer) or
        ``acc`` (1 - accuracy).
    name : str
        The evaluation set or task.
    weight : float
        Share of the term in the mean; the shares of a metric sum to 1.
    """

    kind: str
    name: str
    weight: float = 1.0

    @property
    def text(self) -> str:
        """The term as it is written, without its weight."""
        return self.name if self.kind == LOSS else f"{self.kind}:{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """Which loss a fit is about.

    Attributes
    ----------
    text : str
        The metric as it is written after ``--metric``.
    terms : tuple of Term
        What it is the mean of; empty for ``all``.
    """

    text: str
    terms: tuple[Term, ...]

    @property
    def unit(self) -> str:
        """Unit of the values: ``nats/token``, ``bits/byte`` or ``error rate``."""
        return UNITS[self.terms[0].kind] if self.terms else ""

    @property
    def key(self) -> str:
        """Name of the values in JSON and CSV."""
        return KEYS.get(self.unit, "loss_nats")

    @property
    def label(self) -> str:
        """What the values are, for axes and tables, without the unit."""
        if self.is_heldout:
            return "loss"
        if len(self.terms) != 1:
            return f"mean of {self.text}" if self.terms else "loss of each set"
        term = self.terms[0]
        of = {LOSS: "loss on", BPB: "loss on", TASK: "loss of task", ACCURACY: "task"}
        return f"{of[term.kind]} {term.name}"

    @property
    def axis(self) -> str:
        """The label with the unit in brackets."""
        return f"{self.label} ({self.unit})"

    @property
    def is_heldout(self) -> bool:
        """Whether it is the loss on the held-out part of the training text, in any unit."""
        return [term.name for term in self.terms] == [HELDOUT_SET]

    @property
    def is_default(self) -> bool:
        """Whether it is the held-out loss in nats per token."""
        return self.text == HELDOUT_SET


HELDOUT = Metric(text=HELDOUT_SET, terms=(Term(kind=LOSS, name=HELDOUT_SET),))
HELDOUT_BPB = Metric(text=f"{BPB}:{HELDOUT_SET}", terms=(Term(kind=BPB, name=HELDOUT_SET),))
EVERY = Metric(text=ALL, terms=())


def with_unit(content: Any, metric: Metric) -> Any:
    """Return a JSON value whose keys name the metric's unit where they named nats."""
    if metric.unit == NATS:
        return content
    if isinstance(content, Mapping):
        return {
            re.sub(
                "loss_nats$",
                metric.key,
                re.sub("saves_nats$", f"saves_{_SUFFIX[metric.unit]}", str(name)),
            ): with_unit(each, metric)
            for name, each in content.items()
        }
    if isinstance(content, (list, tuple)):
        return [with_unit(each, metric) for each in content]
    return content


def parse_metric(text: str) -> Metric:
    """Return the metric that a user writes, such as ``bpb:code`` or ``0.7*code+0.3*web``.

    Raises
    ------
    UsageError
        If it cannot be read, if weights do not sum to 1, or for a mean of different units.
    """
    written = "".join(text.split())
    if written == ALL:
        return EVERY
    pairs = [_pair(part, text) for part in written.split("+")]
    given = [weight for weight, _ in pairs if weight is not None]
    if given and len(given) < len(pairs):
        raise UsageError(
            f"--metric {text}, where some terms have a weight and others have none",
            "a weight for every term, or for none",
            f"Write for example --metric {_equal([term for _, term in pairs])}.",
        )
    total = math.fsum(given)
    if given and (abs(total - 1) > SUM_TOLERANCE or min(given) <= 0):
        even = [Term(kind=t.kind, name=t.name, weight=abs(w or 0) / _size(given)) for w, t in pairs]
        raise UsageError(
            f"--metric {text}, whose weights sum to {total:g}",
            "weights above 0 that sum to 1",
            f"Write for example --metric {_words(even)}.",
        )
    share = 1 / len(pairs)
    terms = tuple(
        Term(kind=term.kind, name=term.name, weight=share if weight is None else weight)
        for weight, term in pairs
    )
    units = {UNITS[term.kind]: term for term in terms}
    if len(units) > 1:
        named = ", ".join(f"{term.text} in {unit}" for unit, term in units.items())
        first = terms[0]
        alike = [
            Term(kind=first.kind, name=t.name, weight=t.weight)
            if {first.kind, t.kind} <= {LOSS, BPB}
            else t
            for t in terms
        ]
        do = f"Write for example --metric {_words(alike)}."
        if len({UNITS[term.kind] for term in alike}) > 1:
            do = f"Fit one of them, for example --metric {first.text}."
        raise UsageError(
            f"--metric {text}, a mean of different units ({named})", "terms of one unit", do
        )
    names = [term.text for term in terms]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(
            f"--metric {text}, which has {twice} twice", "each term once", "Add its weights."
        )
    return Metric(text=_words(terms), terms=terms)


def _pair(part: str, text: str) -> tuple[float | None, Term]:
    """Return weight and term of ``0.7*bpb:code``."""
    weight, star, ref = part.rpartition("*")
    kind, colon, name = ref.rpartition(":")
    if not colon:
        kind = LOSS
    number: float | None = None
    if star:
        try:
            number = float(weight)
        except ValueError:
            number = math.nan
    if kind not in UNITS or (colon and kind == LOSS):
        kinds = (BPB, TASK, ACCURACY)
        raise UsageError(
            f"--metric {text}, where {kind or 'the kind'}: is not known",
            FORMS,
            f"{did_you_mean(kind, kinds, prefix='--metric ')}"
            f"Write for example --metric bpb:{name or 'code'}.",
        )
    if not _NAME.fullmatch(name) or (number is not None and not math.isfinite(number)):
        raise UsageError(
            f"--metric {text!r}, where {part!r} is not a metric",
            FORMS,
            "Write for example --metric code, --metric bpb:code or --metric all.",
        )
    return number, Term(kind=kind, name=name)


def _size(weights: list[float]) -> float:
    return math.fsum(map(abs, weights)) or 1.0


def _equal(terms: list[Term]) -> str:
    share = 1 / len(terms)
    return _words([Term(kind=t.kind, name=t.name, weight=share) for t in terms])


def _words(terms: list[Term] | tuple[Term, ...]) -> str:
    """Return terms as they are written after ``--metric``."""
    if len(terms) == 1:
        return terms[0].text
    if all(term.weight == 1 / len(terms) for term in terms):
        return "+".join(term.text for term in terms)
    return "+".join(f"{term.weight:.12g}*{term.text}" for term in terms)

"""Parts of a `RunSpec`: evaluation sets and sources of a mixture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from scalelab.corpus.eval_text import HELD_OUT, SET_NAME
from scalelab.errors import SpecError


@dataclass(frozen=True, slots=True)
class EvalSetRef:
    """A named evaluation set of a run.

    Attributes
    ----------
    name : str
        Matches `SET_NAME`; not `HELD_OUT`.
    fingerprint : str
        Content hash of its tokens.
    n_tokens : int
        Tokens that each evaluation predicts, at most; whole sequences are evaluated.
    """

    name: str
    fingerprint: str
    n_tokens: int

    def __post_init__(self) -> None:
        _require_set_name(self.name)
        require(self, "n_tokens", self.n_tokens >= 1, "a whole number from 1")


@dataclass(frozen=True, slots=True)
class SourceWeight:
    """A source of a mixture of data, and its share of the training tokens.

    Attributes
    ----------
    name : str
        Matches `SET_NAME`; not `HELD_OUT`.
    fingerprint : str
        Content hash of the source's training tokens.
    weight : float
        Share of the training tokens, 0 to 1.
    """

    name: str
    fingerprint: str
    weight: float

    def __post_init__(self) -> None:
        _require_set_name(self.name)
        object.__setattr__(self, "weight", float(self.weight))
        require(self, "weight", 0 <= self.weight <= 1, "a share, 0 to 1")


def require(spec: Any, name: str, holds: bool, allowed: str) -> None:
    """Raise SpecError unless a condition on a field holds; ``allowed`` says what is accepted."""
    if not holds:
        raise SpecError(
            f"{name} = {getattr(spec, name)!r}", allowed, f"Give {name} an accepted value."
        )


def _require_set_name(name: str) -> None:
    if not re.fullmatch(SET_NAME, name) or name == HELD_OUT:
        raise SpecError(
            f"evaluation set or source {name!r}",
            f"lower-case letters, digits and _, after a letter; not {HELD_OUT}, the part of the "
            "training text that every run evaluates",
            "Choose another name, for example code.",
        )

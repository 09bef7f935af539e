"""What the losses of some rows are of: the evaluated text and the tokenizer.

Losses of two sets of rows compare only if both are of one text, and per token only if the tokenizer
is the same too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedOn:
    """The evaluated text and the tokenizer of some rows, as far as they are known.

    Attributes
    ----------
    texts : tuple of str
        Fingerprints of the evaluated tokens, or names of published texts; empty if unknown.
    tokenizers : tuple of str
        Names of the tokenizers; empty if unknown.
    is_named : bool
        Whether ``texts`` are names, which cannot be compared with fingerprints.
    sources : tuple of str
        Fingerprints of the documents that the evaluated tokens were held out of, the same for every
        tokenizer; empty if unknown.
    """

    texts: tuple[str, ...] = ()
    tokenizers: tuple[str, ...] = ()
    is_named: bool = False
    sources: tuple[str, ...] = ()


UNKNOWN = EvaluatedOn()

"""The command that fits without the outliers which a warning names.

The warning names the runs; the command line, the report and the page offer the same refit. Whether
to leave a run out is the user's decision: rows that merely do not fit are part of the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalelab.records.names import names_of_text, text_of_names
from scalelab.units import plural

if TYPE_CHECKING:
    from scalelab.fit.outcome import FitWarning

CODE = "outliers"
EXCLUDE = "--exclude"
MOST_SHARE = 0.1
"""Largest share of the rows that is offered: more are the noise, or a law that does not fit."""
CONDITION = (
    "Do this only if something was wrong with them, such as a fault in training. Without runs that "
    "are merely unlucky, the intervals are too narrow."
)


def outliers_to_exclude(warnings: Sequence[FitWarning], n_rows: int) -> tuple[str, ...]:
    """Return the runs that can be left out together; none if there are too many.

    Parameters
    ----------
    warnings : sequence of FitWarning
    n_rows : int
        Fitted rows.
    """
    names = next((each.runs for each in warnings if each.code == CODE), ())
    return names if len(names) <= MOST_SHARE * n_rows else ()


def refit_words(options: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Return the words of the fit that leaves these runs out too; none without names.

    Parameters
    ----------
    options : sequence of str
        Options that select the runs and the law, such as ``--sweep demo``.
    names : sequence of str
        Runs, or lines of a table.
    """
    if not names:
        return ()
    rest, before = list(options), tuple[str, ...]()
    if EXCLUDE in rest:
        at = rest.index(EXCLUDE)
        before = names_of_text(rest[at + 1])
        del rest[at : at + 2]
    return ("scalelab", "fit", *rest, EXCLUDE, text_of_names((*before, *names)))


def offer_words(names: Sequence[str]) -> str:
    """Return what the refit does, such as ``exclude these 3 runs and refit``."""
    what = "this run" if len(names) == 1 else f"these {plural(len(names), 'run')}"
    return f"exclude {what} and refit"


def refit_sentence(names: Sequence[str]) -> str:
    """Return what the command of `refit_words` does, and when to run it."""
    return f"The next command can {offer_words(names)}. {CONDITION}"

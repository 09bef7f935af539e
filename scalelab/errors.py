"""Errors that scalelab raises on purpose.

Each one says what was given, what is accepted and what to do. It also sets the exit code of the
command::

    ScalelabError                base class; any other exception is a bug and exits with 1
    |- UsageError            2   invalid option, argument or setting
    |  |- UnknownHardwareError   a device that is not in the hardware table
    |- DataError             3   a file, table or corpus that cannot be used
    |  |- SpecError          3   a run folder, plan or sweep file with contradictory content
    |- NotIdentifiedError    4   the rows do not determine the law
    |- RunsFailedError       5   some runs of the sweep failed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

EXIT_OK = 0
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141

SHOWN_NAMES = 8
"""Names that a message lists when a table can have many of them."""
FIRST_SWEEP = "`scalelab sweep isoflop --budgets 1e12..1e13`"
"""A small sweep that runs on any machine, for advice in messages."""


class ScalelabError(Exception):
    """Base class of every error raised on purpose.

    Parameters
    ----------
    given : str
        The value that is wrong, as the user wrote it.
    allowed : str
        What is accepted instead.
    do : str
        What to do next, as a whole sentence.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, given: str, allowed: str, do: str) -> None:
        super().__init__(given, allowed, do)
        self.given = given
        self.allowed = allowed
        self.do = do

    def __str__(self) -> str:
        return f"{self.given}; expected {self.allowed}. {self.do}"

    def as_dict(self) -> dict[str, str]:
        """Return the three parts with the keys that ``--json`` prints."""
        return {"given": self.given, "allowed": self.allowed, "do": self.do}


class UsageError(ScalelabError):
    """Invalid option, argument or setting."""

    exit_code = 2


class UnknownHardwareError(UsageError):
    """A device that is not in the hardware table."""


class DataError(ScalelabError):
    """A file, table or corpus that cannot be used."""

    exit_code = 3


class SpecError(DataError):
    """A run folder, plan or sweep file with contradictory content."""


class NotIdentifiedError(ScalelabError):
    """The rows do not determine the requested law."""

    exit_code = 4


class RunsFailedError(ScalelabError):
    """Some runs of a sweep failed."""

    exit_code = 5


def did_you_mean(word: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return ``Did you mean ..? `` with the most similar known word, empty if none is similar."""
    by_case = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), list(by_case), n=1)
    return f"Did you mean {prefix}{by_case[near[0]]}? " if near else ""


def listed(names: Iterable[str], near: str = "") -> str:
    """Return names for a message, the most similar to ``near`` first, and how many are left out."""
    every = sorted(names, key=lambda name: -difflib.SequenceMatcher(None, name, near).ratio())
    left = len(every) - SHOWN_NAMES
    return ", ".join(every[:SHOWN_NAMES]) + (f" and {left:,} more" if left > 0 else "")


def near_file(path: Path) -> str:
    """Return ``Did you mean ..? `` with the most similar file of the same folder, or nothing."""
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return ""
    start = "" if str(path.parent) == "." else f"{path.parent}/"
    return did_you_mean(path.name, names, prefix=start)


def unwritable(place: Path, what: str, error: OSError) -> DataError:
    """Return the error for a place in the results folder that cannot be written."""
    return DataError(
        f"{place}, where {what} cannot be written ({error.strerror or error})",
        "a results folder that this user may write to, on a disk with free space",
        "Free disk space, or choose another folder, for example --results /data/results.",
    )

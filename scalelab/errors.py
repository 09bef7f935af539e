"""Errors that scalelab raises on purpose.

Each says what was given, what is allowed and what to do, and carries the exit code of the command
that ends with it::

    ScalelabError            1   a fault of ours
    |- UsageError            2   an option or argument that cannot be meant
    |- DataError             3   a file, table or corpus that cannot be used
    |  |- SpecError          3   a run folder, plan or sweep file that does not hold together
    |- NotIdentifiedError    4   the rows do not determine the law
    |- RunsFailedError       5   some runs of the sweep did not end as done
    |- UnknownHardwareError  2   a device that is not in the hardware table
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

EXIT_OK = 0
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


class ScalelabError(Exception):
    """Base of every error raised on purpose.

    Parameters
    ----------
    given : str
        What was found, quoted as the user wrote it.
    allowed : str
        What is accepted in its place.
    do : str
        A whole sentence: what to do next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, given: str, allowed: str, do: str) -> None:
        super().__init__(given, allowed, do)
        self.given = given
        self.allowed = allowed
        self.do = do

    def __str__(self) -> str:
        return f"got {self.given}; expected {self.allowed}. {self.do}"

    def as_dict(self) -> dict[str, str]:
        """Return the three parts under the keys that ``--json`` prints."""
        return {"given": self.given, "allowed": self.allowed, "do": self.do}


class UsageError(ScalelabError):
    """An option, argument or setting that cannot be meant."""

    exit_code = 2


class UnknownHardwareError(UsageError):
    """A device whose peak, power or price is not in the hardware table."""


class DataError(ScalelabError):
    """A file, table or corpus that cannot be used."""

    exit_code = 3


class SpecError(DataError):
    """A run folder, plan or sweep file that does not hold together."""


class NotIdentifiedError(ScalelabError):
    """The rows do not determine the law that was asked for."""

    exit_code = 4


class RunsFailedError(ScalelabError):
    """Some runs of a sweep did not end as done."""

    exit_code = 5


def unwritable(place: Path, what: str, error: OSError) -> DataError:
    """Return the error for a place in the results folder where the system lets nothing be kept."""
    return DataError(
        f"{place}, where {what} cannot be written ({error.strerror or error})",
        "a results folder on a disk with room, which this user may write to",
        "Make room, or name another folder with --results.",
    )

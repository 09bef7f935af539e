"""The one error of this package (the lowest floor, so it has its own)."""

from __future__ import annotations


class KernelUnavailableError(RuntimeError):
    """A kernel was asked for where it cannot run.

    Parameters
    ----------
    given : str
        What was asked for, and where.
    allowed : str
        Where it could run.
    do : str
        A whole sentence: what to do next.
    """

    def __init__(self, given: str, allowed: str, do: str) -> None:
        super().__init__(given, allowed, do)
        self.given = given
        self.allowed = allowed
        self.do = do

    def __str__(self) -> str:
        return f"got {self.given}; expected {self.allowed}. {self.do}"

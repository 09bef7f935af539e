"""The errors of this package, which does not depend on scalelab."""

from __future__ import annotations


class KernelUnavailableError(RuntimeError):
    """A kernel was requested where it cannot run.

    Parameters
    ----------
    given : str
        What was requested, and where.
    allowed : str
        Where it can run.
    do : str
        What to do next, as a full sentence.
    """

    def __init__(self, given: str, allowed: str, do: str) -> None:
        super().__init__(given, allowed, do)
        self.given = given
        self.allowed = allowed
        self.do = do

    def __str__(self) -> str:
        return f"got {self.given}; expected {self.allowed}. {self.do}"


def refuse_softcap(softcap: float) -> None:
    """Raise if a head without a cap of the logits is asked for one.

    Raises
    ------
    KernelUnavailableError
    """
    if softcap:
        raise KernelUnavailableError(
            f"softcap = {softcap:g} for a fused head",
            "softcap = 0, or the reference operations in fp32 or bf16",
            "Use kernels = reference.",
        )

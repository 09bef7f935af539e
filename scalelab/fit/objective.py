"""What a fit minimises: which residual, which penalty, how rows are weighted.

The value of every objective is a plain sum over rows of ``rho(r)``; see `Objective`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scalelab.errors import UsageError

Residual = Literal["log", "linear"]
Loss = Literal["huber", "ls", "lad", "likelihood"]

RESIDUALS: tuple[Residual, ...] = ("log", "linear")
LOSSES: tuple[Loss, ...] = ("huber", "ls", "lad", "likelihood")
DEFAULT_DELTA = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    r"""Sum over rows of :math:`w_i\,\rho(r_i)`.

    Attributes
    ----------
    residual : {"log", "linear"}
        ``r = log(predicted) - log(observed)``, or ``predicted - observed``.
    loss : {"huber", "ls", "lad", "likelihood"}
        ``huber``: r^2/2 where abs(r) <= delta, else delta (abs(r) - delta/2).
        ``ls``: r^2/2. ``lad``: abs(r).
        ``likelihood``: minus the log-likelihood of r/s under the density proportional to
        exp(-huber(r/s)), whose scale s is fitted as well; delta is then in units of s, so that a
        small delta is a Laplace and a large one a Gaussian.
    delta : float or None
        Where Huber turns from square to absolute; None takes the default 1e-3 for ``huber`` and
        ``likelihood``. Ignored by ``ls`` and ``lad``.
    overprediction : float
        Factor on rho where the law predicts more than was observed. Above 1 the fit leans to the
        lower envelope, for ladders some of whose rungs are under-tuned (their loss is too high).
    weight : str or None
        Column of row weights; None weighs all rows alike.

    Raises
    ------
    UsageError
        For an unknown residual or loss, or a delta or factor that is not finite and positive.
    """

    residual: Residual = "log"
    loss: Loss = "huber"
    delta: float | None = DEFAULT_DELTA
    overprediction: float = 1.0
    weight: str | None = None

    def __post_init__(self) -> None:
        if self.delta is None:
            # said or not, one objective: two that are the same compare equal
            object.__setattr__(self, "delta", DEFAULT_DELTA)
        for what, given, allowed in (
            ("residual", self.residual, RESIDUALS),
            ("loss", self.loss, LOSSES),
        ):
            if given not in allowed:
                raise UsageError(
                    f"{what} {given!r}", f"one of {', '.join(allowed)}", f"Choose a {what}."
                )
        for what, number in (("delta", self.delta), ("overprediction", self.overprediction)):
            if number is not None and not (math.isfinite(number) and number > 0):
                raise UsageError(
                    f"{what} = {number}", "a finite number above zero", f"Give another {what}."
                )

    @property
    def threshold(self) -> float:
        """Huber's delta in force: 0 for least absolute deviations, infinity for least squares."""
        if self.loss == "ls":
            return math.inf
        if self.loss == "lad":
            return 0.0
        assert self.delta is not None
        return self.delta

"""The objective of a fit: residual, penalty and row weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scalelab.errors import UsageError, did_you_mean

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
        Residual at which Huber's loss changes from squared to absolute; None uses the default 1e-3.
        Ignored by ``ls`` and ``lad``.
    overprediction : float
        Factor on rho where the predicted value is above the observed one. Values above 1 move the
        fit towards the lower envelope, for runs of which some are under-tuned (loss too high).
    weight : str or None
        Column of row weights; None gives all rows equal weight.

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
            # An explicit and an implicit default compare equal.
            object.__setattr__(self, "delta", DEFAULT_DELTA)
        for what, given, allowed in (
            ("residual", self.residual, RESIDUALS),
            ("loss", self.loss, LOSSES),
        ):
            if given not in allowed:
                raise UsageError(
                    f"{what} {given!r}",
                    f"one of {', '.join(allowed)}",
                    f"{did_you_mean(given, allowed)}Use for example --{what} {allowed[0]}.",
                )
        for what, number in (("delta", self.delta), ("overprediction", self.overprediction)):
            if number is not None and not (math.isfinite(number) and number > 0):
                raise UsageError(
                    f"{what} = {number}",
                    "a finite number above 0",
                    f"Use for example --{what} {DEFAULT_DELTA if what == 'delta' else 3}.",
                )

    @property
    def threshold(self) -> float:
        """Huber's delta: 0 for least absolute deviations, infinity for least squares."""
        if self.loss == "ls":
            return math.inf
        if self.loss == "lad":
            return 0.0
        assert self.delta is not None
        return self.delta

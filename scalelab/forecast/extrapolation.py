"""What the fitted runs span, and which predictions lie so far outside that they must say so."""

from __future__ import annotations

from dataclasses import dataclass

from scalelab.fit.outcome import FitWarning
from scalelab.records.types import Observations
from scalelab.theory.accounting import train_flops_6nd
from scalelab.units import format_quantity

FAR = 100.0
"""Times beyond the runs, in FLOPs, N or D, from which a prediction says so in its first line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedRange:
    """What the fitted runs span.

    Attributes
    ----------
    flops : float
        Compute of the largest run as 6 N D, whatever the table's own convention.
    n_params, n_tokens : (float, float)
        Smallest and largest N and D.
    """

    flops: float
    n_params: tuple[float, float]
    n_tokens: tuple[float, float]

    def far(
        self, *, n_params: float | None, n_tokens: float | None, flops: float | None
    ) -> tuple[str, ...]:
        """Return in words how a run lies more than `FAR` times outside; empty where it does not."""
        found = []
        for name, value, (low, high) in (
            ("FLOPs", flops, (0.0, self.flops)),
            ("N", n_params, self.n_params),
            ("D", n_tokens, self.n_tokens),
        ):
            if value is not None and value > FAR * high:
                found.append(f"{format_quantity(value / high)} times beyond the largest in {name}")
            elif value is not None and FAR * value < low:
                found.append(f"{format_quantity(low / value)} times below the smallest in {name}")
        return tuple(found)


def fitted_range(rows: Observations) -> FittedRange:
    """Return what these rows span."""
    return FittedRange(
        flops=float(train_flops_6nd(rows.n_params, rows.n_tokens).max()),
        n_params=(float(rows.n_params.min()), float(rows.n_params.max())),
        n_tokens=(float(rows.n_tokens.min()), float(rows.n_tokens.max())),
    )


def far_warning(what: str, far: tuple[str, ...]) -> FitWarning:
    """Return the warning of a run that lies far outside the fitted ones."""
    return FitWarning(
        code="extrapolation",
        message=(
            f"{what} lies outside the runs: {', '.join(far)} (the limit for a plain answer is "
            f"{FAR:g} times). The interval covers noise in the fitted runs, not a change of the "
            "law on the way. Add runs on that side."
        ),
    )

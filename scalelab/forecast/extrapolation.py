"""Ranges of the fitted runs, and warnings for predictions far outside them."""

from __future__ import annotations

from dataclasses import dataclass

from scalelab.fit.outcome import FitWarning
from scalelab.records.types import Observations
from scalelab.theory.accounting import train_flops_6nd
from scalelab.units import format_quantity

FAR = 100.0
"""Factor beyond the runs, in FLOPs, N or D, from which a prediction carries a warning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedRange:
    """Ranges of FLOPs, N and D of the fitted runs.

    Attributes
    ----------
    flops : float
        Compute of the largest run as 6 N D, for any convention of the table.
    n_params, n_tokens : (float, float)
        Smallest and largest N and D.
    """

    flops: float
    n_params: tuple[float, float]
    n_tokens: tuple[float, float]

    def far(
        self, *, n_params: float | None, n_tokens: float | None, flops: float | None
    ) -> tuple[str, ...]:
        """Return phrases that say how far outside a run is; empty within a factor of `FAR`."""
        found = []
        for name, value, (low, high) in (
            ("FLOPs", flops, (0.0, self.flops)),
            ("N", n_params, self.n_params),
            ("D", n_tokens, self.n_tokens),
        ):
            if value is not None and value > FAR * high:
                found.append(f"{format_quantity(value / high)}x the largest {name}")
            elif value is not None and FAR * value < low:
                found.append(f"{format_quantity(low / value)}x below the smallest {name}")
        return tuple(found)


def fitted_range(rows: Observations) -> FittedRange:
    """Return the ranges of these rows."""
    return FittedRange(
        flops=float(train_flops_6nd(rows.n_params, rows.n_tokens).max()),
        n_params=(float(rows.n_params.min()), float(rows.n_params.max())),
        n_tokens=(float(rows.n_tokens.min()), float(rows.n_tokens.max())),
    )


def far_warning(what: str, far: tuple[str, ...]) -> FitWarning:
    """Return the warning of a run far outside the fitted ones."""
    return FitWarning(
        code="extrapolation",
        message=(
            f"{what} is far outside the fitted runs: {', '.join(far)} (warning above {FAR:g}x). "
            "The interval covers noise of the runs, not a change of the law in between. Add runs "
            "closer to it."
        ),
    )

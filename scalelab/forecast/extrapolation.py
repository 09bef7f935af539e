"""Ranges of the fitted runs, and warnings for predictions far outside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scalelab.fit.outcome import FitWarning
from scalelab.records.types import Observations
from scalelab.theory.accounting import train_flops_6nd
from scalelab.units import format_times

SAME = 1.5
"""A largest budget within this factor of the largest run stands for it."""
EXTRAPOLATION_LIMIT = 100.0
"""Ratio to the fitted range of FLOPs, N or D above which a prediction has a warning."""
ROUNDED = 1.02
"""Factor between a compute and that of a run whose N and D were rounded by who typed them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedRange:
    """Ranges of FLOPs, N and D of the fitted runs.

    Attributes
    ----------
    flops : float
        Largest compute: that of the largest run as 6 N D, for any convention of the table, or the
        largest budget where it is within a factor of `SAME` of that.
    n_params, n_tokens : (float, float)
        Smallest and largest N and D.
    least_flops : float
        Compute of the smallest run as 6 N D; 0 if it is not known.
    largest : str
        ``run`` or ``budget``: what ``flops`` is of.
    """

    flops: float
    n_params: tuple[float, float]
    n_tokens: tuple[float, float]
    least_flops: float = 0.0
    largest: str = "run"

    def describe_distance(self, flops: float) -> str:
        """Return how far a compute, as 6 N D, is from the fitted runs, as a sentence."""
        if flops > ROUNDED * self.flops:
            times = format_times(flops / self.flops)
            return f"Extrapolation: {times} the FLOPs of the largest {self.largest}."
        if ROUNDED * flops < self.least_flops:
            times = format_times(self.least_flops / flops)
            return f"Extrapolation: {times} below the FLOPs of the smallest run."
        return "Within the FLOPs of the runs."

    def describe_extrapolation(
        self, *, n_params: float | None, n_tokens: float | None, flops: float | None
    ) -> tuple[str, ...]:
        """Return a phrase for each of FLOPs, N and D that exceeds `EXTRAPOLATION_LIMIT`."""
        found = []
        for name, value, (low, high) in (
            (f"the FLOPs of the largest {self.largest}", flops, (0.0, self.flops)),
            ("the largest N", n_params, self.n_params),
            ("the largest D", n_tokens, self.n_tokens),
        ):
            if value is not None and value > EXTRAPOLATION_LIMIT * high:
                found.append(f"{format_times(value / high)} {name}")
            elif value is not None and EXTRAPOLATION_LIMIT * value < low:
                found.append(f"{format_times(low / value)} below the smallest {name[-1]}")
        return tuple(found)


def fitted_range(rows: Observations) -> FittedRange:
    """Return the ranges of these rows."""
    product = train_flops_6nd(rows.n_params, rows.n_tokens)
    run, budget = float(product.max()), math.nan
    if rows.budget is not None and np.isfinite(rows.budget).any():
        budget = float(np.nanmax(rows.budget))
    is_budget = 1 / SAME <= budget / run <= SAME
    return FittedRange(
        flops=budget if is_budget else run,
        largest="budget" if is_budget else "run",
        least_flops=float(product.min()),
        n_params=(float(rows.n_params.min()), float(rows.n_params.max())),
        n_tokens=(float(rows.n_tokens.min()), float(rows.n_tokens.max())),
    )


def extrapolation_warning(what: str, distances: tuple[str, ...]) -> FitWarning:
    """Return the warning about a run that is beyond the fitted range by these distances."""
    return FitWarning(
        code="extrapolation",
        message=(
            f"{what} is far outside the fitted runs: {', '.join(distances)} (warning above "
            f"{EXTRAPOLATION_LIMIT:g}x). The interval covers noise of the runs, not a change of "
            "the law in between. Add runs closer to it."
        ),
    )

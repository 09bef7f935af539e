"""The verdict on an answer and the warnings that it is based on, in one place.

`fit`, `predict`, `decide`, `compare`, the report and the page show this verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalelab.fit.outcome import FitWarning
from scalelab.units import format_quantity

if TYPE_CHECKING:
    from scalelab.forecast.allocate import Forecast

WIDE = 10.0
"""Ratio of the limits of the compute-optimal N above which an answer has a warning."""
SOUND, WITH_WARNINGS, NOT_IDENTIFIED = "sound", "with warnings", "not identified"
NOTES = ("rejected_rows", "unfinished_runs", "excluded_", "approach_", "derived_", "unstated_")
"""Beginnings of the codes of warnings that do not change the verdict: they state what was read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How sound an answer is.

    Attributes
    ----------
    label : str
        One of `SOUND`, `WITH_WARNINGS`, `NOT_IDENTIFIED`.
    warnings : tuple of FitWarning
        What it is based on, most serious first.
    """

    label: str
    warnings: tuple[FitWarning, ...]

    def has(self, code: str) -> bool:
        """Return whether a warning of this code is among them."""
        return any(each.code == code for each in self.warnings)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object: the label and the codes of its warnings."""
        return {"label": self.label, "warnings": [each.code for each in self.warnings]}


def verdict_on(
    warnings: Sequence[FitWarning], *, forecast: Forecast | None = None, has_answer: bool = True
) -> Verdict:
    """Return the verdict on an answer.

    Parameters
    ----------
    warnings : sequence of FitWarning
        All warnings of the answer, most serious first; `NOTES` are left out.
    forecast : Forecast, optional
        The answer, whose distance from the runs and wide optimum are warnings too.
    has_answer : bool
        False if the runs do not determine the answer.
    """
    grave = tuple(each for each in warnings if not each.code.startswith(NOTES))
    if forecast is not None:
        from scalelab.forecast.allocate import extrapolation_warnings

        own = (*extrapolation_warnings([forecast]), *wide_optimum(forecast))
        grave = tuple(dict.fromkeys((*own, *grave)))
    if not has_answer:
        return Verdict(label=NOT_IDENTIFIED, warnings=grave)
    return Verdict(label=WITH_WARNINGS if grave else SOUND, warnings=grave)


def wide_optimum(forecast: Forecast) -> tuple[FitWarning, ...]:
    """Return a warning if the limits of the compute-optimal N are far apart."""
    size = forecast.n_params
    if size is None or not size.high > WIDE * size.low > 0:
        return ()
    return (
        FitWarning(
            code="wide_optimum",
            message=(
                f"At {forecast.asked} the compute-optimal N lies between "
                f"{format_quantity(size.low)} and {format_quantity(size.high)}: these runs "
                "constrain it poorly. Add runs at larger budgets, with sizes on both sides of the "
                "minimum."
            ),
        ),
    )

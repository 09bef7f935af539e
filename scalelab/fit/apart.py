"""Notes on approaches whose exponent differs visibly from that of approach 3.

A table or figure that shows them side by side says why; the answer uses none of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scalelab.fit.envelope import EnvelopeFit
from scalelab.fit.intervals import Interval
from scalelab.fit.isoflop import IsoflopFit
from scalelab.fit.outcome import FitWarning
from scalelab.fit.power_law import PowerLaw

CODE = "approach_apart"
"""The code of these notes."""
VISIBLE = 0.05
"""Difference of exponents from which a reader asks why, even if the intervals overlap."""
WHY = {
    "1, the envelope,": (
        "It takes the lowest loss of all training curves at each compute. Losses before the end of "
        "a schedule are too high, and few sizes make that line uneven, which biases the exponent."
    ),
    "2, the parabolas,": (
        "Parabolas are biased where the grid is wide, off centre or drifting, or has few budgets."
    ),
    "2 by local minima": "It follows a few points around each minimum, so noise moves it.",
}
"""What biases each approach."""


def apart_notes(
    a: Interval | None,
    isoflop: IsoflopFit,
    envelope: EnvelopeFit,
    local: PowerLaw | None,
) -> list[FitWarning]:
    """Return a note on each approach whose exponent a differs visibly from that of approach 3.

    Either their intervals do not overlap, or the difference is `VISIBLE` although they do.

    Parameters
    ----------
    a : Interval or None
        Exponent of N_opt by approach 3; None if the law has none or is not identified.
    isoflop, envelope : IsoflopFit, EnvelopeFit
        Approaches 2 and 1.
    local : PowerLaw or None
        N_opt through the local minima.
    """
    if a is None or not math.isfinite(a.low + a.high):
        return []
    found = []
    laws = envelope.n_law, isoflop.n_law, local
    for (name, why), law in zip(WHY.items(), laws, strict=True):
        if law is None or law.low is None or law.high is None:
            continue
        is_apart = law.low > a.high or law.high < a.low
        if not is_apart and abs(law.exponent - a.value) < VISIBLE:
            continue
        how = (
            "they differ by more than their intervals"
            if is_apart
            else "their intervals overlap, so the difference can be chance"
        )
        found.append(
            FitWarning(
                code=CODE,
                message=(
                    f"Approach {name} has a = {_words(law.interval)}, and approach 3 "
                    f"{_words(a)}: {how}. {why} The answer does not use it."
                ),
            )
        )
    return found


def apart_words(warnings: Sequence[FitWarning]) -> list[str]:
    """Return the texts of these notes among the warnings of a fit."""
    return [each.message for each in warnings if each.code == CODE]


def _words(a: Interval) -> str:
    return f"{a.value:.3f} [{a.low:.3f}, {a.high:.3f}]"

"""Numbers and intervals as the pages of ``fit`` and ``predict`` print them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scalelab.units import format_quantity

if TYPE_CHECKING:
    from scalelab.fit.intervals import Interval


def interval_text(interval: Interval | None) -> str:
    """Return a value with its limits, or a dash."""
    if interval is None or not math.isfinite(interval.value):
        return "-"
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"{interval.value:.4f}"
    digits = _digits(interval.low, interval.high)
    value = figure_text(interval.value, max(4, digits))
    return f"{value}{bounds_text(interval.low, interval.high, digits)}"


def span_text(interval: Interval, digits: int) -> str:
    """Return the limits of an interval in brackets."""
    return bounds_text(interval.low, interval.high, digits)


def bounds_text(low: float, high: float, digits: int = 4) -> str:
    """Return limits in brackets with enough digits to show their distance."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    digits = _digits(low, high, digits)
    return f" [{figure_text(low, digits)}, {figure_text(high, digits)}]"


def figure_text(value: float, digits: int) -> str:
    """Return a number with this many significant digits, including trailing zeros."""
    return f"{value:#.{digits}g}".rstrip(".")


def exponent_text(interval: Interval) -> str:
    """Return an exponent with its limits, in as many digits as these need."""
    value = figure_text(interval.value, _digits(interval.low, interval.high))
    return f"{value}{span_text(interval, 3)}"


def _digits(low: float, high: float, least: int = 3) -> int:
    """Return the digits that show an interval's width to two digits, at least ``least``."""
    width = high - low
    if not (math.isfinite(width) and width > 0):
        return least
    return min(9, max(least, 2 + math.floor(math.log10(max(abs(low), abs(high)) / width))))


def ratio_span(ratio: Interval) -> str:
    """Return the limits of a ratio as changes in per cent."""
    if not math.isfinite(ratio.low):
        return ""
    return f", confidence interval {100 * (ratio.low - 1):+.1f} to {100 * (ratio.high - 1):+.1f} %"


def limits(low: float, high: float, words: str) -> str:
    """Return the limits of a loss after their name, or nothing without them."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f", {words} {loss_text(low)} to {loss_text(high)}"


def size_text(size: Interval | None) -> str:
    """Return a size with its limits."""
    if size is None:
        return ""
    if not math.isfinite(size.low) or size.low == size.high:
        return format_quantity(size.value)
    return (
        f"{format_quantity(size.value)} [{format_quantity(size.low)}, {format_quantity(size.high)}]"
    )


def loss_text(value: float, unit: str = "") -> str:
    """Return a loss with the digits that people compare, and its unit."""
    words = f"{value:.4f}" if 0.1 <= abs(value) < 1000 else f"{value:.4g}"
    return f"{words} {unit}".rstrip()

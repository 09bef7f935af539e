"""Parse and format quantities, ranges, durations and money, in one notation everywhere.

`parse_quantity` reads ``1e18``, ``7B``, ``1.2T``, ``7_000``; `parse_range` reads ``1e18..1e20``
(two points per decade, both ends included), ``1e18..1e20:5`` (five points) and ``1e18,3e18``.
`parse_quantity` reads back what `format_quantity` prints, to the digits shown.
"""

from __future__ import annotations

import math
import re

from scalelab.errors import UsageError

SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
POINTS_PER_DECADE = 2
RANGE_DIGITS = (2, 3, 4, 5, 6)
MOST_ROUNDED = 0.15
"""Largest shift of a point by rounding, as a share of the step between points."""

ENERGY_UNITS = {1e6: "GWh", 1e3: "MWh", 1.0: "kWh", 1e-3: "Wh"}
SCALE_WORDS = {"thousand": "K", "million": "M", "billion": "B", "trillion": "T"}
_NUMBER = re.compile(
    r"\$?(?P<number>[+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:e[+-]?\d+)?)"
    r"\s*(?P<suffix>[kmbt](?![a-z])|thousand|million|billion|trillion)?"
    r"\s*(?:flops?|tokens?|param(?:eter)?s?)?",
    re.ASCII | re.IGNORECASE,
)
_COUNT = re.compile(r"[0-9]{1,9}")
_QUANTITY_HELP = "a number above zero such as 1e18, 7B, 1.2T or 7_000"
_RANGE_HELP = "LOW..HIGH, LOW..HIGH:COUNT or a list such as 1e18,3e18"


def parse_quantity(text: str | float, *, what: str = "quantity") -> float:
    """Return the number written in ``text``.

    Parameters
    ----------
    text : str or float
        ``1e18``, ``7B``, ``1.2T``, ``7_000``; suffixes K, M, B, T are powers of a thousand. Words
        are read too: ``2 million``, ``8e12 FLOP``, ``20B tokens``, ``$1M``.
    what : str
        Name of the quantity in error messages.

    Raises
    ------
    UsageError
        When the text is not a finite number above zero.
    """
    match = _NUMBER.fullmatch(str(text).strip())
    value = math.nan
    if match:
        suffix = (match["suffix"] or "").lower()
        scale = SUFFIXES.get(SCALE_WORDS.get(suffix, suffix.upper()), 1.0)
        value = float(match["number"].replace("_", "")) * scale
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{what} {str(text)!r}", _QUANTITY_HELP, "Write a number, for example 7B.")
    return value


def parse_range(text: str, *, what: str = "range") -> tuple[float, ...]:
    """Return the increasing quantities of a range, geometrically spaced.

    Inner points are rounded to two significant digits, or to more if that is needed for even
    spacing. The ends stay as written.

    Raises
    ------
    UsageError
        When an end is missing or not a quantity, the range is descending, or the count is below 2.
    """
    text = str(text).strip()
    if ".." not in text:
        parts = text.split(",")
        name = what if len(parts) == 1 else f"{what} {text!r} with"
        values = tuple(parse_quantity(part, what=name) for part in parts)
        if len({round_significant(value, 6) for value in values}) < len(values):
            raise UsageError(
                f"{what} {text!r} with a repeated value", _RANGE_HELP, "Write each value once."
            )
        return tuple(sorted(values))
    low_text, _, rest = text.partition("..")
    high_text, colon, count_text = rest.partition(":")
    if not low_text.strip() or not high_text.strip():
        raise UsageError(
            f"{what} {text!r} with a missing end",
            _RANGE_HELP,
            "Write both ends, such as 1e18..1e20.",
        )
    low, high = (parse_quantity(end, what=f"{what} {text!r} with") for end in (low_text, high_text))
    if low >= high:
        raise UsageError(
            f"{what} {text!r}, whose first end is not below its second",
            "LOW..HIGH with LOW below HIGH",
            f"Write {high_text.strip()}..{low_text.strip()}{colon}{count_text}."
            if low > high
            else f"Write {low_text.strip()} alone for a single value.",
        )
    decades = math.log10(high / low)
    if not colon:
        count = max(2, round(decades * POINTS_PER_DECADE) + 1)
    elif _COUNT.fullmatch(count_text.strip()) and int(count_text) >= 2:
        count = int(count_text)
    else:
        raise UsageError(
            f"{what} {text!r} with {count_text.strip()!r} points",
            "a whole number of points, 2 or more",
            f"Write for example {low_text}..{high_text}:3.",
        )
    step = math.log(high / low) / (count - 1)
    exact = [low * math.exp(step * i) for i in range(1, count - 1)]
    for digits in RANGE_DIGITS:
        inner = [round_significant(value, digits) for value in exact]
        moved = (abs(math.log(a / b)) for a, b in zip(inner, exact, strict=True))
        if max(moved, default=0.0) <= MOST_ROUNDED * step:
            return (low, *inner, high)
    raise UsageError(
        f"{what} {text!r}: some of its {count} points are equal at {RANGE_DIGITS[-1]} digits",
        "points that differ",
        "Use fewer points or a wider range.",
    )


def round_significant(value: float, digits: int) -> float:
    """Return ``value`` rounded to this many significant digits (0 stays 0)."""
    return float(f"{value:.{digits - 1}e}")


def format_quantity(value: float, digits: int = 3) -> str:
    """Return ``7B``, ``1.25T`` or ``3.2e+18``; `parse_quantity` reads it back.

    Values from 1,000 to 10,000T have a suffix, larger and smaller ones a power of ten.
    """
    if not math.isfinite(value) or value == 0:
        return str(value)
    rounded = round_significant(value, digits)
    size = abs(rounded)
    if size < 1e-3 or size >= 1e16:
        mantissa, exponent = f"{rounded:.{digits - 1}e}".split("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}"
    for suffix, scale in reversed(SUFFIXES.items()):
        if size >= scale:
            return f"{_plain(rounded / scale, digits)}{suffix}"
    return _plain(rounded, digits)


def _plain(value: float, digits: int) -> str:
    text = f"{round_significant(value, digits):.{digits + 4}f}"
    return text.rstrip("0").rstrip(".")


def format_flops(value: float) -> str:
    """Return FLOPs as a power of ten without a suffix, such as ``3.2e18``."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def format_times(ratio: float) -> str:
    """Return ``1.25x``, ``10x``, ``1,200x`` or ``3e13x``."""
    if ratio >= 1e6:
        return f"{format_flops(ratio)}x"
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{_plain(ratio, 3)}x"


def format_duration(seconds: float) -> str:
    """Return ``4.2 s``, ``12 min``, ``3.4 h``, ``2.1 days`` or ``35 years``."""
    for limit, unit, scale in (
        (90.0, "s", 1.0),
        (90 * 60.0, "min", 60.0),
        (48 * 3600.0, "h", 3600.0),
        (700 * 86400.0, "days", 86400.0),
    ):
        if seconds < limit:
            return f"{_count(seconds / scale)} {unit}"
    return f"{_count(seconds / (365.25 * 86400))} years"


def format_money(usd: float) -> str:
    """Return ``$0.04``, ``$12.50``, ``$1,250``, ``$807K`` or ``$3.1M``; ``< $0.01`` below a cent.

    `parse_quantity` reads it back without its sign.
    """
    if 0 < usd < 0.005:
        return "< $0.01"
    if usd >= 1e4:
        return f"${format_quantity(usd)}"
    return f"${usd:,.2f}" if usd < 100 else f"${usd:,.0f}"


def format_energy(kwh: float) -> str:
    """Return ``1.5 Wh``, ``12 kWh``, ``73 MWh`` or ``1.2 GWh``."""
    scale = next((scale for scale in ENERGY_UNITS if kwh >= scale), min(ENERGY_UNITS))
    return f"{_count(kwh / scale)} {ENERGY_UNITS[scale]}"


def format_count(value: float) -> str:
    """Return a whole number with separators: ``12,345``."""
    return f"{round(value):,}"


def format_bytes(n: float) -> str:
    """Return a size in 3 digits with a decimal unit: ``1.35 GB``."""
    units = ["B", "KB", "MB", "GB", "TB"]
    while n >= 999.5 and len(units) > 1:
        n /= 1000
        del units[0]
    return f"{n:.3g} {units[0]}" if n < 999.5 else f"{n:,.0f} {units[0]}"


def plural(n: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun: ``1 row``, ``12,345 rows``; name an irregular plural."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else _plain(value, 2)

"""Numbers as people write them: ``20M``, ``1.2T``, ``20,000,000``, ``4,62``, ``**3.4**``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from scalelab.units import SUFFIXES

_WORDS = r"(?:\s*(?:params?|parameters|tokens?|toks?|flops?|nats?|steps?))?"
_NUMBER = re.compile(
    r"(?P<number>[+-]?(?:\d+(?:[.,_ \u00a0\u202f']\d+)*|[.,]\d+)[.,]?)"
    r"(?:\s*(?:[x×*·]\s*10\s*\^?|[eE])\s*(?P<exponent>[+-]?\d{1,3}))?"
    r"\s*(?P<suffix>[kKmMbBgGtT]|thousand|million|billion|trillion)?(?P<percent>\s*%)?" + _WORDS,
    re.IGNORECASE,
)
_MARKS = "*_`~$ \t\u00a0"
_LONG = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "g": 1e9}
_SUFFIX = {**_LONG, **{suffix.lower(): scale for suffix, scale in SUFFIXES.items()}}
_THOUSANDS = re.compile(r"[+-]?\d{1,3}([.,_ \u00a0\u202f'])\d{3}(?:\1\d{3})*")


def has_decimal_commas(texts: Iterable[str], *, is_small: bool = False) -> bool:
    """Return whether a comma separates the decimals in a column, not thousands.

    Parameters
    ----------
    texts : iterable of str
        Cells of the column.
    is_small : bool
        Whether its numbers are small, as losses are: ``3,364`` is then 3.364.
    """
    found = False
    for text in texts:
        digits = text.strip(_MARKS)
        if "," not in digits:
            continue
        if digits.count(",") > 1 or ("." in digits and digits.rindex(".") > digits.rindex(",")):
            return False
        whole, _, rest = digits.partition(",")
        fraction = re.match(r"\d*", rest)
        is_decimal = fraction is None or len(fraction[0]) != 3 or "." in whole
        if not is_decimal and not (is_small and len(whole.lstrip("+-")) <= 2):
            return False
        found = True
    return found


def parse_cell(text: str, *, decimal_comma: bool = False) -> float | None:
    """Return the number in a cell, or None.

    Parameters
    ----------
    text : str
        Such as ``20M``, ``1.2T tokens``, ``20,000,000``, ``1 x 10^18``, ``11%`` or ``**3.36**``.
    decimal_comma : bool
        Whether a comma separates the decimals.
    """
    if len(text) > 100:
        return None
    found = _NUMBER.fullmatch(text.strip(_MARKS))
    if found is None:
        return None
    digits = found["number"].strip()
    if decimal_comma:
        digits = digits.replace(".", "").replace(",", ".")
    elif _THOUSANDS.fullmatch(digits) and "." not in digits:
        digits = re.sub(r"[,_ \u00a0\u202f']", "", digits)
    else:
        digits = re.sub(r"(?<=\d)[,_ \u00a0\u202f'](?=\d{3})", "", digits)
    try:
        value = float(digits) * 10.0 ** int(found["exponent"] or 0)
    except (ValueError, OverflowError):
        return None
    value *= _SUFFIX.get((found["suffix"] or "").lower(), 1.0)
    return value / 100 if found["percent"] else value if math.isfinite(value) else None


def header_scale(name: str) -> float:
    """Return the factor that a column's name states: 1e6 for ``params (M)``; 1 without one."""
    found = re.search(
        r"[(\[_ ](?:in )?(K|M|B|T|thousands?|millions?|billions?|trillions?)[)\]]?$", name
    )
    if found is None or (len(found[1]) == 1 and name[found.start()] not in "(["):
        return 1.0
    return _SUFFIX[found[1].lower().removesuffix("s")]

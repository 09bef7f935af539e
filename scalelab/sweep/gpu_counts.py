"""GPUs of a run by its planned compute: ``{"<1e19" = 1, ">=1e19" = 8}`` or ``<1e19=1,>=1e19=8``.

A sweep that spans decades of compute gives its large runs more GPUs. Each condition is one or two
comparisons with the planned FLOPs of a run; together they cover every run exactly once.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scalelab.errors import UsageError
from scalelab.units import parse_quantity

EXAMPLE = '--gpus-per-run "<1e19=1,>=1e19=8"'
_COMPARISON = re.compile(r"(<=|>=|<|>)\s*([^<>=\s]+)")


@dataclass(frozen=True, slots=True)
class GpuRule:
    """The runs between two bounds, in FLOPs, and the GPUs of each.

    Attributes
    ----------
    low, high : tuple of (float, int)
        A bound, and 1 if the interval begins (or ends) behind it: ``(x, 0)`` as ``low`` includes x
        and as ``high`` excludes it.
    n_gpus : int
        GPUs of a run.
    text : str
        The condition as given.
    """

    low: tuple[float, int]
    high: tuple[float, int]
    n_gpus: int
    text: str


def read_gpu_counts(value: Any) -> int | str:
    """Return a number of GPUs, or conditions as one text, from what a user wrote.

    Raises
    ------
    UsageError
        If a condition cannot be read, or the conditions do not cover every run exactly once.
    """
    if isinstance(value, Mapping):
        value = ",".join(f"{condition}={count}" for condition, count in value.items())
    if isinstance(value, str) and any(sign in value for sign in "<>="):
        return ",".join(f"{rule.text}={rule.n_gpus}" for rule in gpu_rules(value))
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if not isinstance(number, int) or number < 0:
        raise UsageError(
            f"gpus_per_run = {value!r}",
            "a whole number from 0, or conditions on the FLOPs of a run",
            f"Write for example {EXAMPLE}.",
        )
    return number


@functools.cache
def gpu_rules(text: str) -> tuple[GpuRule, ...]:
    """Return the rules of conditions, from the smallest runs to the largest.

    Raises
    ------
    UsageError
        As `read_gpu_counts`.
    """
    rules = sorted((_read_rule(part) for part in text.split(",")), key=lambda rule: rule.low)
    ends = [(0.0, 0), *(rule.high for rule in rules)]
    starts = [*(rule.low for rule in rules), (math.inf, 0)]
    for end, start in zip(ends, starts, strict=True):
        if end != start:
            fault = "no condition for" if end < start else "two conditions for"
            between = sorted((end, start))
            raise UsageError(
                f"gpus_per_run {text!r} with {fault} runs {_interval(*between)}",
                "conditions that cover every run exactly once",
                f"Write for example {EXAMPLE}.",
            )
    return tuple(rules)


def gpu_numbers(counts: int | str) -> tuple[int, ...]:
    """Return the different numbers of GPUs, smallest first."""
    if isinstance(counts, int):
        return (counts,)
    return tuple(sorted({rule.n_gpus for rule in gpu_rules(counts)}))


def gpus_for(counts: int | str, flops: float) -> int:
    """Return the GPUs of a run of these planned FLOPs."""
    if isinstance(counts, int):
        return counts
    place = (flops, 0)
    return next(rule.n_gpus for rule in gpu_rules(counts) if rule.low <= place < rule.high)


def _read_rule(part: str) -> GpuRule:
    condition, _, count = part.rpartition("=")
    condition = condition.strip()
    found = _COMPARISON.findall(condition)
    is_read = bool(found) and not _COMPARISON.sub("", condition).strip()
    if not is_read or not count.strip().isdecimal():
        raise UsageError(
            f"gpus_per_run condition {part.strip()!r}",
            "a comparison with the FLOPs of a run, and its number of GPUs",
            f'Write for example {EXAMPLE}, with ">=1e18 <1e20=4" for a range.',
        )
    low, high = (0.0, 0), (math.inf, 0)
    for sign, number in found:
        bound = (parse_quantity(number, what="gpus_per_run"), int(sign in ("<=", ">")))
        if sign[0] == "<":
            high = min(high, bound)
        else:
            low = max(low, bound)
    if low >= high:
        raise UsageError(
            f"gpus_per_run condition {condition!r}",
            "a condition that some number of FLOPs meets",
            f"Write for example {EXAMPLE}.",
        )
    text = " ".join(f"{sign}{number}" for sign, number in found)
    return GpuRule(low, high, int(count), text)


def _interval(low: tuple[float, int], high: tuple[float, int]) -> str:
    if high[0] == math.inf:
        return f"{'above' if low[1] else 'of at least'} {low[0]:g} FLOPs"
    if low[0] == high[0]:
        return f"of exactly {low[0]:g} FLOPs"
    if low[0] == 0.0:
        return f"{'up to' if high[1] else 'below'} {high[0]:g} FLOPs"
    return f"of {low[0]:g} to {high[0]:g} FLOPs"


def describe_numbers(counts: int | str) -> str:
    """Return the different numbers of GPUs in words: ``8``, or ``1 or 8``."""
    return " or ".join(str(number) for number in gpu_numbers(counts))

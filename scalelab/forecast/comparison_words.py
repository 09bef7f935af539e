"""Sentences of a comparison: the answer first, then what qualifies it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from scalelab.fit.outcome import Interval
from scalelab.forecast.comparable import NO, YES
from scalelab.records.metric import BITS_PER_BYTE
from scalelab.units import format_flops, format_quantity, format_times

if TYPE_CHECKING:
    from scalelab.forecast.comparing import Compared, Source

FAR = 1.5
"""Factor beyond the reference's compute at which a run counts as outside."""


def answer_of(part: Compared, first: Compared) -> str:
    """Return whether a source is better than the reference, in one or two sentences."""
    name, reference = part.source.name, first.source.name
    found = part.comparable
    assert found is not None
    if found.answer == NO:
        if part.source.rows is None or first.source.rows is None:
            return f"No losses to compare: {found.reasons[0]}. Compare N, D and the exponents."
        return (
            f"Not comparable: {'; '.join(found.reasons)}. "
            f"Nothing here shows whether {name} is better than {reference}."
        )
    if part.speedup is None:
        words = f"No answer for {name}: {part.reason}" if part.reason else f"No answer for {name}"
        return words if words.endswith("?") else f"{words}."
    if found.answer == YES:
        words = _speedup_words(part.speedup.factor, name, reference)
        # The name of a source keeps its letters.
        return f"N{words[1:]}." if words.startswith("no difference") else f"{words}."
    words = _speedup_words(part.speedup.factor, name, reference)
    metric = None if part.source.rows is None else part.source.rows.metric
    is_per_byte = metric is not None and metric.unit == BITS_PER_BYTE
    same = "one text" if is_per_byte else "one text and one tokenizer"
    return (
        f"Not known whether {name} is better than {reference}: these tables do not state "
        f"{' or '.join(found.reasons)}. If both losses are of {same}, {words}."
    )


def details_of(part: Compared, first: Compared, flops: float) -> tuple[str, ...]:
    """Return what qualifies the answer: distance, sizes, D/N and exponents, and the remedy."""
    name, reference = part.source.name, first.source.name
    said = []
    if part.speedup is not None and _is_outside(part.source, first.source):
        said.append(
            f"Most runs of {name} are outside the compute of {reference}, so this extrapolates "
            "that law: compare runs of the same compute."
        )
    if part.forecast is not None and first.forecast is not None:
        ours, theirs = part.forecast.n_params, first.forecast.n_params
        if ours is not None and theirs is not None:
            said.append(_size_words(ours, theirs, name, reference, flops))
    else:
        without = [each.source.name for each in (part, first) if each.forecast is None]
        said += [f"{each} has no optimum at {format_flops(flops)} FLOP." for each in without]
    if part.comparable is not None and part.comparable.answer == NO:
        said += _shape_words(part, first, flops)
    if part.comparable is not None and part.comparable.do:
        said.append(part.comparable.do)
    return tuple(said)


def _shape_words(part: Compared, first: Compared, flops: float) -> list[str]:
    """Return D/N and the exponents, which compare in any case."""
    ratios = [(each.source.name, _ratio(each)) for each in (part, first)]
    slopes = [(each.source.name, each.source.exponents) for each in (part, first)]
    said = []
    if all(ratio is not None for _, ratio in ratios):
        words = " and ".join(f"{_limits(r, format_quantity)} of {n}" for n, r in ratios if r)
        said.append(f"D/N at {format_flops(flops)} FLOP: {words}.")
    if all(slope is not None for _, slope in slopes):
        words = " and ".join(f"{_limits(s[0], '{:.3f}'.format)} of {n}" for n, s in slopes if s)
        said.append(f"Exponent a of N_opt: {words}.")
    return said


def _ratio(part: Compared) -> Interval | None:
    forecast = part.forecast
    if forecast is None or forecast.n_params is None or forecast.n_tokens is None:
        return None
    n, d = forecast.n_params, forecast.n_tokens
    # At one compute a larger N has a smaller D.
    return Interval(value=d.value / n.value, low=d.low / n.high, high=d.high / n.low)


def _limits(found: Interval, form: Callable[[float], str]) -> str:
    if not math.isfinite(found.low + found.high):
        return form(found.value)
    return f"{form(found.value)} [{form(found.low)}, {form(found.high)}]"


def _speedup_words(factor: Interval, name: str, reference: str) -> str:
    """Return what a source needs for the loss of the reference, without a full stop."""
    need = Interval(value=1 / factor.value, low=1 / factor.high, high=1 / max(factor.low, 1e-300))
    needs = (
        f"needs {_limits(need, '{:.3g}x'.format)} of the compute of {reference} for the same loss"
    )
    if math.isfinite(factor.low + factor.high) and factor.low <= 1 <= factor.high:
        return f"no difference beyond noise between {name} and {reference}: {name} {needs}"
    return f"{name} is {'better' if factor.value >= 1 else 'worse'} than {reference}: it {needs}"


def _is_outside(source: Source, first: Source) -> bool:
    """Say whether most runs are beyond those of the reference in compute."""
    if source.rows is None:
        return False
    low, high = first.span[0] / FAR, first.span[1] * FAR
    return float(np.mean((source.rows.flops < low) | (source.rows.flops > high))) > 0.5


def _size_words(ours: Interval, theirs: Interval, name: str, reference: str, flops: float) -> str:
    """Return how the compute-optimal N differs; no clear difference if the intervals overlap."""
    at = f"At {format_flops(flops)} FLOP"
    spans = [
        (each.low, each.high) if math.isfinite(each.low + each.high) else (each.value, each.value)
        for each in (ours, theirs)
    ]
    (low, high), (other_low, other_high) = spans
    has_interval = low < high or other_low < other_high
    if has_interval and low <= other_high and other_low <= high:
        sizes = " and ".join(
            f"{format_quantity(each.value)} of {source}"
            for each, source in ((ours, name), (theirs, reference))
        )
        return f"{at} there is no clear difference in the best parameters: {sizes}."
    ratio = ours.value / theirs.value
    size = (
        "as many" if 1 / 1.05 < ratio < 1.05
        else f"{format_times(ratio)} the" if ratio > 1
        else f"1/{format_quantity(1 / ratio, 2)} of the"
    )  # fmt: skip
    end = " as" if size == "as many" else " of"
    return (
        f"{at} {name} wants {format_quantity(ours.value)} parameters, {size} parameters{end} "
        f"{reference}."
    )

"""Sentences of a comparison: the answer first, then what qualifies it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from scalelab.fit.intervals import Interval
from scalelab.forecast.comparable import NO, UNKNOWN, YES
from scalelab.forecast.loss_gap import SPAN, loss_gaps
from scalelab.records.metric import BITS_PER_BYTE
from scalelab.units import format_flops, format_quantity, format_times

if TYPE_CHECKING:
    from scalelab.forecast.comparing import Compared, Source
    from scalelab.forecast.loss_gap import LossGap

FAR = 1.5
"""Factor beyond the reference's compute at which a run counts as outside."""


def answer_of(part: Compared, first: Compared, flops: float) -> str:
    """Return whether a source is better than the reference, with the number first."""
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
    speedup = part.speedup
    if speedup is None:
        reason = part.reason if part.gap is None else _beyond(part.gap, name, reference)
        words = f"No answer for {name}: {reason}" if reason else f"No answer for {name}"
        return words if words.endswith("?") else f"{words}."
    # One factor for all computes has no compute of its own.
    at = "" if part.gap is None else f" at {format_flops(flops)} FLOP"
    needs = f"reaches the loss of {reference}{at} with {_need_words(speedup)}"
    is_equal = math.isfinite(speedup.low + speedup.high) and speedup.low <= 1 <= speedup.high
    word = "better" if speedup.value >= 1 else "worse"
    if found.answer == YES:
        if is_equal:
            return f"No difference beyond noise between {name} and {reference}: {name} {needs}."
        return f"{name} is {word} than {reference}: it {needs}."
    metric = None if part.source.rows is None else part.source.rows.metric
    is_per_byte = metric is not None and metric.unit == BITS_PER_BYTE
    same = "of one text" if is_per_byte else "of one text and one tokenizer"
    if is_equal:
        return f"{name} {needs}, no difference beyond noise, if both losses are {same} (not known)."
    return f"{name} {needs}, if both losses are {same} (not known)."


def details_of(part: Compared, first: Compared, flops: float) -> tuple[str, ...]:
    """Return what qualifies the answer: distance, sizes, D/N and exponents, and the remedy."""
    name, reference = part.source.name, first.source.name
    said = []
    if part.comparable is not None and part.comparable.answer == UNKNOWN:
        said.append(f"Not known: nothing states {' or '.join(part.comparable.reasons)}.")
    if part.gap is not None:
        said += _gap_words(part, first)
    elif part.one_factor is not None:
        said.append(
            f"This takes the exponents of {reference}, so it is the same at any compute: the runs "
            f"of {name} do not determine its own law."
        )
    if part.one_factor is not None and _is_outside(part.source, first.source):
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
    if math.isnan(found.low + found.high):
        return form(found.value)
    low, high = (
        form(each) if math.isfinite(each) else "no limit" for each in (found.low, found.high)
    )
    return f"{form(found.value)} [{low}, {high}]"


def _need_words(speedup: Interval) -> str:
    """Return the share of the compute and the speed-up as one fact."""
    need = Interval(
        value=1 / speedup.value,
        low=1 / speedup.high if speedup.high > 0 else math.inf,
        high=1 / speedup.low if speedup.low > 0 else math.inf,
    )
    times = speedup.value
    faster = f"{times:.3g}x faster" if times >= 1 else f"{1 / times:.3g}x slower"
    return f"{_limits(need, '{:.3g}x'.format)} of the compute ({faster})"


def _beyond(gap: LossGap, name: str, reference: str) -> str:
    """Return that a source does not have the loss of the reference at any compute drawn."""
    side = "above" if gap.compute.value == math.inf else "below"
    return (
        f"its loss is {side} that of {reference} at {format_flops(gap.flops)} FLOP at any compute "
        f"within {SPAN:g}x of the runs"
    )


def _gap_words(part: Compared, first: Compared) -> list[str]:
    """Return the losses at one compute, and whether the speed-up changes with compute."""
    gap = part.gap
    assert gap is not None
    assert part.source.rows is not None
    difference = _limits(gap.difference, "{:+.3g}".format)
    said = [
        f"At {format_flops(gap.flops)} FLOP: loss {gap.loss:.4g} against {gap.reference:.4g}, "
        f"{difference} {part.source.rows.metric.unit}."
    ]
    far: dict[str, list[str]] = {}
    for each in (part.source, first.source):
        times = max(gap.flops / each.span[1], each.span[0] / gap.flops)
        if times > FAR:
            side = "above" if gap.flops > each.span[1] else "below"
            far.setdefault(f"{format_times(times)} {side}", []).append(each.name)
    for where, names in far.items():
        said.append(f"That is {where} the compute of the runs of {' and '.join(names)}.")
    if part.bands is None or first.bands is None:
        return said
    common = [pick(part.source.span[i], first.source.span[i]) for i, pick in enumerate((max, min))]
    ends = [each for each in loss_gaps(part.bands, first.bands, common) if each.is_reached]
    if len(ends) < 2 or common[0] >= common[1]:
        return said
    speeds = [each.speedup for each in ends]
    low, high = sorted(speeds, key=lambda each: each.value)
    words = " and ".join(
        f"{_limits(each.speedup, '{:.3g}x'.format)} at {format_flops(each.flops)} FLOP"
        for each in ends
    )
    if math.isfinite(low.high + high.low) and low.high < high.low:
        said.append(f"The speed-up changes with compute: {words}.")
    else:
        said.append(f"The speed-up does not change clearly with compute: {words}.")
    return said


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

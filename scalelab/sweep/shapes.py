"""The shapes that a rule has: the model nearest to a target number of parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import UsageError
from scalelab.sweep.shape_rule import ALIGNED, DEFAULT_RULE, FINE, HEAD_SIZES, ShapeRule
from scalelab.theory.shape import ModelShape
from scalelab.units import format_quantity, plural

SMALLEST_VOCABULARY = 256
"""Tokens of the smallest vocabulary, bytes."""
DEPTH_PENALTY = 0.5
MIN_HEAD = HEAD_SIZES[FINE][0][1]
LARGEST_MISS = {FINE: 0.35, ALIGNED: 0.45}
"""Largest distance of a shape from a target size, in natural logs."""


@dataclass(frozen=True, slots=True)
class ShapeTable:
    """All shapes of one rule and vocabulary, smallest first.

    Attributes
    ----------
    shapes : tuple of ModelShape
    log_params : ndarray of float, shape (n,)
        Natural log of the size of each shape, as the rule counts it.
    depth_miss : ndarray of float, shape (n,)
        Distance of the depth from `ShapeRule.preferred_depth`, in natural logs.
    """

    shapes: tuple[ModelShape, ...]
    log_params: NDArray[np.float64]
    depth_miss: NDArray[np.float64]


@functools.lru_cache(maxsize=16)
def shape_table(vocab_size: int, rule: ShapeRule = DEFAULT_RULE) -> ShapeTable:
    """Return the shapes of a rule for a vocabulary."""
    shapes = [
        rule.shape(d_model, n_layers, vocab_size)
        for d_model in rule.widths()
        for n_layers in rule.depths(d_model)
    ]
    sizes = {shape: rule.size(shape) for shape in shapes}
    shapes.sort(key=lambda shape: (sizes[shape], shape.d_model))
    return ShapeTable(
        tuple(shapes),
        np.log([sizes[shape] for shape in shapes]),
        np.array([abs(math.log(s.n_layers / rule.preferred_depth(s.d_model))) for s in shapes]),
    )


def listed_shapes(vocab_size: int, rule: ShapeRule) -> list[ModelShape]:
    """Return the explicit shapes of a rule, smallest first.

    Raises
    ------
    UsageError
        As `ShapeRule.complete`.
    """
    found = [rule.complete(given, vocab_size) for given in rule.shape_list]
    return sorted(found, key=rule.size)


def chosen_shapes(targets: Sequence[float], vocab_size: int, rule: ShapeRule) -> list[ModelShape]:
    """Return the explicit shapes of a rule; without them, as `distinct_shapes`."""
    if rule.shape_list:
        return listed_shapes(vocab_size, rule)
    return distinct_shapes(targets, vocab_size, rule)


def size_limits(vocab_size: int, rule: ShapeRule = DEFAULT_RULE) -> tuple[int, int]:
    """Return the parameters of the smallest and largest shape of a rule."""
    shapes = shape_table(vocab_size, rule).shapes
    return rule.size(shapes[0]), rule.size(shapes[-1])


def nearest_shape(
    target_params: float, vocab_size: int, rule: ShapeRule = DEFAULT_RULE
) -> ModelShape:
    """Return the shape of a rule nearest to a target size, with a penalty for unusual depths.

    All parameters count (the ``chinchilla`` convention); of a mixture of experts those of
    `ShapeRule.size_by`.

    Raises
    ------
    UsageError
        When the target is outside the sizes of the rule (by more than `LARGEST_MISS`).
    """
    known = shape_table(vocab_size, rule)
    log_target = math.log(target_params)
    size_miss = np.abs(known.log_params - log_target)
    best = int(np.argmin(_miss(known, size_miss)))
    ends = known.log_params[0] - log_target, log_target - known.log_params[-1]
    if max(ends) > LARGEST_MISS[rule.table]:
        smallest, largest = size_limits(vocab_size, rule)
        raise UsageError(
            f"a model of {format_quantity(target_params)} parameters, vocabulary {vocab_size}",
            f"sizes from {format_quantity(smallest)} to {format_quantity(largest)}",
            f"Use sizes in that range, for example --n-params {format_quantity(smallest * 2)}, "
            f"or other --budgets{finer_words(rule)}.",
        )
    return known.shapes[best]


def distinct_shapes(
    targets: Sequence[float], vocab_size: int, rule: ShapeRule = DEFAULT_RULE
) -> list[ModelShape]:
    """Return a different nearest shape for each target, smallest first.

    If two targets share their nearest shape, the second gets the next best shape that is nearer to
    it than to its neighbours.

    Raises
    ------
    UsageError
        When the range has fewer shapes than targets.
    """
    known = shape_table(vocab_size, rule)
    ordered = sorted(targets)
    logs = np.log(ordered)
    half_step = float(np.diff(logs).min()) / 2 if len(ordered) > 1 else LARGEST_MISS[rule.table]
    chosen: dict[ModelShape, None] = {}
    for target, log_target in zip(ordered, logs, strict=True):
        shape: ModelShape | None = nearest_shape(target, vocab_size, rule)
        if shape in chosen:
            size_miss = np.abs(known.log_params - log_target)
            near = np.flatnonzero(size_miss < half_step)
            by_miss = near[np.argsort(_miss(known, size_miss)[near], kind="stable")]
            free = (known.shapes[i] for i in by_miss if known.shapes[i] not in chosen)
            shape = next(free, None)
        if shape is not None:
            chosen[shape] = None
    if len(chosen) < len(ordered):
        raise UsageError(
            f"{len(ordered)} sizes between {format_quantity(ordered[0])} and "
            f"{format_quantity(ordered[-1])} parameters",
            f"at most {plural(len(chosen), 'size')}, one for each different shape in that range",
            f"Use fewer sizes, for example --sizes {max(1, len(chosen))}, a wider range, for "
            f"example --span 64{finer_words(rule)}.",
        )
    return sorted(chosen, key=rule.size)


def has_sizes(low: float, high: float, n_sizes: int, vocab_size: int, rule: ShapeRule) -> bool:
    """Return whether a rule has this many different shapes, evenly spaced in a range of sizes."""
    try:
        distinct_shapes(np.geomspace(low, high, n_sizes).tolist(), vocab_size, rule)
    except UsageError:
        return False
    return True


def finer_words(rule: ShapeRule) -> str:
    """Return how to get more shapes, as the end of a sentence."""
    ways = ["--shapes fine"] if rule.table == ALIGNED else []
    ways += [f"a smaller --d-head than {rule.d_head}"] if rule.d_head > MIN_HEAD else []
    return f", or {' and '.join(ways)}" if ways else ""


def _miss(table: ShapeTable, size_miss: NDArray[np.float64]) -> NDArray[np.float64]:
    return size_miss + DEPTH_PENALTY * table.depth_miss

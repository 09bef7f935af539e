"""A ladder of model shapes: for a target number of parameters, the sane shape nearest to it.

Widths are whole numbers of heads; the head size grows with the width; the depth stays near
``2 (d_model / 32)^0.55``, which passes close to common models (12 layers at 768, 20 at 2,048, 29 at
4,096) and goes on smoothly to models of a few thousand parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import UsageError
from scalelab.theory.accounting import count_params
from scalelab.theory.shape import FF_MULTIPLE, ModelShape
from scalelab.units import format_quantity

HEAD_SIZES = ((0, 8), (64, 32), (256, 64), (2048, 128))
MIN_WIDTH = 16
MAX_WIDTH = 32_768
DEPTH_AT_32 = 2.0
DEPTH_EXPONENT = 0.55
DEPTH_TOLERANCE = 2.0
DEPTH_PENALTY = 0.5
LARGEST_MISS = 0.35


def shape_of(d_model: int, n_layers: int, vocab_size: int) -> ModelShape:
    """Return the dense shape of this width and depth, its head and hidden sizes by rule."""
    d_head = head_size(d_model)
    multiple = FF_MULTIPLE if d_model < 256 else 64
    return ModelShape(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=d_model // d_head,
        d_head=d_head,
        d_ff=math.ceil(8 * d_model / 3 / multiple) * multiple,
        vocab_size=vocab_size,
    )


def head_size(d_model: int) -> int:
    """Return the head size of a width, from 8 below 64 to 128 from 2,048 on."""
    return next(size for start, size in reversed(HEAD_SIZES) if d_model >= start)


def preferred_depth(d_model: int) -> float:
    """Return the depth that a width asks for, not rounded."""
    return float(DEPTH_AT_32 * (d_model / 32) ** DEPTH_EXPONENT)


@dataclass(frozen=True, slots=True)
class ShapeTable:
    """All shapes of one vocabulary, smallest first.

    Attributes
    ----------
    shapes : tuple of ModelShape
    log_params : ndarray of float, shape (n,)
        Natural log of all parameters of each shape.
    depth_miss : ndarray of float, shape (n,)
        Distance of the depth from `preferred_depth`, in natural logs.
    """

    shapes: tuple[ModelShape, ...]
    log_params: NDArray[np.float64]
    depth_miss: NDArray[np.float64]


@functools.lru_cache(maxsize=16)
def shape_table(vocab_size: int) -> ShapeTable:
    """Return all shapes of the ladder for a vocabulary."""
    shapes = [
        shape_of(d_model, n_layers, vocab_size)
        for d_model in _widths()
        for n_layers in _depths(d_model)
    ]
    totals = {shape: count_params(shape).total for shape in shapes}
    shapes.sort(key=lambda shape: (totals[shape], shape.d_model))
    return ShapeTable(
        tuple(shapes),
        np.log([totals[shape] for shape in shapes]),
        np.array([abs(math.log(s.n_layers / preferred_depth(s.d_model))) for s in shapes]),
    )


def size_limits(vocab_size: int) -> tuple[int, int]:
    """Return the parameters of the ladder's smallest and largest shape."""
    shapes = shape_table(vocab_size).shapes
    return count_params(shapes[0]).total, count_params(shapes[-1]).total


def nearest_shape(target_params: float, vocab_size: int) -> ModelShape:
    """Return the shape nearest to a target size, depth weighed in.

    Parameters
    ----------
    target_params : float
        Wanted parameters, all of them counted (the ``chinchilla`` convention).
    vocab_size : int
        Tokens that occur.

    Raises
    ------
    UsageError
        When no sane shape lies within 35 % of the target.
    """
    rungs = shape_table(vocab_size)
    size_miss = np.abs(rungs.log_params - math.log(target_params))
    best = int(np.argmin(_miss(rungs, size_miss)))
    if size_miss[best] > LARGEST_MISS:
        smallest, largest = size_limits(vocab_size)
        raise UsageError(
            f"a model of {format_quantity(target_params)} parameters, vocabulary {vocab_size}",
            f"sizes from {format_quantity(smallest)} to {format_quantity(largest)}",
            "Choose budgets or sizes within reach, or another vocabulary.",
        )
    return rungs.shapes[best]


def distinct_shapes(targets: Sequence[float], vocab_size: int) -> list[ModelShape]:
    """Return the nearest shape of each target, smallest first, all different.

    Where two targets share their nearest shape, the second takes the next best one that is still
    nearer to it than to its neighbours.

    Raises
    ------
    UsageError
        When there is none: more sizes than shapes exist there.
    """
    rungs = shape_table(vocab_size)
    ordered = sorted(targets)
    logs = np.log(ordered)
    half_step = float(np.diff(logs).min()) / 2 if len(ordered) > 1 else LARGEST_MISS
    chosen: dict[ModelShape, None] = {}
    for target, log_target in zip(ordered, logs, strict=True):
        shape: ModelShape | None = nearest_shape(target, vocab_size)
        if shape in chosen:
            size_miss = np.abs(rungs.log_params - log_target)
            near = np.flatnonzero(size_miss < half_step)
            by_miss = near[np.argsort(_miss(rungs, size_miss)[near], kind="stable")]
            free = (rungs.shapes[i] for i in by_miss if rungs.shapes[i] not in chosen)
            shape = next(free, None)
        if shape is not None:
            chosen[shape] = None
    if len(chosen) < len(ordered):
        raise UsageError(
            f"{len(ordered)} sizes between {format_quantity(ordered[0])} and "
            f"{format_quantity(ordered[-1])} parameters",
            f"at most the {len(chosen)} different shapes that lie there",
            "Ask for fewer sizes, or for a wider range of them (--span of a valley).",
        )
    return sorted(chosen, key=lambda shape: count_params(shape).total)


def _miss(rungs: ShapeTable, size_miss: NDArray[np.float64]) -> NDArray[np.float64]:
    return size_miss + DEPTH_PENALTY * rungs.depth_miss


def _widths() -> Iterator[int]:
    width = MIN_WIDTH
    while width <= MAX_WIDTH:
        yield width
        # Steps of one head, and never finer than about 3 %: a ladder, not a continuum.
        step = head_size(width)
        width += step * max(1, round(width * 0.03 / step))


def _depths(d_model: int) -> range:
    preferred = preferred_depth(d_model)
    low = max(1, math.ceil(preferred / DEPTH_TOLERANCE))
    return range(low, math.floor(preferred * DEPTH_TOLERANCE) + 1)

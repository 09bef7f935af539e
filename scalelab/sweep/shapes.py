"""Shape tables: the model shape nearest to a target number of parameters.

Widths are whole numbers of heads, and the head size grows with the width. The depth stays near
``2 (d_model / 32)^0.55``: close to common models (12 layers at 768, 20 at 2,048, 29 at 4,096), and
smooth down to models of a few thousand parameters.

There are two tables. ``fine`` has many sizes of small models, down to heads of 8. ``aligned`` has
only head sizes 32, 64 and 128 and hidden widths in multiples of 64, for which the kernels and the
tensor cores of GPUs are fast. A sweep chooses the table; the device never does.
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
from scalelab.units import format_quantity, plural

FINE, ALIGNED = "fine", "aligned"
SHAPES = (FINE, ALIGNED)
ALIGNED_FROM_FLOPS = 1e15
"""Training FLOPs of the largest run of a sweep from which its default table is `ALIGNED`."""
HEAD_SIZES = {
    FINE: ((0, 8), (64, 32), (256, 64), (2048, 128)),
    ALIGNED: ((0, 32), (256, 64), (2048, 128)),
}
FF_STEPS = {FINE: ((0, FF_MULTIPLE), (256, 64)), ALIGNED: ((0, 64),)}
"""Multiples of the hidden width d_ff, from a width on."""
MIN_WIDTH = {FINE: 16, ALIGNED: 32}
MAX_WIDTH = 32_768
DEPTH_AT_32 = 2.0
DEPTH_EXPONENT = 0.55
DEPTH_TOLERANCE = 2.0
DEPTH_PENALTY = 0.5
DEFAULT_FF_MULTIPLE = 8 / 3
"""A SwiGLU layer of this width has the parameters of an ordinary one of 4 x d_model."""
LARGEST_MISS = {FINE: 0.35, ALIGNED: 0.45}
"""Largest distance of a shape from a target size, in natural logs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeRule:
    """How a sweep turns a width and a depth into a model, and which widths and depths it has.

    Attributes
    ----------
    table : str
        ``fine`` or ``aligned``: the head sizes, and the multiples of the hidden width.
    d_head : int
        Size of a head at every width; 0 takes the table's.
    heads_per_kv_head : int
        Query heads that share a key and value head, at every width.
    n_kv_heads : int
        Key and value heads at every width; 0 follows ``heads_per_kv_head``.
    ff_multiple : float
        Hidden width of the feed-forward layer divided by ``d_model``, before it is rounded up.
    is_tied, has_qk_norm : bool
        As in `ModelShape`.
    """

    table: str = FINE
    d_head: int = 0
    heads_per_kv_head: int = 1
    n_kv_heads: int = 0
    ff_multiple: float = DEFAULT_FF_MULTIPLE
    is_tied: bool = False
    has_qk_norm: bool = True

    def head_size(self, d_model: int) -> int:
        """Return the head size of a width."""
        return self.d_head or _from_width(HEAD_SIZES[self.table], d_model)

    def width_step(self, d_model: int) -> int:
        """Return what a width must be a multiple of: whole heads, shared evenly by key heads."""
        return self.head_size(d_model) * (self.n_kv_heads or self.heads_per_kv_head)

    def hidden_width(self, d_model: int) -> int:
        """Return the width of the feed-forward layer, a multiple of the table's step."""
        multiple = _from_width(FF_STEPS[self.table], d_model)
        # Without the margin, rounding errors of the product would add a step.
        return math.ceil(self.ff_multiple * d_model / multiple - 1e-9) * multiple

    def shape(self, d_model: int, n_layers: int, vocab_size: int) -> ModelShape:
        """Return the model of a width and a depth.

        Raises
        ------
        SpecError
            When its heads cannot be shared evenly.
        """
        d_head = self.head_size(d_model)
        n_heads = d_model // d_head
        n_kv_heads = self.n_kv_heads or n_heads // self.heads_per_kv_head
        return ModelShape(
            n_layers=n_layers,
            d_model=d_model,
            n_heads=n_heads,
            d_head=d_head,
            d_ff=self.hidden_width(d_model),
            vocab_size=vocab_size,
            # 0 is the same model, and keeps the run_ids of models without shared key heads.
            n_kv_heads=0 if n_kv_heads == n_heads else n_kv_heads,
            is_tied=self.is_tied,
            has_qk_norm=self.has_qk_norm,
        )

    def widths(self) -> Iterator[int]:
        """Yield the widths of the table: whole heads, in steps of at least about 3 %."""
        width = self._whole(MIN_WIDTH[self.table])
        while width <= MAX_WIDTH:
            yield width
            step = self.width_step(width)
            width = self._whole(width + step * max(1, round(width * 0.03 / step)))

    def depths(self, d_model: int) -> range:
        """Return the depths of a width, from half to twice the preferred one."""
        preferred = self.preferred_depth(d_model)
        low = max(1, math.ceil(preferred / DEPTH_TOLERANCE))
        return range(low, math.floor(preferred * DEPTH_TOLERANCE) + 1)

    def preferred_depth(self, d_model: int) -> float:
        """Return the preferred depth of a width, not rounded."""
        return float(DEPTH_AT_32 * (d_model / 32) ** DEPTH_EXPONENT)

    def _whole(self, width: int) -> int:
        """Return the smallest width from this one on that has whole heads."""
        # Rounding up can reach a width with larger heads.
        while width % (step := self.width_step(width)):
            width += step - width % step
        return width


DEFAULT_RULE = ShapeRule()


@dataclass(frozen=True, slots=True)
class ShapeTable:
    """All shapes of one rule and vocabulary, smallest first.

    Attributes
    ----------
    shapes : tuple of ModelShape
    log_params : ndarray of float, shape (n,)
        Natural log of all parameters of each shape.
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
    totals = {shape: count_params(shape).total for shape in shapes}
    shapes.sort(key=lambda shape: (totals[shape], shape.d_model))
    return ShapeTable(
        tuple(shapes),
        np.log([totals[shape] for shape in shapes]),
        np.array([abs(math.log(s.n_layers / rule.preferred_depth(s.d_model))) for s in shapes]),
    )


def size_limits(vocab_size: int, rule: ShapeRule = DEFAULT_RULE) -> tuple[int, int]:
    """Return the parameters of the smallest and largest shape of a rule."""
    shapes = shape_table(vocab_size, rule).shapes
    return count_params(shapes[0]).total, count_params(shapes[-1]).total


def nearest_shape(
    target_params: float, vocab_size: int, rule: ShapeRule = DEFAULT_RULE
) -> ModelShape:
    """Return the shape of a rule nearest to a target size, with a penalty for unusual depths.

    All parameters count (the ``chinchilla`` convention).

    Raises
    ------
    UsageError
        When no shape is near the target (`LARGEST_MISS`).
    """
    known = shape_table(vocab_size, rule)
    size_miss = np.abs(known.log_params - math.log(target_params))
    best = int(np.argmin(_miss(known, size_miss)))
    if size_miss[best] > LARGEST_MISS[rule.table]:
        smallest, largest = size_limits(vocab_size, rule)
        raise UsageError(
            f"a model of {format_quantity(target_params)} parameters, vocabulary {vocab_size}",
            f"sizes from {format_quantity(smallest)} to {format_quantity(largest)}",
            f"Use sizes in that range, for example --n-params {format_quantity(smallest * 2)}, "
            + (
                "other --budgets, or --shapes fine."
                if rule.table == ALIGNED
                else "or other --budgets."
            ),
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
            "example --span 64" + (", or --shapes fine." if rule.table == ALIGNED else "."),
        )
    return sorted(chosen, key=lambda shape: count_params(shape).total)


def _miss(table: ShapeTable, size_miss: NDArray[np.float64]) -> NDArray[np.float64]:
    return size_miss + DEPTH_PENALTY * table.depth_miss


def _from_width(steps: tuple[tuple[int, int], ...], d_model: int) -> int:
    """Return the value of the last step that starts at or below a width."""
    return next(value for start, value in reversed(steps) if d_model >= start)

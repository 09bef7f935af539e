"""The rule of a sweep's models (`ShapeRule`): heads, hidden width and depth at every width.

Widths are whole numbers of heads, and the head size grows with the width. The depth stays near
``2 (d_model / 32)^0.55``: close to common models (12 layers at 768, 20 at 2,048, 29 at 4,096), and
smooth down to models of a few thousand parameters. A sweep can fix each of these.

There are two tables. ``fine`` has many sizes of small models, down to heads of 8. ``aligned`` has
only head sizes 32, 64 and 128 and hidden widths in multiples of 64, for which the kernels and the
tensor cores of GPUs are fast. A sweep chooses the table; the device never does.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalelab.errors import SpecError, UsageError
from scalelab.sweep.expert_rule import ACTIVE, ExpertRule
from scalelab.sweep.shape_list import ListedShape
from scalelab.theory.accounting import count_params
from scalelab.theory.shape import DEFAULT_FF_RATIO, FF_MULTIPLE, ModelShape
from scalelab.units import plural

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
EXPERT_STEPS = {FINE: FF_MULTIPLE, ALIGNED: 64}
"""Multiples of the width of a routed expert."""


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
    aspect : tuple of (int, float)
        Widths with their ``d_model / n_layers``, by increasing width. Between them it follows a
        power law, beyond them it is constant. Empty: depths near `DEPTH_AT_32` and its power law.
    shape_list : tuple of ListedShape
        The only shapes, instead of the table.
    ff_multiple : float
        Hidden width of the feed-forward layer divided by ``d_model``, before it is rounded up.
    is_tied, has_qk_norm : bool
        As in `ModelShape`.
    experts : ExpertRule or None
        The experts of every block; None for dense models.
    size_by : str
        ``active`` or ``total``: the parameters of a mixture of experts that its size counts.
    """

    table: str = FINE
    d_head: int = 0
    heads_per_kv_head: int = 1
    n_kv_heads: int = 0
    ff_multiple: float = DEFAULT_FF_RATIO
    aspect: tuple[tuple[int, float], ...] = ()
    shape_list: tuple[ListedShape, ...] = ()
    is_tied: bool = False
    has_qk_norm: bool = True
    experts: ExpertRule | None = None
    size_by: str = ACTIVE

    def size(self, shape: ModelShape) -> int:
        """Return the parameters that the size of a model counts."""
        counts = count_params(shape)
        return counts.of_active().total if self.size_by == ACTIVE else counts.total

    def head_size(self, d_model: int) -> int:
        """Return the head size of a width."""
        return self.d_head or _from_width(HEAD_SIZES[self.table], d_model)

    def width_step(self, d_model: int) -> int:
        """Return what a width must be a multiple of: whole heads, shared evenly by key heads."""
        return self.head_size(d_model) * (self.n_kv_heads or self.heads_per_kv_head)

    def hidden_width(self, d_model: int) -> int:
        """Return the width of the dense feed-forward layer, a multiple of the table's step.

        Experts are parts of it, whose width is a multiple of its own step.
        """
        multiple = _from_width(FF_STEPS[self.table], d_model)
        if self.experts is not None:
            multiple = self.experts.width_step(multiple, EXPERT_STEPS[self.table])
        # Without the margin, rounding errors of the product would add a step.
        return math.ceil(self.ff_multiple * d_model / multiple - 1e-9) * multiple

    def shape(self, d_model: int, n_layers: int, vocab_size: int) -> ModelShape:
        """Return the model of a width and a depth."""
        return self.complete(ListedShape(n_layers=n_layers, d_model=d_model), vocab_size)

    def complete(self, given: ListedShape, vocab_size: int) -> ModelShape:
        """Return the model of an entry; the rule gives the numbers that the entry leaves out.

        Raises
        ------
        UsageError
            When the width is not whole heads, key heads do not divide the heads, the experts do not
            divide the feed-forward layer, or the numbers describe no valid model.
        """
        d_model = given.d_model
        if given.n_heads:
            d_head = given.d_head or 2 * self._divided(given, "d_model", d_model, 2 * given.n_heads)
            n_heads = given.n_heads
        else:
            d_head = given.d_head or self.head_size(d_model)
            n_heads = self._divided(given, "d_model", d_model, d_head)
        n_kv_heads = given.n_kv_heads or self.n_kv_heads
        if n_kv_heads == 0:
            n_kv_heads = self._divided(given, "n_heads", n_heads, self.heads_per_kv_head)
        elif n_heads % n_kv_heads:
            raise _uneven(given, "n_heads", n_heads, n_kv_heads)
        try:
            dense = ModelShape(
                n_layers=given.n_layers,
                d_model=d_model,
                n_heads=n_heads,
                d_head=d_head,
                d_ff=given.d_ff or self.hidden_width(d_model),
                vocab_size=vocab_size,
                # 0 is the same model, and keeps the run_ids of models without shared key heads.
                n_kv_heads=0 if n_kv_heads == n_heads else n_kv_heads,
                is_tied=self.is_tied,
                has_qk_norm=self.has_qk_norm,
            )
            return dense if self.experts is None else self.experts.split(dense)
        except SpecError as error:
            given_words = f"shape {given.words()}: {error.given}"
            raise UsageError(given_words, error.allowed, error.do) from None

    def widths(self) -> Iterator[int]:
        """Yield the widths of the table: whole heads, in steps of at least about 3 %."""
        width = self._whole(MIN_WIDTH[self.table])
        while width <= MAX_WIDTH:
            yield width
            step = self.width_step(width)
            width = self._whole(width + step * max(1, round(width * 0.03 / step)))

    def depths(self, d_model: int) -> range:
        """Return the depths of a width.

        By the power law, these are half to twice the preferred depth. With an aspect, a width is
        depth times aspect, rounded up to whole heads; a width that no depth has gets the nearest.
        """
        preferred = self.preferred_depth(d_model)
        if self.aspect:
            narrower = (d_model - self.width_step(d_model)) / self.aspect_at(d_model)
            low, high = math.floor(narrower + 1e-9) + 1, math.floor(preferred + 1e-9)
            nearest = max(1, round(preferred))
            return range(max(1, low), high + 1) or range(nearest, nearest + 1)
        low = max(1, math.ceil(preferred / DEPTH_TOLERANCE))
        return range(low, math.floor(preferred * DEPTH_TOLERANCE) + 1)

    def preferred_depth(self, d_model: int) -> float:
        """Return the preferred depth of a width, not rounded."""
        if self.aspect:
            return d_model / self.aspect_at(d_model)
        return float(DEPTH_AT_32 * (d_model / 32) ** DEPTH_EXPONENT)

    def aspect_at(self, d_model: int) -> float:
        """Return ``d_model / n_layers`` at a width, interpolated in logarithms."""
        widths, values = np.log(np.array(self.aspect)).T
        return float(np.exp(np.interp(math.log(d_model), widths, values)))

    def changes(self) -> dict[str, Any]:
        """Return the fields that differ from the default, as plain data; ``shapes`` is the table.

        Equal dicts mean equal shapes, so that a saved sweep can be compared with another one.
        """
        content = json.loads(json.dumps(dataclasses.asdict(self)))
        default = json.loads(json.dumps(dataclasses.asdict(DEFAULT_RULE)))
        found = {key: value for key, value in content.items() if value != default[key]}
        if "table" in found:
            found["shapes"] = found.pop("table")
        return found

    def words(self) -> str:
        """Return what differs from the default, for the rules of a plan: ``fine, tied head``."""
        per_width = ", ".join(
            f"{value:g}" if len(self.aspect) == 1 else f"{value:.3g} at {width}"
            for width, value in self.aspect
        )
        parts = {
            f"{len(self.shape_list)} listed": bool(self.shape_list),
            self.table: not self.shape_list,
            f"heads of {self.d_head}": self.d_head > 0,
            f"{self.heads_per_kv_head} heads per key head": self.heads_per_kv_head > 1,
            plural(self.n_kv_heads, "key head"): self.n_kv_heads > 0,
            f"d_ff {self.ff_multiple:g} x d_model": self.ff_multiple != DEFAULT_FF_RATIO,
            f"d_model / n_layers {per_width}": bool(self.aspect),
            "tied head": self.is_tied,
            "no QK-norm": not self.has_qk_norm,
        }
        if self.experts is not None:
            parts[self.experts.words()] = True
        return ", ".join(part for part, holds in parts.items() if holds)

    def _whole(self, width: int) -> int:
        """Return the smallest width from this one on that has whole heads."""
        # Rounding up can reach a width with larger heads.
        while width % (step := self.width_step(width)):
            width += step - width % step
        return width

    @staticmethod
    def _divided(given: ListedShape, name: str, size: int, divisor: int) -> int:
        """Return the quotient; raise UsageError unless it is whole."""
        if size % divisor:
            raise _uneven(given, name, size, divisor)
        return size // divisor


def shape_words(rules: Sequence[ShapeRule]) -> str:
    """Return `ShapeRule.words` of rules that differ in their experts only, for a plan."""
    if len(rules) == 1:
        return rules[0].words()
    experts = ["dense" if rule.experts is None else rule.experts.words() for rule in rules]
    return f"{dataclasses.replace(rules[0], experts=None).words()}; {', '.join(experts)}"


def _uneven(given: ListedShape, name: str, size: int, divisor: int) -> UsageError:
    is_width = name == "d_model"
    size_of_heads = "2 x n_heads" if given.n_heads else "d_head"
    what = size_of_heads if is_width else "heads per key head, or key heads"
    return UsageError(
        f"shape {given.words()}: {name} = {size}, not divisible by {divisor} ({what})",
        f"d_model divisible by {size_of_heads}" if is_width else "n_heads divisible by n_kv_heads",
        f"Change d_model or {'n_heads' if given.n_heads else 'd_head (--d-head)'}."
        if is_width
        else "Change n_heads, --n-kv-heads or --heads-per-kv-head.",
    )


DEFAULT_RULE = ShapeRule()


def _from_width(steps: tuple[tuple[int, int], ...], d_model: int) -> int:
    """Return the value of the last step that starts at or below a width."""
    return next(value for start, value in reversed(steps) if d_model >= start)

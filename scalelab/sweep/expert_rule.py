"""The mixture of experts of a sweep's models (`ExpertRule`), and the axes that a grid can have.

A routed expert is a dense feed-forward layer cut into ``granularity`` parts, so one setting fits
models of every width. Each axis changes one thing: the number of experts changes all parameters at
equal FLOPs; the active experts change the FLOPs; the granularity, at equal expansion, neither.

References
----------
Fedus et al. 2021, arXiv:2101.03961 (experts of the dense width, one active). Krajewski et al. 2024,
arXiv:2402.07871, section 3.1 (granularity and expansion rate). Dai et al. 2024, arXiv:2401.06066
(fine-grained and shared experts).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scalelab.errors import UsageError
from scalelab.theory.shape import ModelShape

MAX_EXPERTS = 4096
ACTIVE, TOTAL = "active", "total"
SIZES_BY = (ACTIVE, TOTAL)
"""What the size of a mixture of experts counts: the parameters that a token uses, or all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertRule:
    """The experts of each block, at every width.

    Attributes
    ----------
    n_experts, n_active_experts : int
        Routed experts of a block, and those that a token passes through.
    granularity : int
        Width of the dense layer divided by that of a routed expert.
    n_shared_experts : int
        Experts that every token passes through, as wide as a routed one. Together they are one
        expert of that many times the width.

    Raises
    ------
    UsageError
        If more experts are active than there are.
    """

    n_experts: int
    n_active_experts: int
    granularity: int = 1
    n_shared_experts: int = 0

    def __post_init__(self) -> None:
        if self.n_active_experts > self.n_experts:
            finer = f" and granularity = {self.granularity}" if self.granularity > 1 else ""
            raise UsageError(
                f"n_active_experts = {self.n_active_experts} with n_experts = {self.n_experts}"
                f"{finer}",
                f"1 to {self.n_experts} active experts (by default as many as the granularity)",
                f"Use --n-active-experts {self.n_experts} or less, or more --n-experts.",
            )

    def width_step(self, dense_step: int, expert_step: int) -> int:
        """Return what a dense width must be a multiple of, so that its parts are whole steps."""
        return math.lcm(dense_step, self.granularity * expert_step)

    def split(self, dense: ModelShape) -> ModelShape:
        """Return the mixture whose experts are parts of a dense model's feed-forward layers.

        Raises
        ------
        UsageError
            If the width is not divisible by the granularity.
        """
        if dense.d_ff % self.granularity:
            raise UsageError(
                f"shape {dense.label()}: d_ff = {dense.d_ff} in {self.granularity} parts "
                f"(--granularity {self.granularity})",
                "a granularity that divides the width of the dense layer",
                f"Use a d_ff of {dense.d_ff - dense.d_ff % self.granularity + self.granularity}, "
                f"or --granularity {math.gcd(dense.d_ff, self.granularity)}.",
            )
        width = dense.d_ff // self.granularity
        return replace(
            dense,
            d_ff=width,
            n_experts=self.n_experts,
            n_active_experts=self.n_active_experts,
            d_shared_expert=self.n_shared_experts * width,
        )

    def words(self) -> str:
        """Return the experts as shown with the rules of a plan: ``1 of 8 experts``."""
        finer = f" of granularity {self.granularity}" if self.granularity > 1 else ""
        shared = f" and {self.n_shared_experts} shared" if self.n_shared_experts else ""
        return f"{self.n_active_experts} of {self.n_experts} experts{finer}{shared}"


def expert_rules(
    *,
    n_experts: Sequence[int] = (),
    expansions: Sequence[int] = (),
    n_active_experts: Sequence[int] = (),
    granularities: Sequence[int] = (1,),
    n_shared_experts: int = 0,
) -> tuple[ExpertRule | None, ...]:
    """Return each combination of the axes once; None is a dense model.

    Parameters
    ----------
    n_experts : sequence of int
        Routed experts; 1 is a dense model.
    expansions : sequence of int
        Instead of ``n_experts``: experts divided by the granularity; 1 is a dense model.
    n_active_experts : sequence of int
        Empty: as many as the granularity, so that a token uses the width of the dense layer.
    granularities : sequence of int
    n_shared_experts : int

    Raises
    ------
    UsageError
        As `ExpertRule`.
    """
    found: dict[ExpertRule | None, None] = {}
    counts = n_experts or expansions or (1,)
    for count, granularity in itertools.product(counts, granularities):
        if count == 1:
            found[None] = None
            continue
        for n_active in n_active_experts or (granularity,):
            rule = ExpertRule(
                n_experts=count if n_experts else count * granularity,
                n_active_experts=n_active,
                granularity=granularity,
                n_shared_experts=n_shared_experts,
            )
            found[rule] = None
    return tuple(found)

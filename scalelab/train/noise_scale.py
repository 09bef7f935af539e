"""The gradient noise scale, and from it the critical batch size.

The squared norm of a mean gradient over B tokens is |G|^2 + tr(Sigma)/B in expectation, so the
norms at two batch sizes, the micro-batch's and the whole batch's, determine both terms. Each has a
running mean of its own, because the mean of their quotient is biased. The critical batch is their
quotient: below it more tokens a step save steps, above it they are mostly wasted.

References
----------
McCandlish et al. 2018, arXiv:1812.06162, section 2.2 and appendix A.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scalelab.records.types import MetricRow

MEMORY = 0.98
"""Weight of the past in the running means: about the last 50 steps count."""


@dataclass(kw_only=True, slots=True)
class NoiseScale:
    """Running means of the two terms; its fields go into the checkpoint.

    Attributes
    ----------
    trace : float
        Weighted sum of the estimates of tr(Sigma), per token.
    grad_sq : float
        Weighted sum of the estimates of |G|^2.
    weight : float
        Sum of the weights.
    """

    trace: float = 0.0
    grad_sq: float = 0.0
    weight: float = 0.0

    def observe(
        self, small_sq: float, large_sq: float, small_tokens: float, large_tokens: float
    ) -> None:
        """Take the mean squared gradient norms at two batch sizes, in tokens."""
        trace, grad_sq = noise_terms(small_sq, large_sq, small_tokens, large_tokens)
        if not (math.isfinite(trace) and math.isfinite(grad_sq)):
            return
        self.trace = MEMORY * self.trace + (1 - MEMORY) * trace
        self.grad_sq = MEMORY * self.grad_sq + (1 - MEMORY) * grad_sq
        self.weight = MEMORY * self.weight + (1 - MEMORY)

    @property
    def means(self) -> tuple[float, float] | None:
        """Running means of tr(Sigma) and |G|^2, None before the first measurement."""
        if self.weight == 0:
            return None
        return self.trace / self.weight, self.grad_sq / self.weight

    def state(self) -> dict[str, float]:
        """Return the fields, for a checkpoint."""
        return asdict(self)


def noise_terms(
    small_sq: float, large_sq: float, small_tokens: float, large_tokens: float
) -> tuple[float, float]:
    """Return unbiased estimates of tr(Sigma), per token, and |G|^2.

    Parameters
    ----------
    small_sq, large_sq : float
        Squared norm of the mean gradient over the small batch (averaged over several) and over the
        large one.
    small_tokens, large_tokens : float
        Their sizes.
    """
    trace = (small_sq - large_sq) / (1 / small_tokens - 1 / large_tokens)
    grad_sq = (large_tokens * large_sq - small_tokens * small_sq) / (large_tokens - small_tokens)
    return trace, grad_sq


def critical_batch_curve(rows: Sequence[MetricRow]) -> list[tuple[float, float]]:
    """Return (training loss in nats, critical batch in tokens) of the rows that measured both.

    Rows where the running mean of |G|^2 is not positive, which noise can make it, are left out.
    """
    return [
        (row.loss_nats, row.noise_trace / row.noise_grad_sq)
        for row in rows
        if row.noise_trace is not None and row.noise_grad_sq is not None and row.noise_grad_sq > 0
    ]

"""The gradient noise scale: tr(Sigma) and |G|^2, whose quotient is the critical batch in tokens.

The squared norm of a mean gradient over B tokens is |G|^2 + tr(Sigma)/B in expectation. The norms
at two batch sizes, the micro-batch's and the whole batch's, therefore determine both terms. Each
term has its own running mean, because the mean of their quotient is biased. Below the critical
batch, more tokens a step save steps; above it, most of the extra tokens are wasted.

References
----------
McCandlish et al. 2018, arXiv:1812.06162, section 2.2 and appendix A.1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

MEMORY = 0.98
"""Decay of the running means: they cover about the last 50 steps."""


@dataclass(kw_only=True, slots=True)
class NoiseScale:
    """Running means of the two terms; a checkpoint stores the fields.

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
        """Add the mean squared gradient norms at two batch sizes, given in tokens."""
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
        Squared norms of the mean gradient over a small batch (averaged over several small batches)
        and over the large one.
    small_tokens, large_tokens : float
        Sizes of the two batches.
    """
    trace = (small_sq - large_sq) / (1 / small_tokens - 1 / large_tokens)
    grad_sq = (large_tokens * large_sq - small_tokens * small_sq) / (large_tokens - small_tokens)
    return trace, grad_sq

"""Parameter and FLOP counts, each by a named convention.

What to use when: planning and comparing shapes at equal compute uses ``exact`` FLOPs; comparing
with published laws uses the convention of their authors (``6nd`` with all parameters for
Chinchilla, without embeddings for Kaplan); ``palm`` is what most MFU figures divide by;
``executed`` is what the device executes, recomputation and padding included.

The convention alone can move the fitted exponent a from 0.37 to 0.70, so every count names its own.

References
----------
Kaplan et al. 2020, arXiv:2001.08361, section 2.1 (non-embedding N, C = 6ND).
Hoffmann et al. 2022, arXiv:2203.15556, appendix F (all matrix products, embeddings included).
Chowdhery et al. 2022, arXiv:2204.02311, appendix B (6N + 12 L H Q T per token).
Pearce and Song 2024, arXiv:2406.12907 (effect of the convention on the exponents).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from scalelab.theory.shape import ModelShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Count = TypeVar("Count", float, "NDArray[np.float64]")

PARAM_CONVENTIONS = {
    "chinchilla": "all parameters, embedding and head included",
    "kaplan": "without token embedding and head",
    "matmul": "parameters that multiply activations: blocks and head, no embedding, no norms",
    "active": "as chinchilla, counting only the experts that a token passes through",
}
PARAM_WORDS = {
    "chinchilla": "all parameters",
    "kaplan": "without embeddings",
    "matmul": "matmul",
    "active": "active",
}
"""Each of `PARAM_CONVENTIONS` in words that are not the name of a law."""
FLOP_CONVENTIONS = {
    "6nd": "6 x all parameters x tokens",
    "6nd_kaplan": "6 x parameters without embeddings x tokens",
    "exact": "three times the forward matrix products, causal attention and head included",
    "palm": "6 x parameters + 12 x layers x attention width x sequence length, per token",
    "reported": "as the training program or its table of sizes states them",
    "executed": "as exact, with padding, unmasked attention and recomputation as they were run",
}
DEFAULT_PARAM_CONVENTION = "chinchilla"
DEFAULT_FLOP_CONVENTION = "exact"

FLOPS_PER_PARAM_FORWARD = 2
FLOPS_PER_PARAM_TRAIN = 6
TRAIN_TO_FORWARD = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamCounts:
    """Parameters of a shape, part by part.

    Attributes
    ----------
    embedding : int
        Token embedding, ``vocab_size * d_model`` (unpadded).
    head : int
        Output head; 0 when tied to the embedding.
    attention : int
        Query, key, value and output matrices of all blocks.
    feed_forward : int
        SwiGLU matrices of all blocks, every expert counted (shared ones too), and the routers.
    feed_forward_active : int
        The same, counting only the experts that a token passes through.
    norms : int
        Gains of all norms.
    """

    embedding: int
    head: int
    attention: int
    feed_forward: int
    feed_forward_active: int
    norms: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.head + self.attention + self.feed_forward + self.norms

    def of_active(self) -> ParamCounts:
        """Return the counts without the experts that a token does not pass through."""
        return replace(self, feed_forward=self.feed_forward_active)

    def by_convention(self) -> dict[str, int]:
        """Return the count under each of `PARAM_CONVENTIONS`."""
        blocks = self.attention + self.feed_forward + self.norms
        head_matmul = self.head or self.embedding
        return {
            "chinchilla": self.total,
            "kaplan": blocks,
            "matmul": self.attention + self.feed_forward_active + head_matmul,
            "active": self.of_active().total,
        }


def count_params(shape: ModelShape) -> ParamCounts:
    """Return the parameters of ``shape`` by part (no biases anywhere)."""
    d = shape.d_model
    attention = shape.n_layers * (2 * d * shape.d_attention + 2 * d * shape.d_kv)
    expert = 3 * d * shape.d_ff
    always = d * shape.n_experts + 3 * d * shape.d_shared_expert
    qk_norm = 2 * shape.d_head if shape.has_qk_norm else 0
    return ParamCounts(
        embedding=shape.vocab_size * d,
        head=0 if shape.is_tied else shape.vocab_size * d,
        attention=attention,
        feed_forward=shape.n_layers * (expert * max(shape.n_experts, 1) + always),
        feed_forward_active=shape.n_layers * (expert * max(shape.n_active_experts, 1) + always),
        norms=shape.n_layers * (2 * d + qk_norm) + d,
    )


def train_flops_6nd(n_params: Count, n_tokens: Count) -> Count:
    """Return C = 6 N D, the convention in which most laws are published."""
    return FLOPS_PER_PARAM_TRAIN * n_params * n_tokens


def tokens_at_6nd(flops: Count, n_params: Count) -> Count:
    """Return D = C / (6 N)."""
    return flops / (FLOPS_PER_PARAM_TRAIN * n_params)


def train_flops_per_token(shape: ModelShape, seq_len: int) -> dict[str, float]:
    """Return training FLOPs per token under each analytic convention, of active experts only.

    A multiply-add is two FLOPs; the backward pass is twice the forward. Causal attention costs
    ``4 * d_attention * (seq_len + 1) / 2`` per token and layer forward: position t looks at t keys.

    Returns
    -------
    dict
        FLOPs per token by name: ``6nd``, ``6nd_kaplan``, ``exact``, ``palm``.
    """
    counts = count_params(shape).of_active().by_convention()
    attention_forward = 4 * shape.n_layers * shape.d_attention * (seq_len + 1) / 2
    return {
        "6nd": train_flops_6nd(counts["chinchilla"], 1),
        "6nd_kaplan": train_flops_6nd(counts["kaplan"], 1),
        "exact": TRAIN_TO_FORWARD
        * (FLOPS_PER_PARAM_FORWARD * counts["matmul"] + attention_forward),
        "palm": train_flops_6nd(counts["chinchilla"], 1)
        + 12 * shape.n_layers * shape.d_attention * seq_len,
    }


def executed_flops_per_token(
    shape: ModelShape, seq_len: int, *, skips_masked: bool, recomputes_blocks: bool
) -> float:
    """Return the FLOPs per token that the device executes in training.

    Parameters
    ----------
    shape : ModelShape
    seq_len : int
        Tokens in a sequence.
    skips_masked : bool
        Whether the attention skips the masked half (flash kernels do, explicit attention does not).
    recomputes_blocks : bool
        Whether the blocks' forward pass is run again in the backward pass.
    """
    counts = count_params(shape)
    looked_at = (seq_len + 1) / 2 if skips_masked else seq_len
    block_forward = (
        FLOPS_PER_PARAM_FORWARD * (counts.attention + counts.feed_forward_active)
        + 4 * shape.n_layers * shape.d_attention * looked_at
    )
    head_forward = FLOPS_PER_PARAM_FORWARD * shape.padded_vocab * shape.d_model
    passes = TRAIN_TO_FORWARD + (1 if recomputes_blocks else 0)
    return passes * block_forward + TRAIN_TO_FORWARD * head_forward


def train_flops(shape: ModelShape, seq_len: int, n_tokens: int) -> dict[str, float]:
    """Return the training FLOPs of a run under each analytic convention."""
    per_token = train_flops_per_token(shape, seq_len)
    return {name: value * n_tokens for name, value in per_token.items()}

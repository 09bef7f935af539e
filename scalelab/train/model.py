"""Forward pass of the decoder, for one run or K batched runs, over weights in a flat buffer.

Pre-norm blocks: RMSNorm, causal attention with RoPE, optional QK-norm and grouped key/value heads,
and SwiGLU (dense or a mixture of experts). K batched runs of one shape are a leading dimension of
weights and tokens; no operation mixes runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from scalelab_kernels.operations import Operations
from scalelab_kernels.reference import document_starts, rope_tables
from torch import Tensor
from torch.nn import functional

from scalelab.corpus.tokenizer_names import END_TOKEN
from scalelab.theory.shape import ModelShape
from scalelab.train.moe import RouterWeights, feed_forward
from scalelab.train.parametrization import ShapeFactors
from scalelab.train.precision import Linear, linear

NORM_EPSILON = 1e-6


class Decoder:
    """A decoder-only transformer as a function of its weights.

    Parameters
    ----------
    shape : ModelShape
        Shape of the model.
    weights : Mapping[str, Tensor]
        Named as in `scalelab.train.parameters.lay_out`; each has a leading K for batched runs.
    seq_len : int
        Positions T of the RoPE tables.
    ops : Operations
        Reference or Triton operations.
    attend : Callable
        Attention function, from `scalelab_kernels.operations.get_attention`.
    factors : ShapeFactors
        Factors of the parametrization.
    router_weights : RouterWeights
        Weights of a mixture's router losses.
    linear : Callable
        Linear layer of the blocks, from `scalelab.train.precision.products`.
    softcap : float
        Cap of the logits, 0 for none; only the reference operations have it.
    is_document_masked : bool
        Whether attention stays inside a document.
    end_token : int
        Token that ends a document.
    """

    def __init__(
        self,
        shape: ModelShape,
        weights: Mapping[str, Tensor],
        seq_len: int,
        ops: Operations,
        attend: Callable[..., Tensor],
        factors: ShapeFactors,
        router_weights: RouterWeights,
        linear: Linear = linear,
        *,
        softcap: float = 0.0,
        is_document_masked: bool = False,
        end_token: int = END_TOKEN,
    ) -> None:
        self.linear = linear
        self.is_document_masked = is_document_masked
        self.end_token = end_token
        self.softcap = softcap
        self.shape = shape
        self.weights = weights
        self.ops = ops
        self.attend = attend
        self.factors = factors
        self.router_weights = router_weights
        device = weights["final_norm"].device
        self.cos, self.sin = _rope(seq_len, shape.d_head, device)

    def hidden(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the head's input, shape (..., T, d), and the router losses of tokens (..., T).

        The weighted sum of the router losses, shape () or (K,), is the mean over the blocks of a
        mixture of experts; it is None for a dense model.
        """
        stream = embed(tokens, self.weights["embedding"])
        starts = starts_of(tokens, self.end_token) if self.is_document_masked else None
        output: Tensor | None = None
        penalties = []
        for layer in range(self.shape.n_layers):
            output, stream, penalty = self.run_block(output, stream, layer, starts)
            if penalty is not None:
                penalties.append(penalty)
        normed, _ = self._add_norm(output, stream, "final_norm")
        if self.factors.logits != 1.0:
            normed = normed * self.factors.logits
        return normed, torch.stack(penalties).mean(0) if penalties else None

    def run_block(
        self, output: Tensor | None, stream: Tensor, layer: int, starts: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Apply one block; a sharded model gathers its weights here."""
        return self.block(output, stream, f"layers.{layer}.", starts)

    def block(
        self, output: Tensor | None, stream: Tensor, prefix: str, starts: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Apply one block, whose last residual addition is left to the next norm.

        Parameters
        ----------
        output : Tensor or None
            Output of the block before, not yet added to the stream; None for the first block.
        stream : Tensor, shape (..., T, d)
            Residual stream.
        prefix : str
            Of the block's weights.
        starts : Tensor of int32, shape (..., T), or None
            From `starts_of`; None lets a position see all earlier ones.

        Returns
        -------
        output : Tensor
            Output of this block's feed-forward part, not yet added to the stream.
        stream : Tensor
            Residual stream before that addition.
        penalty : Tensor or None
            Weighted router losses of a mixture of experts.
        """
        w = self.weights
        normed, stream = self._add_norm(output, stream, prefix + "attention_norm")
        mixed = self._branch(self._attend(self.enter(normed), prefix, starts))
        normed, stream = self._add_norm(mixed, stream, prefix + "ff_norm")
        gate_up, down = w[prefix + "gate_up"], w[prefix + "down"]
        if self.shape.n_experts:
            mixed, penalty = feed_forward(
                normed,
                w[prefix + "router"],
                gate_up,
                down,
                self.shape.n_active_experts,
                self.ops,
                self.router_weights,
                shared=self._shared_expert(prefix),
                enter=self.enter,
            )
            return self._branch(mixed), stream, penalty
        return self._branch(self._swiglu(self.enter(normed), gate_up, down)), stream, None

    def _branch(self, x: Tensor) -> Tensor:
        """Return the output of attention or feed-forward layer as it enters the stream."""
        x = self.leave(x)
        return x if self.factors.branch == 1.0 else x * self.factors.branch

    def _shared_expert(self, prefix: str) -> Callable[[Tensor], Tensor] | None:
        if not self.shape.d_shared_expert:
            return None
        gate_up, down = (self.weights[f"{prefix}shared_{name}"] for name in ("gate_up", "down"))
        return functools.partial(self._swiglu, gate_up=gate_up, down=down)

    def _swiglu(self, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return self.linear(self.ops.swiglu(self.linear(x, gate_up)), down)

    def _add_norm(self, output: Tensor | None, stream: Tensor, gain: str) -> tuple[Tensor, Tensor]:
        """Return the norm of the stream after the addition, and the stream."""
        if output is None:
            return self.ops.rms_norm(stream, self.weights[gain], NORM_EPSILON), stream
        return self.ops.add_rms_norm(output, stream, self.weights[gain], NORM_EPSILON)

    def enter(self, x: Tensor) -> Tensor:
        """Return the shared input of a block; under tensor parallelism, its gradient is summed."""
        return x

    def leave(self, x: Tensor) -> Tensor:
        """Return the output of a block; under tensor parallelism, it is summed over devices."""
        return x

    def token_losses(self, tokens: Tensor) -> Tensor:
        """Return the loss of each token in nats, shape (..., T), for tokens (..., T + 1)."""
        hidden, _ = self.hidden(tokens[..., :-1])
        return self.each_loss(hidden, tokens[..., 1:])

    def loss_sums(self, tokens: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
        """Return sums over the tokens (..., T + 1), each of shape () or (K,).

        Returns
        -------
        loss : Tensor
            Cross-entropy plus z-loss in nats: the reported loss.
        objective : Tensor
            The same plus the router losses: the loss to differentiate.
        """
        hidden, penalty = self.hidden(tokens[..., :-1])
        targets = tokens[..., 1:]
        loss = self.summed_loss(hidden, targets, z_loss)
        if penalty is None:
            return loss, loss
        n_targets = targets.numel() // max(penalty.numel(), 1)
        return loss, loss + n_targets * penalty

    def each_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each target, given the head's input."""
        return self.ops.linear_cross_entropy(hidden, self.head(), targets, softcap=self.softcap)

    def summed_loss(self, hidden: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        """Return the sum of the targets' losses plus z-loss, given the head's input."""
        return self.ops.linear_cross_entropy_sum(
            hidden, self.head(), targets, z_loss=z_loss, softcap=self.softcap
        )

    def head(self) -> Tensor:
        """Return the head's weight, shape (V, d), without the padding rows of the vocabulary."""
        head = self.weights["embedding" if self.shape.is_tied else "head"]
        return head.narrow(-2, 0, self.shape.vocab_size)

    def _attend(self, normed: Tensor, prefix: str, starts: Tensor | None) -> Tensor:
        w, shape = self.weights, self.shape
        q, k, v = self.ops.qk_norm_rope(
            self.linear(normed, w[prefix + "qkv"]),
            w.get(prefix + "q_norm"),
            w.get(prefix + "k_norm"),
            self.cos,
            self.sin,
            shape.n_heads,
            shape.kv_heads,
            NORM_EPSILON,
        )
        mixed = self.attend(q, k, v, scale=self.factors.attention, starts=starts)
        return self.linear(mixed.transpose(-2, -3).flatten(-2), w[prefix + "out"])


@functools.lru_cache(maxsize=8)
def _rope(seq_len: int, d_head: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the RoPE tables, which all decoders of a size share."""
    return rope_tables(seq_len, d_head, device=device)


def starts_of(tokens: Tensor, end_token: int = END_TOKEN) -> Tensor:
    """Return the first position of each position's document: int32, the shape of the tokens.

    A document ends with its ``end_token``. The first one of a sequence may have begun before it.
    """
    is_end = (tokens == end_token).int()
    return document_starts(is_end.cumsum(-1) - is_end)


def embed(tokens: Tensor, weight: Tensor) -> Tensor:
    """Return the tokens' rows of weight (V, d), or of (K, V, d) for tokens (K, ...)."""
    if weight.ndim == 2:
        return functional.embedding(tokens, weight)
    n_runs, n_rows, width = weight.shape
    first = torch.arange(n_runs, device=tokens.device).mul_(n_rows)
    rows = tokens + first.view(-1, *[1] * (tokens.ndim - 1))
    return functional.embedding(rows, weight.reshape(-1, width))

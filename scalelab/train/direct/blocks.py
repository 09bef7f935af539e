"""The blocks of a dense decoder as recorded calls over fixed buffers on a CPU.

A block is attention and SwiGLU, each behind a norm. It adds to the residual stream in the forward
pass and to its gradient, which has the same buffer, in the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scalelab.theory.shape import ModelShape
from scalelab.train.direct.calls import Calls
from scalelab.train.direct.heads import Heads, SavedHeads
from scalelab.train.direct.matrix import Matrix
from scalelab.train.direct.norm import Norm, SavedNorm


@dataclass(kw_only=True, slots=True)
class _Saved:
    """Values that a block saves for its backward pass."""

    first: SavedNorm
    second: SavedNorm
    heads: SavedHeads
    mixed: Tensor
    gate_up: Tensor
    gate: Tensor
    hidden: Tensor


@dataclass(kw_only=True, slots=True)
class _Matrices:
    """Weights of a block."""

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix


class Blocks:
    """All blocks of K runs.

    Parameters
    ----------
    shape : ModelShape
        A dense model.
    weights : Mapping of Tensor, fp32
        Views of the runs' weights, each with a leading K.
    grads : Mapping of Tensor, fp32
        Views of their gradients, which `backward` writes; empty for an evaluation.
    stream : Tensor of fp32, shape (K, d, M)
        The residual stream, then its gradient.
    heads : Heads
        Attention.
    norm : Norm
        Norms of the stream.
    branch_scale : float
        Factor of what a block adds to the stream.
    dtype : torch.dtype
        Of the factors of products: fp32 or bf16.
    """

    def __init__(
        self,
        shape: ModelShape,
        weights: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        *,
        stream: Tensor,
        heads: Heads,
        norm: Norm,
        branch_scale: float,
        dtype: torch.dtype,
    ) -> None:
        self.shape, self.dtype, self.branch_scale = shape, dtype, branch_scale
        self.heads, self.norm = heads, norm
        self._stream = stream
        self._w, self._g = weights, grads
        self._matrices = [self._new_matrices(layer) for layer in range(shape.n_layers)]
        # An evaluation saves nothing for a backward pass.
        self._saved = [self._new_saved() for _ in range(shape.n_layers if grads else 1)]
        if grads:
            is_half = dtype != torch.float32
            self._grad_stream = self._factor(shape.d_model) if is_half else stream
            self._branch = torch.empty_like(stream)
            self._grad_qkv = torch.empty_like(self._saved[0].heads.qkv)
            self._grad_rotated = heads.new_rotated()
            self._grad_mixed = self._factor(shape.d_attention)
            self._grad_hidden, self._grad_gate = (self._factor(shape.d_ff) for _ in range(2))
            self._grad_gate_up = self._factor(2 * shape.d_ff)

    def forward(self, calls: Calls, layer: int) -> None:
        """Add the calls of a block's forward pass."""
        w, saved, stream = (
            self._matrices[layer],
            self._saved[layer % len(self._saved)],
            self._stream,
        )
        for matrix in (w.qkv, w.out, w.gate_up, w.down):
            matrix.refresh(calls)
        self.norm.forward(calls, stream, saved.first)
        calls.matmuls(w.qkv.operand, saved.first.factor, saved.heads.qkv)
        self.heads.forward(calls, saved.heads, self._gains(self._w, layer), saved.mixed)
        calls.matmuls(w.out.operand, saved.mixed, stream, self.branch_scale, adds=True)
        self.norm.forward(calls, stream, saved.second)
        calls.matmuls(w.gate_up.operand, saved.second.factor, saved.gate_up)
        gate, up = saved.gate_up.chunk(2, 1)
        calls.add(torch.ops.aten.silu.out, gate, out=saved.gate)
        calls.add(torch.mul, saved.gate, up, out=saved.hidden)
        calls.matmuls(w.down.operand, saved.hidden, stream, self.branch_scale, adds=True)

    def backward(self, calls: Calls, layer: int) -> None:
        """Add the calls of a block's backward pass, after those of the later blocks."""
        w, saved, g, prefix = self._matrices[layer], self._saved[layer], self._g, _prefix(layer)
        grad, branch, scale = self._grad_stream, self._branch, self.branch_scale
        gate, up = saved.gate_up.chunk(2, 1)
        grad_gate, grad_up = self._grad_gate_up.chunk(2, 1)
        calls.convert(self._stream, grad)
        calls.matmuls(grad, saved.hidden.mT, g[prefix + "down"], scale)
        calls.matmuls(w.down.turned, grad, self._grad_hidden, scale)
        calls.add(torch.mul, self._grad_hidden, saved.gate, out=grad_up)
        calls.add(torch.mul, self._grad_hidden, up, out=self._grad_gate)
        calls.add(
            torch.ops.aten.silu_backward.grad_input, self._grad_gate, gate, grad_input=grad_gate
        )
        calls.matmuls(self._grad_gate_up, saved.second.factor.mT, g[prefix + "gate_up"])
        w.gate_up.unfold(calls, g[prefix + "gate_up"], g[prefix + "ff_norm"])
        calls.matmuls(w.gate_up.turned, self._grad_gate_up, branch)
        self.norm.backward(calls, branch, saved.second, self._stream)
        calls.convert(self._stream, grad)
        calls.matmuls(grad, saved.mixed.mT, g[prefix + "out"], scale)
        calls.matmuls(w.out.turned, grad, self._grad_mixed, scale)
        self.heads.backward(
            calls,
            saved.heads,
            self._grad_mixed,
            self._grad_rotated,
            self._grad_qkv,
            self._gains(g, layer),
        )
        calls.matmuls(self._grad_qkv, saved.first.factor.mT, g[prefix + "qkv"])
        w.qkv.unfold(calls, g[prefix + "qkv"], g[prefix + "attention_norm"])
        calls.matmuls(w.qkv.turned, self._grad_qkv, branch)
        self.norm.backward(calls, branch, saved.first, self._stream)

    def _gains(self, views: Mapping[str, Tensor], layer: int) -> tuple[Tensor, Tensor] | None:
        if not self.shape.has_qk_norm:
            return None
        return views[_prefix(layer) + "q_norm"], views[_prefix(layer) + "k_norm"]

    def _factor(self, n_features: int) -> Tensor:
        """Return a buffer for a factor of products, shape (K, n_features, M)."""
        n_runs, _, n_tokens = self._stream.shape
        return torch.empty(n_runs, n_features, n_tokens, dtype=self.dtype)

    def _new_matrices(self, layer: int) -> _Matrices:
        def matrix(name: str, gain: str | None = None) -> Matrix:
            return Matrix(
                self._w[_prefix(layer) + name],
                None if gain is None else self._w[_prefix(layer) + gain],
                dtype=self.dtype,
                has_backward=bool(self._g),
            )

        return _Matrices(
            qkv=matrix("qkv", "attention_norm"),
            out=matrix("out"),
            gate_up=matrix("gate_up", "ff_norm"),
            down=matrix("down"),
        )

    def _new_saved(self) -> _Saved:
        shape = self.shape
        return _Saved(
            first=self.norm.new_saved(self.dtype),
            second=self.norm.new_saved(self.dtype),
            heads=self.heads.new_saved(),
            mixed=self._factor(shape.d_attention),
            gate_up=self._factor(2 * shape.d_ff),
            gate=self._factor(shape.d_ff),
            hidden=self._factor(shape.d_ff),
        )


def _prefix(layer: int) -> str:
    return f"layers.{layer}."

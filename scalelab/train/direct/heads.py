"""QK-norm, RoPE and attention of a block as recorded calls over fixed buffers on a CPU.

Queries and keys are normalised and rotated together, then arranged by head for
`scalelab.train.direct.attention`. In bf16, QK-norm and RoPE are computed in fp32.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from scalelab_kernels.reference import rope_tables
from torch import Tensor

from scalelab.theory.shape import ModelShape
from scalelab.train.direct.attention import DirectAttention
from scalelab.train.direct.calls import Calls
from scalelab.train.direct.norm import finish_rstd


@dataclass(kw_only=True, slots=True)
class SavedHeads:
    """Values that a block's heads save for the backward pass.

    Attributes
    ----------
    qkv : Tensor, shape (K, (H + 2 G) D, M)
        Input of the heads.
    qk : Tensor of fp32, shape (K, H + G, D, M)
        Normalised queries and keys, without their gains; in fp32 a part of ``qkv``.
    rstd : Tensor, shape (K, H + G, 1, M)
        Reciprocal root mean squares of queries and keys.
    gains : Tensor, shape (K, H + G, D, 1)
        Gains of the QK-norm, for each head.
    rotated : Tensor, shape (H + 2 G, K B, D, T)
        Rotated queries and keys, and values.
    weights : list of Tensor
        Attention weights.
    """

    qkv: Tensor
    qk: Tensor
    rstd: Tensor
    gains: Tensor
    rotated: Tensor
    weights: list[Tensor]


class Heads:
    """QK-norm, RoPE and attention of K runs.

    Parameters
    ----------
    shape : ModelShape
    n_runs, n_seqs, seq_len : int
        K, B and T; the M = B T tokens of a run are contiguous in memory.
    scale : float
        Factor of the attention scores.
    is_document_masked : bool
        Whether attention stays inside a document.
    dtype : torch.dtype
        Of the input, of the attention and of their gradients: fp32 or bf16.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        n_runs: int,
        n_seqs: int,
        seq_len: int,
        scale: float,
        is_document_masked: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.n_runs, self.n_seqs, self.seq_len = n_runs, n_seqs, seq_len
        self.n_rotated = shape.n_heads + shape.kv_heads
        self.n_all = self.n_rotated + shape.kv_heads
        self.attention = DirectAttention(
            n_heads=shape.n_heads,
            n_kv_heads=shape.kv_heads,
            n_seqs=n_runs * n_seqs,
            d_head=shape.d_head,
            seq_len=seq_len,
            scale=scale,
            is_document_masked=is_document_masked,
            dtype=dtype,
        )
        cos, sin = rope_tables(seq_len, shape.d_head)
        self._cos, self._sin = cos.t().contiguous(), sin.t().contiguous()
        self._scratch = torch.empty(n_runs, self.n_rotated, shape.d_head, n_seqs * seq_len)
        self._sums = torch.empty(n_runs, self.n_rotated, 1, n_seqs * seq_len)
        self._gain_sums = torch.empty(n_runs, self.n_rotated, shape.d_head)
        is_half = dtype != torch.float32
        self._wide_rotated = self.new_rotated().float()[: self.n_rotated] if is_half else None
        self._wide_grad = torch.empty_like(self._scratch) if is_half else None

    def new_saved(self) -> SavedHeads:
        """Return buffers for one block."""
        n_tokens, d_head = self.n_seqs * self.seq_len, self.shape.d_head
        qkv = torch.empty(self.n_runs, self.n_all * d_head, n_tokens, dtype=self.dtype)
        is_half = self.dtype != torch.float32
        return SavedHeads(
            qkv=qkv,
            qk=torch.empty_like(self._scratch) if is_half else self._qk_of(qkv),
            rstd=torch.empty_like(self._sums),
            gains=torch.empty(self.n_runs, self.n_rotated, d_head, 1),
            rotated=self.new_rotated(),
            weights=self.attention.new_weights(),
        )

    def new_rotated(self) -> Tensor:
        """Return a buffer for queries, keys and values, or for their gradients, by head."""
        n_seqs = self.n_runs * self.n_seqs
        return torch.empty(self.n_all, n_seqs, self.shape.d_head, self.seq_len, dtype=self.dtype)

    def forward(
        self, calls: Calls, saved: SavedHeads, gains: tuple[Tensor, Tensor] | None, mixed: Tensor
    ) -> None:
        """Add the calls that write the mixed heads from ``saved.qkv``.

        Parameters
        ----------
        calls : Calls
            Appended to.
        saved : SavedHeads
            ``qkv`` is read, the other fields are written.
        gains : pair of Tensor, shape (K, D), or None
            Gains of the QK-norm, for queries and for keys.
        mixed : Tensor, shape (K, H D, M)
            Written.
        """
        qk = saved.qk
        calls.convert(self._qk_of(saved.qkv), qk)
        if gains is not None:
            for part, gain in zip(self._kinds(saved.gains), gains, strict=True):
                calls.add(part.copy_, gain.view(self.n_runs, 1, -1, 1).expand_as(part))
            calls.add(torch.mul, qk, qk, out=self._scratch)
            calls.add(torch.sum, self._scratch, 2, keepdim=True, out=saved.rstd)
            finish_rstd(calls, saved.rstd, self.shape.d_head)
            calls.add(qk.mul_, saved.rstd)
            calls.add(torch.mul, qk, saved.gains, out=self._scratch)
            qk = self._scratch
        out = self._five(saved.rotated)
        rotated = self._wide(out[: self.n_rotated])
        self._rotate(calls, self._by_head(qk), rotated, self._sin)
        calls.convert(rotated, out[: self.n_rotated])
        values = self._heads_of(saved.qkv)[:, self.n_rotated :]
        calls.add(out[self.n_rotated :].copy_, self._by_head(values))
        q, k, v = self._split(saved.rotated)
        into = self._by_head(self._heads_of(mixed))
        self.attention.forward(calls, q, k, v, saved.weights, into)

    def backward(
        self,
        calls: Calls,
        saved: SavedHeads,
        grad_mixed: Tensor,
        grad_rotated: Tensor,
        grad_qkv: Tensor,
        grad_gains: tuple[Tensor, Tensor] | None,
    ) -> None:
        """Add the calls that write the gradients of qkv and of the gains.

        Parameters
        ----------
        calls : Calls
            Appended to.
        saved : SavedHeads
            From `forward`.
        grad_mixed : Tensor, shape (K, H D, M)
        grad_rotated : Tensor
            From `new_rotated`; written.
        grad_qkv : Tensor, shape (K, (H + 2 G) D, M)
            Written.
        grad_gains : pair of Tensor, shape (K, D), or None
            Written.
        """
        q, k, v = self._split(saved.rotated)
        by_head = self._by_head(self._heads_of(grad_mixed))
        grads = self._split(grad_rotated)
        self.attention.backward(calls, by_head, q, k, v, saved.weights, grads)
        grad_heads, out = self._five(grad_rotated), self._heads_of(grad_qkv)
        n_rotated = self.n_rotated
        calls.add(self._by_head(out[:, n_rotated:]).copy_, grad_heads[n_rotated:])
        grad_qk = out[:, :n_rotated] if self._wide_grad is None else self._wide_grad
        rotated = self._wide(grad_heads[:n_rotated])
        calls.convert(grad_heads[:n_rotated], rotated)
        self._rotate(calls, rotated, self._by_head(grad_qk), -self._sin)
        if grad_gains is not None:
            self._backward_norm(calls, saved, grad_qk, grad_gains)
        calls.convert(grad_qk, out[:, :n_rotated])

    def _backward_norm(
        self, calls: Calls, saved: SavedHeads, grad_qk: Tensor, grad_gains: tuple[Tensor, Tensor]
    ) -> None:
        """Add the calls that turn the gradient of the QK-norm's output into that of its input."""
        normed = saved.qk
        calls.add(torch.mul, grad_qk, normed, out=self._scratch)
        calls.add(torch.sum, self._scratch, 3, out=self._gain_sums)
        for part, grad in zip(self._kinds(self._gain_sums), grad_gains, strict=True):
            calls.add(torch.sum, part, 1, out=grad)
        calls.add(self._scratch.mul_, saved.gains)
        calls.add(torch.sum, self._scratch, 2, keepdim=True, out=self._sums)
        calls.add(grad_qk.mul_, saved.gains)
        calls.add(grad_qk.addcmul_, normed, self._sums, value=-1 / self.shape.d_head)
        calls.add(grad_qk.mul_, saved.rstd)

    def _rotate(self, calls: Calls, x: Tensor, out: Tensor, sin: Tensor) -> None:
        """Rotate feature pairs (dimension -2) by the positions' angles; -sin rotates back."""
        half = self.shape.d_head // 2
        first, second = x[..., :half, :], x[..., half:, :]
        low, high = out[..., :half, :], out[..., half:, :]
        calls.add(torch.mul, first, self._cos, out=low)
        calls.add(low.addcmul_, second, sin, value=-1)
        calls.add(torch.mul, second, self._cos, out=high)
        calls.add(high.addcmul_, first, sin)

    def _wide(self, rotated: Tensor) -> Tensor:
        """Return where queries and keys are rotated: the buffer itself if it is fp32."""
        return rotated if self._wide_rotated is None else self._five(self._wide_rotated)

    def _qk_of(self, qkv: Tensor) -> Tensor:
        """View the queries and keys of (K, heads x D, M) as (K, H + G, D, M)."""
        return self._heads_of(qkv)[:, : self.n_rotated]

    def _kinds(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the queries and the keys; heads are dimension 1."""
        return heads[:, : self.shape.n_heads], heads[:, self.shape.n_heads :]

    def _heads_of(self, x: Tensor) -> Tensor:
        """View (K, heads x D, M) as (K, heads, D, M)."""
        return x.view(self.n_runs, -1, self.shape.d_head, self.n_seqs * self.seq_len)

    def _by_head(self, heads: Tensor) -> Tensor:
        """View (K, heads, D, M) as (heads, K, B, D, T)."""
        d_head = self.shape.d_head
        apart = heads.view(self.n_runs, -1, d_head, self.n_seqs, self.seq_len)
        return apart.permute(1, 0, 3, 2, 4)

    def _five(self, heads: Tensor) -> Tensor:
        """View (heads, K B, D, T) as (heads, K, B, D, T)."""
        return heads.view(-1, self.n_runs, self.n_seqs, self.shape.d_head, self.seq_len)

    def _split(self, heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v, each (heads K B, D, T)."""
        ends = itertools.pairwise((0, self.shape.n_heads, self.n_rotated, self.n_all))
        q, k, v = (heads[start:end].flatten(0, 1) for start, end in ends)
        return q, k, v

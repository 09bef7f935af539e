"""Causal attention and its derivatives as recorded calls over fixed buffers on a CPU.

A block of queries uses only the keys up to its end, so most masked scores are never computed. The
layout is heads, sequences, features, positions: each product is one batched matmul, and other
operations run over contiguous memory.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from scalelab.train.direct.calls import Calls

QUERY_BLOCKS = {torch.float32: 64, torch.bfloat16: 128}
"""Queries in a block: smaller blocks skip more masked scores, larger ones have larger products."""


class DirectAttention:
    """Attention over N sequences (of all batched runs) of one shape and length.

    Parameters
    ----------
    n_heads, n_kv_heads : int
        H and G; query head h uses key head ``h // (H / G)``.
    n_seqs, d_head, seq_len : int
        N, D and T.
    scale : float
        Factor of the scores.
    is_document_masked : bool
        Whether a query sees only keys of its document, given by `set_documents`.
    dtype : torch.dtype
        Of all tensors.
    """

    def __init__(
        self,
        *,
        n_heads: int,
        n_kv_heads: int,
        n_seqs: int,
        d_head: int,
        seq_len: int,
        scale: float,
        is_document_masked: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.scale = scale
        self.dtype = dtype
        self._hidden = self._empty(n_seqs, seq_len, seq_len) if is_document_masked else None
        self.n_rows = n_heads * n_seqs
        self.d_head = d_head
        if n_heads == n_kv_heads:
            self._pairs = [(slice(None), slice(None))]
        else:
            group = n_heads // n_kv_heads
            self._pairs = [
                (
                    slice(head * n_seqs, (head + 1) * n_seqs),
                    slice(head // group * n_seqs, (head // group + 1) * n_seqs),
                )
                for head in range(n_heads)
            ]
        block = QUERY_BLOCKS[dtype]
        ends = [*range(block, seq_len, block), seq_len]
        self.blocks = list(itertools.pairwise((0, *ends)))
        longest = max(e - s for s, e in self.blocks)
        flat = self._empty(self.n_rows * longest * seq_len)
        # Scores in the forward pass, their gradients in the backward pass.
        self._scores = [
            flat[: self.n_rows * (e - s) * e].view(self.n_rows, e - s, e) for s, e in self.blocks
        ]
        self._mixed = [self._empty(self.n_rows, d_head, e - s) for s, e in self.blocks]
        self._masks = [
            self._empty(e - s, e - s).fill_(float("-inf")).triu_(diagonal=1) for s, e in self.blocks
        ]
        self._key_rows = n_kv_heads * n_seqs
        self._key_part = [self._empty(self._key_rows, d_head, e) for _, e in self.blocks]

    def new_weights(self) -> list[Tensor]:
        """Return buffers for the attention weights of each query block; `backward` reads them."""
        return [self._empty(self.n_rows, e - s, e) for s, e in self.blocks]

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self.dtype)

    def set_documents(self, starts: Tensor) -> None:
        """Take the first position of each position's document, shape (N, T)."""
        assert self._hidden is not None
        positions = torch.arange(starts.shape[-1])
        self._hidden.zero_().masked_fill_(positions < starts.unsqueeze(-1), float("-inf"))

    def forward(
        self, calls: Calls, q: Tensor, k: Tensor, v: Tensor, weights: list[Tensor], out: Tensor
    ) -> None:
        """Add the calls that write the attention weights and the mixed values.

        Parameters
        ----------
        calls : Calls
            Appended to.
        q : Tensor, shape (H N, D, T)
        k, v : Tensor, shape (G N, D, T)
        weights : list of Tensor
            From `new_weights`; written.
        out : Tensor, shape (H, .., D, T), any strides
            Written. The dimensions between H and D multiply to N.
        """
        for index, (start, end) in enumerate(self.blocks):
            scores, mixed = self._scores[index], self._mixed[index]
            for rows, keys in self._pairs:
                part = scores[rows]
                calls.add(
                    torch.baddbmm,
                    part,
                    q[rows, :, start:end].mT,
                    k[keys, :, :end],
                    beta=0,
                    alpha=self.scale,
                    out=part,
                )
            calls.add(scores[:, :, start:].add_, self._masks[index])
            if self._hidden is not None:
                # Hidden scores get a weight of zero, so the backward pass needs no mask.
                by_head = scores.view(-1, *self._hidden.shape[:1], end - start, end)
                calls.add(by_head.add_, self._hidden[:, start:end, :end])
            calls.add(torch.softmax, scores, -1, out=weights[index])
            for rows, keys in self._pairs:
                calls.add(torch.bmm, v[keys, :, :end], weights[index][rows].mT, out=mixed[rows])
            block = out[..., start:end]
            calls.add(block.copy_, mixed.view(block.shape))

    def backward(
        self,
        calls: Calls,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        weights: list[Tensor],
        grads: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Add the calls that write the gradients of q, k and v, given the gradient of ``out``."""
        grad_q, grad_k, grad_v = grads
        for index in reversed(range(len(self.blocks))):
            start, end = self.blocks[index]
            is_last = index == len(self.blocks) - 1
            grad_mixed, grad_scores = self._mixed[index], self._scores[index]
            block = grad_out[..., start:end]
            calls.add(grad_mixed.view(block.shape).copy_, block)
            for rows, keys in self._pairs:
                calls.add(torch.bmm, grad_mixed[rows].mT, v[keys, :, :end], out=grad_scores[rows])
            into = grad_v if is_last else self._key_part[index]
            self._sum_groups(calls, grad_mixed, weights[index], into, 1.0)
            if not is_last:
                calls.add(grad_v[:, :, :end].add_, into)
            calls.add(
                torch.ops.aten._softmax_backward_data.out,
                grad_scores,
                weights[index],
                -1,
                self.dtype,
                grad_input=grad_scores,
            )
            for rows, keys in self._pairs:
                part = grad_mixed[rows]
                calls.add(
                    torch.baddbmm,
                    part,
                    k[keys, :, :end],
                    grad_scores[rows].mT,
                    beta=0,
                    alpha=self.scale,
                    out=part,
                )
            calls.add(grad_q[:, :, start:end].copy_, grad_mixed)
            into = grad_k if is_last else self._key_part[index]
            self._sum_groups(calls, q[:, :, start:end], grad_scores, into, self.scale)
            if not is_last:
                calls.add(grad_k[:, :, :end].add_, into)

    def _sum_groups(
        self, calls: Calls, left: Tensor, right: Tensor, out: Tensor, alpha: float
    ) -> None:
        """Add calls that write ``alpha * left @ right``, summed over a key head's query heads."""
        written: set[int] = set()
        for rows, keys in self._pairs:
            part = out[keys]
            calls.add(
                torch.baddbmm,
                part,
                left[rows],
                right[rows],
                beta=int((keys.start or 0) in written),
                alpha=alpha,
                out=part,
            )
            written.add(keys.start or 0)

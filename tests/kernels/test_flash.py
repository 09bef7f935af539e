"""FlashAttention through its own operator; a double of the operator stands in for the GPU's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scalelab_kernels import flash, reference
from scalelab_kernels.errors import KernelUnavailableError
from torch import Tensor

OPERATOR = "_scaled_dot_product_flash_attention"


def softmax_of(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Return the weights (B, H, T, T) in fp32."""
    wide = k.float().repeat_interleave(q.shape[1] // k.shape[1], 1)
    hidden = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).triu(1)
    scores = (q.float() @ wide.transpose(-1, -2) * scale).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1)


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Give the operator to CPU tensors; return the deterministic modes of its backward calls."""
    seen: list[bool] = []

    def forward(
        q: Tensor, k: Tensor, v: Tensor, dropout: float, causal: bool, *_: Any, scale: float
    ) -> tuple[Any, ...]:
        assert (dropout, causal, q.shape[-1] % 8) == (0.0, True, 0)
        out = softmax_of(q, k, scale) @ v.float().repeat_interleave(q.shape[1] // k.shape[1], 1)
        out = out.to(q.dtype).transpose(1, 2).contiguous().transpose(1, 2)
        seeds = torch.empty(2, dtype=torch.uint64), torch.empty((), dtype=torch.uint64)
        length = q.shape[-2]
        return out, out.new_zeros(q.shape[:3]), None, None, length, length, *seeds, out.new_empty(0)

    def backward(
        grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        lengths_q: Any, lengths_k: Any, longest_q: int, longest_k: int,
        dropout: float, causal: bool, seed: Tensor, offset: Tensor, *, scale: float,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        # The operator takes other lengths, if given, as those of sequences in one row.
        assert (lengths_q, lengths_k, longest_q, longest_k) == (
            None,
            None,
            q.shape[-2],
            k.shape[-2],
        )
        assert (dropout, causal) == (0.0, True)
        assert not torch.utils.deterministic.fill_uninitialized_memory
        seen.append(torch.are_deterministic_algorithms_enabled())
        n_groups, group = k.shape[1], q.shape[1] // k.shape[1]
        weights, upstream = softmax_of(q, k, scale), grad_out.float()
        wide_k, wide_v = (t.float().repeat_interleave(group, 1) for t in (k, v))
        grad_weights = upstream @ wide_v.transpose(-1, -2)
        dot = (grad_weights * weights).sum(-1, keepdim=True)
        grad_scores = weights * (grad_weights - dot) * scale
        grad_k = (grad_scores.transpose(-1, -2) @ q.float()).unflatten(1, (n_groups, group)).sum(2)
        grad_v = (weights.transpose(-1, -2) @ upstream).unflatten(1, (n_groups, group)).sum(2)
        return tuple(t.to(q.dtype) for t in (grad_scores @ wide_k, grad_k, grad_v))

    library = torch.library.Library("aten", "IMPL")
    library.impl(OPERATOR, forward, "CPU")
    library.impl(f"{OPERATOR}_backward", backward, "CPU")
    yield seen
    library._destroy()


@pytest.mark.parametrize(("lead", "head_dim"), [((2,), 16), ((2,), 12), ((3, 2), 20)])
def test_flash_attention_is_the_reference_with_deterministic_gradients(
    modes: list[bool], lead: tuple[int, ...], head_dim: int
) -> None:
    leaves = [
        torch.randn(*lead, 9, heads, head_dim, dtype=torch.bfloat16, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    by_head = [leaf.transpose(-2, -3) for leaf in leaves]
    found = flash.causal_attention(*by_head)
    expected = reference.causal_attention(*(t.float() for t in by_head)).bfloat16()
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(found, expected)
    grads = torch.autograd.grad(found, leaves, upstream)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, leaves, upstream))
    assert modes == [True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_unsupported_attention_is_an_error() -> None:
    q = torch.zeros(1, 2, 4, 8)
    for tensor, changes in (
        (q, {}),
        (q.bfloat16().expand(1, 2, 4, 8), {"starts": torch.zeros(1, 4, dtype=torch.int32)}),
        (torch.zeros(1, 1, 2, 264, dtype=torch.bfloat16), {}),
    ):
        with pytest.raises(KernelUnavailableError, match="sdpa or triton"):
            flash.causal_attention(tensor, tensor, tensor, **changes)

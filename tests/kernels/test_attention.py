from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab_kernels import attention, reference
from scalelab_kernels.errors import KernelUnavailableError

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(lead, n_heads, n_kv_heads, n_positions, head_dim):
    q = torch.randn(*lead, n_heads, n_positions, head_dim) * 2
    k, v = (torch.randn(*lead, n_kv_heads, n_positions, head_dim) for _ in range(2))
    return [q, k, v]


class FromDelta(torch.autograd.Function):
    """Softmax of scores times values, with the backward pass of fused attention.

    It saves the log-partition instead of the weights. The backward of softmax sums weights times
    gradients; this one uses the row's dot product of result and gradient, as fused algorithms do.
    It therefore rounds gradients that cancel, and a query that sees one key gets a gradient that is
    not exactly zero.
    """

    @staticmethod
    def forward(ctx, scores, values):
        log_sums = scores.logsumexp(-1, keepdim=True)
        out = (scores - log_sums).exp() @ values
        ctx.save_for_backward(scores, values, out, log_sums)
        return out

    @staticmethod
    def backward(ctx, grad):
        scores, values, out, log_sums = ctx.saved_tensors
        weights = (scores - log_sums).exp()
        delta = (out * grad).sum(-1, keepdim=True)
        return weights * (grad @ values.mT - delta), weights.mT @ grad


def fused_formula(q, k, v, *, scale=None, starts=None):
    n_heads, n_positions, head_dim = q.shape[-3:]
    k, v = (t.repeat_interleave(n_heads // k.shape[-3], -3) for t in (k, v))
    position = torch.arange(n_positions)
    is_seen = position[:, None] >= position
    if starts is not None:
        is_seen = (is_seen & (position >= starts.unsqueeze(-1))).unsqueeze(-3)
    scores = (q @ k.mT) * (head_dim**-0.5 if scale is None else scale)
    scores = scores.masked_fill(~is_seen, float("-inf"))
    return FromDelta.apply(scores, v)


def compare(check_op, inputs, dtype, **settings):
    """Apply the rule, with torch's fused attention, which does not save the weights either."""

    def bound(module, **more):
        return lambda *qkv: module.causal_attention(*qkv, **settings, **more)

    check_op(
        bound(attention),
        bound(reference),
        inputs,
        dtype,
        torch_s_own=bound(reference, path="sdpa"),
        rounded=lambda *qkv: fused_formula(*qkv, **settings),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lead", "n_heads", "n_kv_heads", "n_positions", "head_dim"),
    [
        ((1,), 1, 1, 1, 2),
        ((2,), 2, 2, 33, 32),
        ((), 4, 2, 17, 10),
        ((3, 2), 2, 1, 5, 16),
        ((1,), 1, 1, 48, 64),
        ((1,), 2, 1, 9, 128),
    ],
)
def test_values_and_gradients(check_op, lead, n_heads, n_kv_heads, n_positions, head_dim, dtype):
    compare(check_op, make(lead, n_heads, n_kv_heads, n_positions, head_dim), dtype)


@pytest.mark.parametrize(
    ("lengths", "dtype"),
    [
        ([1] * 40, torch.float32),
        ([16, 16, 8], torch.float32),
        ([39, 1], torch.float32),
        ([3, 17, 20], torch.bfloat16),
    ],
)
def test_documents_see_only_themselves(check_op, lengths, dtype):
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    # A second sequence with other documents, so that mixed-up rows of the batch show.
    starts = reference.document_starts(torch.stack((ids, ids.flip(0))))
    compare(check_op, make((2,), 2, 1, 40, 8), dtype, starts=starts)


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(
    n_positions=st.integers(1, 40),
    n_kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    head_dim=st.integers(1, 20),
    scale=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(check_op, n_positions, n_kv_heads, group, head_dim, scale, seed):
    torch.manual_seed(seed)
    starts = reference.document_starts(torch.rand(1, n_positions).lt(0.3).cumsum(1))
    inputs = make((1,), n_kv_heads * group, n_kv_heads, n_positions, head_dim)
    compare(check_op, inputs, torch.float32, scale=scale, starts=starts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_scores_do_not_overflow(check_op, dtype):
    q, k, v = make((1,), 2, 2, 20, 16)
    compare(check_op, [q * 100, k * 30, v], dtype)


def test_token_major_heads_are_read_by_their_strides(check_op):
    inputs = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in make((2,), 4, 2, 19, 16)]
    compare(check_op, inputs, torch.float32)


def test_a_later_key_has_no_effect():
    q, k, v = make((1,), 2, 1, 21, 8)
    before = attention.causal_attention(q, k, v)
    k[..., 13:, :] *= 1e4
    v[..., 13:, :] -= 1e4
    after = attention.causal_attention(q, k, v)
    assert torch.equal(before[..., :13, :], after[..., :13, :])
    assert not torch.equal(before[..., 13, :], after[..., 13, :])


def test_two_runs_are_bitwise_equal():
    inputs = [t.bfloat16().requires_grad_() for t in make((1,), 2, 1, 37, 32)]

    def once():
        out = attention.causal_attention(*inputs)
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_not_positive_is_an_error(scale):
    with pytest.raises(ValueError, match="positive"):
        attention.causal_attention(*make((1,), 1, 1, 2, 2), scale=scale)


def test_heads_too_large_for_shared_memory_are_an_error():
    with pytest.raises(KernelUnavailableError, match="at most 128"):
        attention.causal_attention(*make((1,), 1, 1, 2, 160))


@pytest.mark.parametrize("has_documents", [True, False])
def test_registered_as_torch_expects(has_documents):
    q, k, v = (t.requires_grad_() for t in make((2,), 2, 1, 5, 4))
    starts = torch.tensor([[0, 0, 2, 2, 2], [0, 1, 1, 1, 4]], dtype=torch.int32)
    starts = starts if has_documents else None
    torch.library.opcheck(torch.ops.scalelab.attention.default, (q, k, v, starts, 0.5))
    fixed = [t.detach() for t in (q, k, v)]
    out, lse = torch.ops.scalelab.attention(*fixed, starts, 0.5)
    arguments = (torch.randn_like(out), *fixed, starts, out, lse, 0.5)
    torch.library.opcheck(torch.ops.scalelab.attention_backward.default, arguments)

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab_kernels import qk_norm_rope, reference


def make(lead, n_positions, n_heads, n_kv_heads, head_dim, n_runs=1):
    shape = (n_runs, head_dim) if n_runs > 1 else (head_dim,)
    width = (n_heads + 2 * n_kv_heads) * head_dim
    tables = reference.rope_tables(n_positions, head_dim, base=100.0)
    # Roll the tables so that position 0 rotates too.
    tables = tuple(t.roll(1, 0) for t in tables)
    qkv = torch.randn(*lead, n_positions, width) * 2
    return qkv, torch.randn(shape), torch.randn(shape), *tables, n_heads, n_kv_heads


def with_fixed_tables(function, cos, sin):
    """Use constant tables in fp32 (float64 for float64 inputs), not in half precision."""

    def call(qkv, q_weight, k_weight, n_heads, n_kv_heads):
        wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
        tables = cos.to(wide), sin.to(wide)
        return function(qkv, q_weight, k_weight, *tables, n_heads, n_kv_heads)

    return call


def compare(check_op, arguments, dtype):
    qkv, q_weight, k_weight, cos, sin, *heads = arguments
    check_op(
        with_fixed_tables(qk_norm_rope.qk_norm_rope, cos, sin),
        with_fixed_tables(reference.qk_norm_rope, cos, sin),
        [qkv, q_weight, k_weight, *heads],
        dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("lead", "n_positions", "n_heads", "n_kv_heads", "head_dim", "n_runs"),
    [
        ((), 1, 1, 1, 2, 1),
        ((2,), 5, 2, 2, 32, 1),
        ((3,), 7, 4, 1, 10, 1),
        ((3, 2), 3, 4, 2, 6, 3),
    ],
)
def test_values_and_gradients(
    check_op, lead, n_positions, n_heads, n_kv_heads, head_dim, n_runs, dtype
):
    arguments = make(lead, n_positions, n_heads, n_kv_heads, head_dim, n_runs)
    compare(check_op, arguments, dtype)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_head_sizes_of_real_models(check_op, head_dim):
    compare(check_op, make((1,), 3, 2, 1, head_dim), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_the_norm(check_op, dtype):
    arguments = make((2,), 5, 4, 2, 8)
    compare(check_op, (arguments[0], None, None, *arguments[3:]), dtype)


@settings(max_examples=10, deadline=None)
@given(
    n_positions=st.integers(1, 9),
    n_kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    half=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(check_op, n_positions, n_kv_heads, group, half, seed):
    torch.manual_seed(seed)
    arguments = make((2,), n_positions, n_kv_heads * group, n_kv_heads, 2 * half)
    compare(check_op, arguments, torch.float32)


def test_two_runs_are_bitwise_equal():
    arguments = make((2,), 9, 4, 2, 16)
    leaves = [t.bfloat16().requires_grad_() for t in arguments[:3]]

    def once():
        outputs = qk_norm_rope.qk_norm_rope(*leaves, *arguments[3:])
        return [*outputs, *torch.autograd.grad([y.square().sum() for y in outputs], leaves)]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


@pytest.mark.parametrize("has_norm", [True, False])
def test_registered_as_torch_expects(has_norm):
    qkv, q_weight, k_weight, cos, sin, *heads = make((2,), 3, 2, 1, 4, 1)
    weights = [w.requires_grad_() if has_norm else None for w in (q_weight, k_weight)]
    arguments = (qkv.requires_grad_(), *weights, cos, sin, *heads, 1e-6)
    torch.library.opcheck(torch.ops.scalelab.qk_norm_rope.default, arguments)
    grads = torch.randn(2, 3, 2, 4), torch.randn(2, 3, 1, 4), torch.randn(2, 3, 1, 4)
    weights = [w.detach() if has_norm else None for w in (q_weight, k_weight)]
    arguments = (*grads, qkv.detach(), *weights, cos, sin, 1e-6)
    torch.library.opcheck(torch.ops.scalelab.qk_norm_rope_backward.default, arguments)

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab_kernels import reference, swiglu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 2), (1, 14), (5, 2), (3, 7, 66), (3, 2, 4, 64)])
def test_value_and_gradient(check_op, shape, dtype):
    check_op(swiglu.swiglu, reference.swiglu, [torch.randn(shape) * 3], dtype)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 20),
    half=st.integers(1, 50),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_and_scale(check_op, rows, half, scale, seed):
    torch.manual_seed(seed)
    inputs = [torch.randn(rows, 2 * half) * scale]
    check_op(swiglu.swiglu, reference.swiglu, inputs, torch.float32)


def test_saturated_gates_stay_finite(check_op):
    gate_up = torch.randn(3, 12)
    gate_up[:, :3], gate_up[:, 3:6] = 1e4, -1e4
    check_op(swiglu.swiglu, reference.swiglu, [gate_up], torch.float32)


def test_a_strided_input_is_read_by_its_strides(check_op):
    check_op(swiglu.swiglu, reference.swiglu, [torch.randn(20, 9).T], torch.float32)


def test_two_runs_are_bitwise_equal():
    x = torch.randn(11, 70).bfloat16()
    assert torch.equal(swiglu.swiglu(x), swiglu.swiglu(x))


def test_registered_as_torch_expects():
    x = torch.randn(3, 4, 10, requires_grad=True)
    torch.library.opcheck(torch.ops.scalelab.swiglu.default, (x,))
    arguments = (torch.randn(3, 4, 5), x.detach())
    torch.library.opcheck(torch.ops.scalelab.swiglu_backward.default, arguments)

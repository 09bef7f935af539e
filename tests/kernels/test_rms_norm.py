from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab_kernels import reference, rms_norm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (lead, d, K): one row, one column, odd, a power of two, wider than a block of rows.
SHAPES = [((1,), 7, 1), ((5,), 1, 1), ((3, 5), 33, 1), ((2, 8), 64, 1), ((3, 2, 7), 96, 3)]


def make(lead, d, n_runs, n_streams):
    weight = torch.randn((n_runs, d) if n_runs > 1 else (d,))
    return [*(torch.randn(*lead, d) * 2 + 0.3 for _ in range(n_streams)), weight]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lead", "d", "n_runs"), SHAPES)
def test_norm_and_its_gradients(check_op, lead, d, n_runs, dtype):
    check_op(rms_norm.rms_norm, reference.rms_norm, make(lead, d, n_runs, 1), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lead", "d", "n_runs"), SHAPES)
def test_add_and_norm_and_their_gradients(check_op, lead, d, n_runs, dtype):
    check_op(rms_norm.add_rms_norm, reference.add_rms_norm, make(lead, d, n_runs, 2), dtype)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 20),
    d=st.integers(1, 70),
    scale=st.floats(1e-4, 1e4),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_and_scale(check_op, rows, d, scale, seed):
    torch.manual_seed(seed)
    inputs = make((rows,), d, 1, 2)
    inputs[0] *= scale
    check_op(rms_norm.add_rms_norm, reference.add_rms_norm, inputs, torch.float32)


def test_a_strided_input_is_read_by_its_strides(check_op):
    x, weight = torch.randn(6, 2, 40).transpose(0, 1), torch.randn(40)
    check_op(rms_norm.rms_norm, reference.rms_norm, [x, weight], torch.float32)


def test_rows_of_zeros_are_finite(check_op):
    inputs = make((4,), 16, 1, 1)
    inputs[0][1:3] = 0
    check_op(rms_norm.rms_norm, reference.rms_norm, inputs, torch.float32)


def test_two_runs_are_bitwise_equal():
    def once():
        inputs = [t.bfloat16().requires_grad_() for t in make((9,), 48, 1, 2)]
        torch.manual_seed(1)
        outputs = rms_norm.add_rms_norm(*inputs)
        return [
            *outputs,
            *torch.autograd.grad(outputs, inputs, [torch.randn(9, 48).bfloat16()] * 2),
        ]

    torch.manual_seed(0)
    first = once()
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


@pytest.mark.parametrize("n_runs", [1, 3])
def test_registered_as_torch_expects(n_runs):
    x, residual, weight = (t.requires_grad_() for t in make((3, 4), 10, n_runs, 2))
    torch.library.opcheck(torch.ops.scalelab.rms_norm.default, (x, weight, 1e-6))
    torch.library.opcheck(torch.ops.scalelab.add_rms_norm.default, (x, residual, weight, 1e-6))
    rstd = torch.rand(3, 4)
    arguments = (x.detach(), None, residual.detach(), weight.detach(), rstd)
    torch.library.opcheck(torch.ops.scalelab.rms_norm_backward.default, arguments)

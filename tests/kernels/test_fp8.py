from __future__ import annotations

import pytest
import torch
from scalelab_kernels import fp8, reference
from scalelab_kernels.operations import get_operations


def relative(found, exact):
    found, exact = found.detach().double(), exact.detach().double()
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [fp8.E4M3, fp8.E5M2])
@pytest.mark.parametrize("size", [1e-20, 0.003, 1.0, 447.9, 1e6])
def test_the_scale_is_the_largest_power_of_two_that_fits(dtype, size):
    x = torch.randn(16, 32).bfloat16() * 0.1
    x[3, 4] = -size
    x = x * min(1.0, size)
    values, inverse = fp8.quantize(x, dtype)
    top, limit = x.abs().max().float() / inverse, torch.finfo(dtype).max
    assert float(inverse.log2()) % 1 == 0
    assert limit / 2 < top <= limit
    # Half a unit in the last place; values below the smallest normal one lose more.
    exact = x.float() / inverse
    error = (values.float() - exact).abs()
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    assert (error <= eps / 2 * exact.abs().clamp(min=tiny)).all()


def test_zeros_stay_zeros():
    values, inverse = fp8.quantize(torch.zeros(16, 16).bfloat16(), fp8.E4M3)
    assert not values.float().any()
    assert torch.isfinite(inverse)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_seen_in_the_products(bad):
    x, weight = torch.randn(16, 32).bfloat16(), torch.randn(16, 32).bfloat16()
    x[2, 3] = bad
    assert not fp8.linear(x, weight).isfinite().all()


@pytest.mark.parametrize("lead", [(16,), (3, 7), (1,)])
def test_a_linear_layer_and_its_gradients(lead):
    """Rows that are no multiple of 16 are padded. The error is that of the formats."""
    x = torch.randn(*lead, 48).bfloat16().requires_grad_()
    weight = (torch.randn(32, 48) / 7).bfloat16().requires_grad_()
    upstream = (torch.randn(*lead, 32) * 1e-6).bfloat16()
    out = fp8.linear(x, weight)
    exact = torch.nn.functional.linear(x.double(), weight.double())
    assert out.dtype == torch.bfloat16
    assert relative(out, exact) < torch.finfo(fp8.E4M3).eps / 2
    found = torch.autograd.grad(out, (x, weight), upstream)
    expected = torch.autograd.grad(exact, (x, weight), upstream.double())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert relative(one, other) < torch.finfo(fp8.E5M2).eps / 2


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_head_with_its_loss(monkeypatch, implementation, z_loss):
    """Three chunks, a vocabulary that is no multiple of 16, and masked labels."""
    monkeypatch.setattr(fp8, "CHUNK_TOKENS", 16)
    hidden = torch.randn(5, 8, 32).bfloat16().requires_grad_()
    weight = (torch.randn(37, 32) * 0.5).bfloat16().requires_grad_()
    targets = torch.randint(0, 37, (5, 8))
    targets[:, ::3] = reference.IGNORE_INDEX
    ops = fp8.operations(get_operations(implementation, "cpu"))
    losses = ops.linear_cross_entropy(hidden, weight, targets, z_loss=z_loss)
    total = ops.linear_cross_entropy_sum(hidden, weight, targets, z_loss=z_loss)
    wide = hidden.double(), weight.double()
    exact = reference.linear_cross_entropy(*wide, targets, z_loss=z_loss)
    assert losses.dtype == total.dtype == torch.float32
    assert not losses[:, ::3].any()
    torch.testing.assert_close(total, losses.sum())
    assert relative(losses, exact) < 0.06
    found = torch.autograd.grad(total * 0.25, (hidden, weight))
    expected = torch.autograd.grad(exact.sum() * 0.25, (hidden, weight))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert relative(one, other) < 0.1
    assert not found[0][:, ::3].any()


def test_both_implementations_of_the_head_agree():
    """They differ only in rounding of the loss's formula."""
    hidden, weight = torch.randn(16, 32).bfloat16(), torch.randn(64, 32).bfloat16()
    targets = torch.randint(0, 64, (16,))
    found = [
        fp8.operations(get_operations(kind, "cpu")).linear_cross_entropy(hidden, weight, targets)
        for kind in ("reference", "triton")
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_registered_as_torch_expects():
    hidden = torch.randn(16, 32).bfloat16().requires_grad_()
    weight = torch.randn(48, 32).bfloat16().requires_grad_()
    arguments = (hidden, weight, torch.randint(0, 48, (16,)), 0.01, -100, "reference")
    torch.library.opcheck(torch.ops.scalelab.fp8_cross_entropy_sum.default, arguments)
    still = (hidden.detach(), weight.detach(), *arguments[2:])
    torch.library.opcheck(torch.ops.scalelab.fp8_cross_entropy.default, still)
    # The compiler's test adds up the outputs, which torch cannot do in fp8.
    torch.library.opcheck(
        torch.ops.scalelab.fp8_linear.default,
        (hidden, weight),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_gradients_are_those_of_eager():
    """With the compiler's own products, they were NaN."""
    x = torch.randn(32, 48).bfloat16().requires_grad_()
    weight = torch.randn(16, 48).bfloat16().requires_grad_()
    upstream = torch.randn(32, 16).bfloat16() * 1e-5
    found, expected = (
        torch.autograd.grad(call(x, weight), (x, weight), upstream)
        for call in (torch.compile(fp8.linear, dynamic=False), fp8.linear)
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))

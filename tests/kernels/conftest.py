"""Every kernel is judged by one rule, against the same formula in float64.

``err(kernel) <= 2 err(torch in the same dtype) + rounding``, both in the relative 2-norm and at the
worst element. Rounding is one unit in the last place of the result, and what the exact result moves
when every input moves by one in fp32 (the arithmetic inside): sums that cancel leave no less.

The kernels run in Triton's interpreter on the CPU, which has to be asked for before Triton is
imported; ``TRITON_INTERPRET=0`` in the environment keeps it off (on a GPU).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
import torch
from torch import Tensor

Function = Callable[..., Tensor | tuple[Tensor, ...]]


def relative_errors(value: Tensor, exact: Tensor) -> tuple[float, float]:
    """Return the error in the 2-norm and at the worst element, relative to the exact value.

    Where the exact value is zero, up to float64's own rounding, the error is absolute.
    """
    value, exact = value.double().flatten(), exact.double().flatten()
    assert value.isfinite().all(), "not finite"
    errors = (value - exact).norm(), (value - exact).abs().max()
    if exact.abs().max() < 1e-12:
        return float(errors[0]), float(errors[1])
    return float(errors[0] / exact.norm()), float(errors[1] / exact.abs().max())


def assert_as_exact_as_torch(
    kernel: Tensor, torch_value: Tensor, exact: Tensor, what: str, nudged: Tensor | None = None
) -> None:
    """Hold the kernel's value to the rule of this module."""
    assert kernel.dtype == torch_value.dtype, what
    assert kernel.shape == torch_value.shape, what
    if not exact.numel():
        return
    moves = (0.0, 0.0) if nudged is None else relative_errors(nudged, exact)
    pairs = zip(
        ("2-norm", "worst element"),
        relative_errors(kernel, exact),
        relative_errors(torch_value, exact),
        moves,
        strict=True,
    )
    for norm, error, allowed, move in pairs:
        rounding = torch.finfo(kernel.dtype).eps + move
        assert error <= 2 * allowed + rounding, (
            f"{what}: {norm} error {error:.3g}, torch's {allowed:.3g}, rounding {rounding:.3g}"
        )


def _evaluate(function: Function, inputs: Sequence[Any], seed: int) -> list[Tensor]:
    """Return the outputs and the gradient of every floating input under random output gradients."""
    floats = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    outputs = function(*inputs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    generator = torch.Generator().manual_seed(seed)
    upstream = [
        torch.randn(y.shape, generator=generator).to(torch.bfloat16).to(y.dtype) for y in outputs
    ]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, floats, upstream)]


def check(
    kernel: Function,
    reference: Function,
    inputs: Sequence[Any],
    dtype: torch.dtype,
    *,
    torch_s_own: Function | None = None,
    seed: int = 0,
) -> None:
    """Compare outputs and every gradient of ``kernel`` with ``reference`` in dtype and in float64.

    Floating tensors of ``inputs`` are rounded to ``dtype`` first; everything else is passed on.
    ``torch_s_own`` takes the reference's place in ``dtype`` where torch has the fused algorithm.
    """

    def cast(to: torch.dtype, nudge: float = 0.0) -> list[Any]:
        return [
            (x.detach().to(dtype).to(to) * (1 + nudge * signs(x))).requires_grad_()
            if isinstance(x, Tensor) and x.is_floating_point()
            else x
            for x in inputs
        ]

    def signs(x: Tensor) -> Tensor:
        return torch.randint(0, 2, x.shape, dtype=dtype) * 2 - 1

    got = _evaluate(kernel, cast(dtype), seed)
    beside = _evaluate(torch_s_own or reference, cast(dtype), seed)
    exact = _evaluate(reference, cast(torch.float64), seed)
    nudged = _evaluate(reference, cast(torch.float64, torch.finfo(torch.float32).eps), seed)
    for index, values in enumerate(zip(got, beside, exact, nudged, strict=True)):
        assert_as_exact_as_torch(*values[:3], f"value {index}", values[3])


@pytest.fixture(scope="session")
def check_op() -> Callable[..., None]:
    """`check`, for the test modules."""
    return check


@pytest.fixture(scope="session")
def check_value() -> Callable[..., None]:
    """`assert_as_exact_as_torch`, for the test modules."""
    return assert_as_exact_as_torch


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _overflow_as_on_a_device() -> Iterator[None]:
    """Let exp(big) be infinity without a word, as on a GPU; invalid operations still warn."""
    with np.errstate(over="ignore", under="ignore"):
        yield

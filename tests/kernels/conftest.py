"""One accuracy rule for all kernels, relative to the same formula in float64.

``err(kernel) <= 2 err(torch in the same dtype) + rounding``, both in the relative 2-norm and at the
worst element. Torch can be exact at some inputs by chance, so the rule adds the rounding of any
evaluation in fp32, which has two parts:

- one unit in the last place of the result's dtype;
- random rounding of the formula (stochastic arithmetic): the reference is evaluated in float64,
  split into elementary operations. A fair coin replaces each result by one of its two fp32
  neighbours; a result that is exact in fp32 stays. A sum or product over n terms also gets
  ceil(log2 n) errors of half a unit at the size of ``sum |terms|``, because in any order some term
  passes through that many additions. The rule uses the largest distance of `N_DRAWS` draws from the
  unrounded value. This includes the conditioning of each exp, log and cancelling sum at this input.

The draws have fixed seeds, and the inputs of a property depend only on Hypothesis' draws (including
a ``seed``), so failures can be reproduced.

The kernels run in Triton's interpreter on the CPU, which must be enabled before Triton is imported.
``TRITON_INTERPRET=0`` in the environment disables it (on a GPU).

References
----------
Vignes 2004, "Discrete stochastic arithmetic for validating results of numerical software"; Parker
1997, "Monte Carlo arithmetic"; Higham 2002, "Accuracy and stability of numerical algorithms",
section 4.2 (the error of a sum in any order).
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.utils._python_dispatch import TorchDispatchMode

N_DRAWS = 8

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


aten, prims = torch.ops.aten, torch.ops.prims
_ELEMENTARY = get_decompositions(
    [
        aten._softmax,
        aten._softmax_backward_data,
        aten._log_softmax,
        aten._log_softmax_backward_data,
        aten.linalg_vector_norm,
        aten.logsumexp,
        aten.mean,
        aten.nll_loss_forward,
        aten.nll_loss_backward,
        aten.silu,
        aten.silu_backward,
    ]
)
_SUMS = (aten.sum.default, aten.sum.dim_IntList, prims.sum.default)
# Where the factor lies whose last dimension is summed over; a term is added first to some.
_PRODUCTS = {
    aten.mm.default: 0,
    aten.bmm.default: 0,
    aten.addmm.default: 1,
    aten.baddbmm.default: 1,
}


class RandomRounding(TorchDispatchMode):
    """Round each float64 result to fp32 at random, as the module docstring describes.

    With ``n_columns``, round only results of that width, for a formula whose few factors are in
    float64 for all dtypes.
    """

    def __init__(self, seed: int, n_columns: int | None = None) -> None:
        super().__init__()
        self.n_columns = n_columns
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ELEMENTARY:
            with self:
                return _ELEMENTARY[func](*args, **kwargs)
        result = func(*args, **kwargs)
        if func.is_view:
            return result
        if func in _SUMS or func in _PRODUCTS:
            result = result + self._errors_of_sum(func, result, args, kwargs)
        if isinstance(result, (tuple, list)):
            return type(result)(self._rounded(func, value) for value in result)
        return self._rounded(func, result)

    def _errors_of_sum(
        self, func: Any, result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        absolute = [x.abs() if isinstance(x, Tensor) else x for x in args]
        size = func(*absolute, **kwargs)
        if func in _SUMS:
            n_terms = args[0].numel() // max(1, result.numel())
        else:
            n_terms = args[_PRODUCTS[func]].shape[-1] + _PRODUCTS[func]
        n_roundings = math.ceil(math.log2(max(1, n_terms)))
        signs = torch.zeros_like(size)
        for _ in range(n_roundings):
            signs += self._coins(size) * 2.0 - 1.0
        half_unit = torch.finfo(torch.float32).eps / 2
        return torch.where(size.isfinite(), signs * size * half_unit, 0.0)

    def _rounded(self, func: Any, value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.dtype == torch.float64):
            return value
        if self.n_columns is not None and value.shape[-1:] != (self.n_columns,):
            return value
        nearest = value.float()
        direction = torch.where(nearest.double() < value, math.inf, -math.inf).float()
        other = torch.nextafter(nearest, direction).double()
        is_between = value.isfinite() & (nearest.double() != value)
        rounded = torch.where(is_between & self._coins(value), other, nearest.double())
        return value.copy_(rounded) if func._schema.is_mutable else rounded

    def _coins(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self.generator) < 0.5


def assert_as_exact_as_torch(
    kernel: Tensor,
    torch_value: Tensor,
    exact: Tensor,
    what: str,
    make_draws: Callable[[], Sequence[Tensor]] = tuple,
) -> None:
    """Apply the rule of this module; make draws only if the kernel fails without them."""
    assert kernel.dtype == torch_value.dtype, what
    assert kernel.shape == torch_value.shape, what
    if not exact.numel():
        return
    unit = torch.finfo(kernel.dtype).eps
    errors, allowed = relative_errors(kernel, exact), relative_errors(torch_value, exact)
    for index, norm in enumerate(("2-norm", "worst element")):
        limit = 2 * allowed[index] + unit
        if errors[index] > limit:
            limit += max((relative_errors(draw, exact)[index] for draw in make_draws()), default=0)
        assert errors[index] <= limit, (
            f"{what}: {norm} error {errors[index]:.3g}, torch's {allowed[index]:.3g}, "
            f"rounding {limit - 2 * allowed[index]:.3g}"
        )


def _evaluate(function: Function, inputs: Sequence[Any], seed: int) -> list[Tensor]:
    """Return the outputs and the gradients of floating inputs, for random output gradients."""
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
    rounded: Function | None = None,
    seed: int = 0,
) -> None:
    """Compare outputs and gradients of ``kernel`` with ``reference`` in dtype and in float64.

    Floating tensors of ``inputs`` are rounded to ``dtype`` first; other inputs are not changed.
    ``torch_s_own`` replaces the reference in ``dtype`` if torch has the fused algorithm.
    ``rounded`` replaces it for random rounding if the fused algorithm differs from the reference.
    """

    def cast(to: torch.dtype) -> list[Any]:
        return [
            x.detach().to(dtype).to(to).requires_grad_()
            if isinstance(x, Tensor) and x.is_floating_point()
            else x
            for x in inputs
        ]

    @functools.cache
    def draws() -> list[list[Tensor]]:
        found = []
        for number in range(N_DRAWS):
            wide = cast(torch.float64)
            with RandomRounding(number):
                found.append(_evaluate(rounded or reference, wide, seed))
        return found

    got = _evaluate(kernel, cast(dtype), seed)
    beside = _evaluate(torch_s_own or reference, cast(dtype), seed)
    exact = _evaluate(reference, cast(torch.float64), seed)
    for index, values in enumerate(zip(got, beside, exact, strict=True)):
        assert_as_exact_as_torch(
            *values, f"value {index}", lambda index=index: [draw[index] for draw in draws()]
        )


@pytest.fixture(scope="session")
def check_op() -> Callable[..., None]:
    """`check`, for the test modules."""
    return check


@pytest.fixture(scope="session")
def check_value() -> Callable[..., None]:
    """`assert_as_exact_as_torch`, for the test modules."""
    return assert_as_exact_as_torch


@pytest.fixture(scope="session")
def random_roundings() -> Callable[[int], Iterator[RandomRounding]]:
    """Return a function that makes the rule's draws for results with ``n_columns`` columns."""
    return lambda n_columns: (RandomRounding(number, n_columns) for number in range(N_DRAWS))


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _overflow_as_on_a_device() -> Iterator[None]:
    """Ignore overflow of exp, as on a GPU; invalid operations still warn."""
    with np.errstate(over="ignore", under="ignore"):
        yield

"""The accuracy rule of kernels, at the sizes of a model and in its dtype. All callers share it.

The rule: ``err(kernel) <= 2 err(torch in the same dtype) + eps``, for each output and gradient.
``err`` is the distance in the 2-norm from the same formula in float64, relative to that formula's
norm; ``eps`` is the rounding of the value's dtype. Errors are the root mean square of `N_DRAWS`
random inputs, because torch can be exact at one of them by chance. Two evaluations of a kernel
must also have the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

N_DRAWS = 3
NOT_REPEATABLE = "two evaluations differ"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One operation at one size.

    Attributes
    ----------
    op, size : str
        Names for tables and messages.
    dtype : torch.dtype
        Of the activations.
    make : callable
        Returns the inputs of one draw, in the dtypes of a training step.
    kernel, plain : callable
        The operation under test, and its formula for all dtypes. Each takes the inputs of ``make``.
    own : callable
        Torch's own way in the same dtype, whose error sets the tolerance.
    is_differentiated : bool
        Whether gradients are compared as well as outputs.
    """

    op: str
    size: str
    dtype: torch.dtype
    make: Callable[[], list[Any]]
    kernel: Callable[..., Any]
    plain: Callable[..., Any]
    own: Callable[..., Any]
    is_differentiated: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Result of a check.

    Attributes
    ----------
    errors, allowed : tuple of float
        Relative error of each output and gradient, and the largest accepted one.
    problem : str
        What is wrong; empty if nothing is.
    """

    errors: tuple[float, ...]
    allowed: tuple[float, ...]
    problem: str


def examine(check: Check) -> Outcome:
    """Evaluate a kernel and compare it with the rule of this module.

    Errors that the kernel raises propagate.
    """
    kernel_squares: list[float] = []
    own_squares: list[float] = []
    eps: list[float] = []
    is_repeatable = True
    for draw in range(N_DRAWS):
        torch.manual_seed(draw)
        inputs = check.make()
        found = _values(check.kernel, inputs, check)
        if draw == 0:
            again = _values(check.kernel, inputs, check)
            pairs = zip(found, again, strict=True)
            is_repeatable = all(torch.equal(_bits(a), _bits(b)) for a, b in pairs)
            kernel_squares, own_squares = [0.0] * len(found), [0.0] * len(found)
            eps = [torch.finfo(value.dtype).eps for value in found]
        own = _values(check.own, inputs, check)
        wide = [t.double() if _is_float(t) else t for t in inputs]
        exact = _values(check.plain, wide, check)
        for index, (a, b, c) in enumerate(zip(found, own, exact, strict=True)):
            kernel_squares[index] += relative_error(a, c) ** 2 / N_DRAWS
            own_squares[index] += relative_error(b, c) ** 2 / N_DRAWS
    errors = tuple(map(math.sqrt, kernel_squares))
    allowed = tuple(tolerance(math.sqrt(o), e) for o, e in zip(own_squares, eps, strict=True))
    problem = ""
    # Written so that a NaN is too large.
    worst = [i for i, (e, a) in enumerate(zip(errors, allowed, strict=True)) if not e <= a]
    if worst:
        i = worst[0]
        problem = f"value {i} has a relative error of {errors[i]:.3g}; {allowed[i]:.3g} is accepted"
    elif not is_repeatable:
        problem = NOT_REPEATABLE
    return Outcome(errors=errors, allowed=allowed, problem=problem)


def tolerance(own_error: float, eps: float) -> float:
    """Return the largest accepted relative error, given torch's own in the same dtype."""
    return 2 * own_error + eps


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Return the distance in the 2-norm, relative to the exact value; infinite if not finite."""
    if not bool(value.isfinite().all()):
        return math.inf
    size = float(exact.double().norm())
    return float((value.double() - exact.double()).norm()) / (size or 1.0)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _bits(value: Tensor) -> Tensor:
    """Return the value with NaN replaced, because a NaN does not equal itself."""
    return value.nan_to_num(nan=12345.0)


def _values(function: Callable[..., Any], inputs: list[Any], check: Check) -> list[Tensor]:
    """Return outputs and gradients for fixed random output gradients."""
    leaves = [t.detach().requires_grad_(check.is_differentiated) if _is_float(t) else t
              for t in inputs]  # fmt: skip
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    values = [y.detach() for y in outputs]
    if not check.is_differentiated:
        return values
    generator = torch.Generator(device=values[0].device).manual_seed(1)
    upstream = [
        torch.randn(y.shape, generator=generator, device=y.device).bfloat16().to(y.dtype)
        for y in outputs
    ]
    floats = [t for t in leaves if _is_float(t)]
    return [*values, *torch.autograd.grad(outputs, floats, upstream)]

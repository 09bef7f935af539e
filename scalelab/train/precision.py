"""Matrix products of a run in its precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scalelab_kernels import fp8
from scalelab_kernels.operations import Operations
from torch import Tensor
from torch.nn import functional

from scalelab.errors import UsageError
from scalelab.sweep.precision import require_precision
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.precision import fp8_weights, is_fp8_product

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.bfloat16}
"""Data type of activations and of the weights' copies, by `RunSpec.precision`."""
FP8_CAPABILITY = (8, 9)
"""Compute capability from which `torch._scaled_mm` works."""

Linear = Callable[[Tensor, Tensor], Tensor]


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x @ weight.T``, for weight (out, in), or (K, out, in) with x (K, ..., in)."""
    if weight.ndim == 2:
        return functional.linear(x, weight)
    rows = x.reshape(weight.shape[0], -1, x.shape[-1])
    return torch.bmm(rows, weight.transpose(1, 2)).view(*x.shape[:-1], weight.shape[1])


def _fp8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x @ weight.T`` in fp8 where `is_fp8_product` says so, for weight (out, in)."""
    return fp8.linear(x, weight) if is_fp8_product(*weight.shape) else linear(x, weight)


def products(spec: RunSpec, ops: Operations) -> tuple[Linear, Operations]:
    """Return the linear layer of a run and its operations, whose head is in the run's precision."""
    if spec.precision != "fp8":
        return linear, ops
    return _fp8_linear, fp8.operations(ops) if "head" in fp8_weights(spec.shape) else ops


def require_precision_here(spec: RunSpec, device: str) -> None:
    """Raise if this machine's device cannot compute in the run's precision.

    Raises
    ------
    UsageError
    """
    require_precision(spec, device)
    if spec.precision != "fp8" or not torch.cuda.is_available():
        return
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if torch.version.hip or capability < FP8_CAPABILITY:
        raise UsageError(
            f"precision = fp8 on {name!r}",
            "an NVIDIA GPU of compute capability 8.9 or higher",
            "Use --precision bf16, or another GPU.",
        )

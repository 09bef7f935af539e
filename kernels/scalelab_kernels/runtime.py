"""Where Triton kernels can run, and how they are launched there.

A kernel runs on a CUDA device, or on any CPU when ``TRITON_INTERPRET=1`` was set before Triton was
first imported (slow: for tests). Everywhere else asking for one is a `KernelUnavailableError`.
"""

# Triton compiles the kernels from their source, where annotations would be wrong or in the way.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from scalelab_kernels.errors import KernelUnavailableError

IS_INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Fixed when Triton decorates the kernels, hence when this module is imported."""


ARCHITECTURES = {(8, 0): "ampere", (9, 0): "hopper"}
"""By compute capability; 8.6 and 8.9 are of Ampere's kin with 99 KiB of shared memory, not 163."""


def check_runs_here(tensor: Tensor) -> None:
    """Refuse tensors on which a kernel cannot run.

    Raises
    ------
    KernelUnavailableError
        The tensor is not on a CUDA device and Triton does not interpret.
    """
    if not (tensor.is_cuda or IS_INTERPRETED):
        raise KernelUnavailableError(
            f"a Triton operation on a tensor of device {tensor.device}",
            "a CUDA device, or TRITON_INTERPRET=1 in the environment before Triton is imported",
            "Choose the implementation 'reference' on this device.",
        )


@functools.cache
def _architecture_of_cuda(index: int) -> str:
    return ARCHITECTURES.get(torch.cuda.get_device_capability(index), "generic")


def architecture(tensor: Tensor) -> str:
    """Return the name under which `scalelab_kernels.configs` keeps the device's settings."""
    if IS_INTERPRETED:
        return "interpreter"
    return _architecture_of_cuda(tensor.device.index)


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is not below ``n``."""
    return 1 << (n - 1).bit_length() if n > 1 else 1


def n_packed(parameter: Tensor, n_dims: int) -> int:
    """Return K: the length of a parameter's leading dimension when it has one beyond ``n_dims``."""
    return parameter.shape[0] if parameter.ndim > n_dims else 1


_IS_INTERPRETED = tl.constexpr(IS_INTERPRETED)


@triton.jit
def dot(a, b, acc):
    """Return ``acc + a @ b`` in fp32; fp32 operands are multiplied as fp32, not as TF32."""
    # The interpreter would multiply the bit patterns of bf16, and add fp16 in fp16.
    if _IS_INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """Return fp32 ``x`` in ``dtype``, rounded to nearest even."""
    # The interpreter would cut the lower bits of fp32 off instead of rounding them to bf16.
    if _IS_INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        is_finite = tl.abs(x) < float("inf")
        x = tl.where(is_finite, nearest.to(tl.float32, bitcast=True), x)
    return x.to(dtype)

"""Checks of where Triton kernels can run, and helpers for writing and launching them.

A kernel runs on a CUDA device, or on a CPU if ``TRITON_INTERPRET=1`` was set before the first
import of Triton (slow, for tests). Elsewhere it raises `KernelUnavailableError`.
"""

# Triton compiles the kernels from their source, in which annotations would be wrong.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from scalelab_kernels.errors import KernelUnavailableError

IS_INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Fixed when this module is imported, because Triton decorates the kernels then."""


ARCHITECTURES = {
    (8, 0): "ampere",
    (9, 0): "hopper",
    (10, 0): "blackwell",
    (10, 3): "blackwell",
}
"""By compute capability. All others use the settings of ``ada`` (8.6, 8.9, 12.0), which have the
smallest shared memory: 99 KiB for a block, instead of 163 (8.0) or 227."""


def check_runs_here(tensor: Tensor) -> None:
    """Raise if kernels cannot run on the tensor's device.

    Raises
    ------
    KernelUnavailableError
        The tensor is not on a CUDA device, and Triton does not interpret.
    """
    if not (tensor.is_cuda or IS_INTERPRETED):
        raise KernelUnavailableError(
            f"a Triton operation on a tensor of device {tensor.device}",
            "a CUDA device, or TRITON_INTERPRET=1 in the environment before Triton is imported",
            "Use kernels = reference on this device.",
        )


@functools.cache
def _architecture_of_cuda(index: int) -> str:
    return ARCHITECTURES.get(torch.cuda.get_device_capability(index), "ada")


def architecture(tensor: Tensor) -> str:
    """Return the name of the device's settings in `scalelab_kernels.configs`."""
    if IS_INTERPRETED:
        return "interpreter"
    return _architecture_of_cuda(tensor.device.index)


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length() if n > 1 else 1


def n_batched(parameter: Tensor, n_dims: int) -> int:
    """Return K: the leading dimension of a parameter with more than ``n_dims`` dimensions, or 1."""
    return parameter.shape[0] if parameter.ndim > n_dims else 1


def alignment(*strides: int) -> int:
    """Return the largest power of two up to 16 that divides all strides."""
    return math.gcd(16, *strides)


_IS_INTERPRETED = tl.constexpr(IS_INTERPRETED)


@triton.jit
def multiple(n, ALIGN: tl.constexpr):
    """Return ``n``, which is a multiple of ALIGN, in a form from which the compiler knows it.

    Triton only notices multiples of 16. Rows of 216 columns start at multiples of 16 bytes in bf16,
    but would be loaded 2 bytes at a time.
    """
    return n // ALIGN * ALIGN


@triton.jit
def dot(a, b, acc):
    """Return ``acc + a @ b`` in fp32; fp32 operands are multiplied in fp32, not in TF32."""
    # The interpreter multiplies the bit patterns of bf16, and adds fp16 in fp16.
    if _IS_INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """Return fp32 ``x`` in ``dtype``, rounded to nearest even."""
    # The interpreter truncates fp32 to bf16 instead of rounding.
    if _IS_INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        is_finite = tl.abs(x) < float("inf")
        x = tl.where(is_finite, nearest.to(tl.float32, bitcast=True), x)
    return x.to(dtype)

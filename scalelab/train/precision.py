"""Matrix products of a run in its precision."""

from __future__ import annotations

import functools
import time
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
PROBE_SIZES = (2048, 128, 512)
"""Rows, inner size and columns of the products that `has_fast_bf16` times."""
PROBE_TURNS = 10
FAST_BF16 = 2.0
"""Speed of bf16 over fp32 products from which a step in bf16 gains from `scalelab.train.direct`.
AMX reaches 5; AVX-512 with bf16 instructions stays below 2, and there the step is slower."""

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


@functools.cache
def has_fast_bf16() -> bool:
    """Say whether this CPU multiplies bf16 matrices more than `FAST_BF16` times as fast as fp32.

    It is timed (20 ms), because the flags of a CPU do not say what torch and oneDNN make of them.
    """
    n_rows, n_inner, n_columns = PROBE_SIZES
    wide = torch.ones(n_rows, n_inner), torch.ones(n_inner, n_columns)
    pairs = wide, tuple(matrix.bfloat16() for matrix in wide)
    times: tuple[list[float], list[float]] = ([], [])
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(PROBE_TURNS):
            for pair, taken in zip(pairs, times, strict=True):
                # CPU time: the machine may be busy.
                started = time.thread_time()
                torch.mm(*pair)
                taken.append(time.thread_time() - started)
    finally:
        torch.set_num_threads(n_threads)
    return min(times[0]) > FAST_BF16 * min(times[1])


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

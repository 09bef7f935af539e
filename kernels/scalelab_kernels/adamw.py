"""AdamW over one flat buffer of K batched runs: clip, step, half-precision copy and average.

A step has three launches:

1. Sum the squares of the gradient.
2. Compute each run's norm and the factors of its step, in one program per run, in float64 so that
   ``1 - beta2^step`` does not cancel.
3. Update the buffers in one pass.

The host reads nothing, so a CUDA graph can capture the step; a schedule writes the ``lr`` column of
the table on the device.

Bytes for each parameter: 4 for the norm, then 30: read fp32 parameter, gradient and two moments
(16), write parameter and moments (12), write the bf16 copy (2). The average adds 8.
"""

# Triton compiles the kernels from their source, in which annotations would be wrong.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scalelab_kernels.configs import flat_config
from scalelab_kernels.reference_adamw import HYPER, check_rounding
from scalelab_kernels.runtime import architecture, check_runs_here, power_of_two, round_to

_N_HYPER = tl.constexpr(len(HYPER))
_N_FACTORS = tl.constexpr(9)


@triton.jit
def _norm_kernel(grad, partial, n_elements, run_stride, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    n_programs = tl.num_programs(0)
    run = tl.program_id(1).to(tl.int64)
    grad += run * run_stride
    lanes = tl.zeros((BLOCK,), tl.float32)
    for block in range(program, tl.cdiv(n_elements, BLOCK), n_programs):
        index = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        g = tl.load(grad + index, index < n_elements, other=0.0)
        lanes += g.to(tl.float32) * g.to(tl.float32)
    tl.store(partial + run * n_programs + program, tl.sum(lanes, 0))


@triton.jit
def _settle_kernel(
    partial, step, hyper, factors, norms, n_programs, step_stride, PROGRAMS: tl.constexpr
):
    """Compute a run's norm and the factors of its step from the partial sums of squares."""
    run = tl.program_id(0)
    index = tl.arange(0, PROGRAMS)
    parts = tl.load(partial + run * n_programs + index, index < n_programs, other=0.0)
    row = hyper + run * _N_HYPER
    lr = tl.load(row)
    beta1 = tl.load(row + 1)
    beta2 = tl.load(row + 2)
    eps = tl.load(row + 3)
    decay = tl.load(row + 4)
    max_norm = tl.load(row + 5)
    scale = tl.load(row + 6)
    ema_decay = tl.load(row + 7)
    steps = tl.load(step + run * step_stride).to(tl.float64)
    norm = tl.sqrt(tl.sum(parts.to(tl.float64), 0)) * scale
    # False for NaN too.
    is_finite = norm < float("inf")
    left1 = 1.0 - tl.where(beta1 > 0, tl.exp(steps * tl.log(tl.maximum(beta1, 1e-300))), 0.0)
    left2 = 1.0 - tl.where(beta2 > 0, tl.exp(steps * tl.log(tl.maximum(beta2, 1e-300))), 0.0)
    # A skipped run gets factors that change nothing.
    out = factors + run * _N_FACTORS
    tl.store(out, tl.where(is_finite, scale * tl.minimum(max_norm / (norm + 1e-6), 1.0), 0.0))
    tl.store(out + 1, tl.where(is_finite, 1.0 - beta1, 0.0))
    tl.store(out + 2, tl.where(is_finite, beta2, 1.0))
    tl.store(out + 3, tl.where(is_finite, 1.0 - beta2, 0.0))
    tl.store(out + 4, tl.where(is_finite, 1.0 / tl.sqrt(left2), 1.0))
    tl.store(out + 5, eps)
    tl.store(out + 6, tl.where(is_finite, lr / left1, 0.0))
    tl.store(out + 7, tl.where(is_finite, 1.0 - lr * decay, 1.0))
    tl.store(out + 8, tl.where(is_finite, 1.0 - ema_decay, 0.0))
    tl.store(norms + run, norm)


@triton.jit
def _mix(x):
    """Hash 32 bits, as `scalelab_kernels.reference_adamw` does."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _round_stochastically(value, index, seed):
    """Round fp32 to bf16 up or down, with the probabilities that keep the mean."""
    high = (index >> 32).to(tl.uint32)
    noise = _mix(index.to(tl.uint32) ^ _mix(high ^ seed.to(tl.uint32))) & 0xFFFF
    bits = value.to(tl.uint32, bitcast=True)
    rounded = ((bits + noise) & 0xFFFF0000).to(tl.float32, bitcast=True)
    is_finite = tl.abs(value) < float("inf")
    return tl.where(is_finite, rounded, value).to(tl.bfloat16)


@triton.jit
def _lerp(a, b, weight):
    """Return ``a + weight (b - a)``, computed from the nearer end to avoid cancellation."""
    return tl.where(weight < 0.5, a + weight * (b - a), b - (b - a) * (1.0 - weight))


@triton.jit
def _update_kernel(
    param, grad, exp_avg, exp_avg_sq, copy, ema, factors, seed, n_elements, run_stride,
    n_decay, HAS_COPY: tl.constexpr, HAS_EMA: tl.constexpr, HAS_SEED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(1).to(tl.int64)
    own = factors + run * _N_FACTORS
    clip = tl.load(own)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n_elements
    is_decayed = index < n_decay
    # The rounding noise depends on the position in the values, not on where they lie in memory.
    position = index + run * n_elements
    index += run * run_stride
    p = tl.load(param + index, mask, other=0.0).to(tl.float32)
    g = tl.load(grad + index, mask, other=0.0).to(tl.float32)
    m = tl.load(exp_avg + index, mask, other=0.0)
    v = tl.load(exp_avg_sq + index, mask, other=0.0)
    # A clip factor of 0 marks a skipped run; its gradient becomes 0, because 0 x NaN is NaN.
    g = tl.where(clip == 0.0, 0.0, g) * clip
    m = _lerp(m, g, tl.load(own + 1))
    v = v * tl.load(own + 2) + g * g * tl.load(own + 3)
    root = tl.sqrt(v) * tl.load(own + 4) + tl.load(own + 5)
    p = tl.where(is_decayed, p * tl.load(own + 7), p) - m / root * tl.load(own + 6)
    if HAS_SEED:
        stored = _round_stochastically(p, position, tl.load(seed))
    else:
        stored = round_to(p, param.dtype.element_ty)
    tl.store(param + index, stored, mask)
    tl.store(exp_avg + index, m, mask)
    tl.store(exp_avg_sq + index, v, mask)
    if HAS_COPY:
        tl.store(copy + index, round_to(stored.to(tl.float32), copy.dtype.element_ty), mask)
    if HAS_EMA:
        average = tl.load(ema + index, mask, other=0.0)
        average = _lerp(average, stored.to(tl.float32), tl.load(own + 8))
        tl.store(ema + index, average, mask)


@torch.library.custom_op(
    "scalelab::adamw_step", mutates_args=("param", "exp_avg", "exp_avg_sq", "copy", "ema")
)
def _adamw_step(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor, hyper: Tensor,
    n_decay: int, copy: Tensor | None, ema: Tensor | None, seed: Tensor | None,
) -> Tensor:  # fmt: skip
    n_runs = hyper.shape[0]
    n_elements = param.numel() // n_runs
    run_stride = param.stride(0) if param.ndim == 2 else n_elements
    hyper, step = hyper.contiguous(), step.contiguous()
    config = flat_config(architecture(param))
    n_programs = min(config.programs, triton.cdiv(n_elements, config.block))
    partial = torch.empty(n_runs, n_programs, dtype=torch.float32, device=param.device)
    factors = torch.empty(n_runs, _N_FACTORS.value, dtype=torch.float32, device=param.device)
    norms = torch.empty(n_runs, dtype=torch.float32, device=param.device)
    _norm_kernel[(n_programs, n_runs)](
        grad, partial, n_elements, run_stride, BLOCK=config.block, num_warps=config.num_warps
    )
    _settle_kernel[(n_runs,)](
        partial, step, hyper, factors, norms, n_programs, 1 if step.ndim else 0,
        PROGRAMS=power_of_two(n_programs), num_warps=4,
    )  # fmt: skip
    _update_kernel[(triton.cdiv(n_elements, config.block), n_runs)](
        param, grad, exp_avg, exp_avg_sq, param if copy is None else copy,
        param if ema is None else ema, factors, step if seed is None else seed,
        n_elements, run_stride, n_decay,
        HAS_COPY=copy is not None, HAS_EMA=ema is not None, HAS_SEED=seed is not None,
        BLOCK=config.block, num_warps=config.num_warps,
    )  # fmt: skip
    return norms


@_adamw_step.register_fake
def _(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor, hyper: Tensor,
    n_decay: int, copy: Tensor | None, ema: Tensor | None, seed: Tensor | None,
) -> Tensor:  # fmt: skip
    return param.new_empty(hyper.shape[0], dtype=torch.float32)


def adamw_step_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    hyper: Tensor,
    *,
    n_decay: int,
    copy: Tensor | None = None,
    ema: Tensor | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """Take the step of `scalelab_kernels.reference.adamw_step_` in one pass over the buffers.

    The buffers may be the same part of wider ones, such as ``flat[:, start:end]``: each row is
    contiguous, and all buffers have the same distance between rows.

    Raises
    ------
    KernelUnavailableError
        Where Triton cannot run.
    ValueError
        A seed with parameters that are not bf16, or a buffer with other strides.
    """
    check_runs_here(param)
    check_rounding(param, seed)
    strides = (*param.stride()[:-1], 1)
    buffers = {"param": param, "grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    for name, buffer in (buffers | {"copy": copy, "ema": ema}).items():
        if buffer is not None and buffer.stride() != strides:
            raise ValueError(
                f"got {name} with strides {buffer.stride()}; expected {strides}. "
                "Pass the same part of flat buffers."
            )
    norms: Tensor = _adamw_step(
        param, grad, exp_avg, exp_avg_sq, step, hyper, n_decay, copy, ema, seed
    )
    return norms

"""RMSNorm, alone and fused with the residual add before it.

``out = stream * rstd * weight``, ``stream = x + residual``, ``rstd = (mean(stream^2) + eps)^-1/2``.
Backward saves the stream and one fp32 ``rstd`` for each row. Each program sums the weight gradient
of its rows in registers and writes it once, without atomics, so repeated calls are bitwise equal.

Bytes for each row in bf16: forward 8 d (read x and residual, write stream and out), backward 8 d
(read two gradients and the stream, write one gradient, used for both x and residual).
"""

# Triton compiles the kernels from their source, in which annotations would be wrong.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from scalelab_kernels.configs import row_config
from scalelab_kernels.runtime import (
    alignment,
    architecture,
    check_runs_here,
    multiple,
    n_batched,
    round_to,
)


@triton.jit
def _forward_kernel(
    x, residual, weight, out, stream, rstd, n_rows, n_cols, run_stride, eps,
    HAS_ADD: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    n_cols = multiple(n_cols, ALIGN)
    run = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    in_rows = row < n_rows
    in_cols = col < n_cols
    mask = in_rows[:, None] & in_cols[None, :]
    row += run * n_rows
    offset = row[:, None] * n_cols + col[None, :]
    value = tl.load(x + offset, mask, other=0.0)
    if HAS_ADD:
        added = value.to(tl.float32) + tl.load(residual + offset, mask, other=0.0).to(tl.float32)
        value = round_to(added, stream.dtype.element_ty)
        tl.store(stream + offset, value, mask)
    value = value.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(value * value, 1) / n_cols + eps)
    gain = tl.load(weight + run * multiple(run_stride, ALIGN) + col, in_cols, other=0.0).to(
        tl.float32
    )
    scaled = value * inverse[:, None] * gain[None, :]
    tl.store(out + offset, round_to(scaled, out.dtype.element_ty), mask)
    tl.store(rstd + row, inverse, in_rows)


@triton.jit
def _backward_kernel(
    grad_out, grad_stream, stream, weight, rstd, grad_x, partial, n_rows, n_cols, run_stride,
    HAS_ADD: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    n_cols = multiple(n_cols, ALIGN)
    program = tl.program_id(0)
    n_programs = tl.num_programs(0)
    run = tl.program_id(1).to(tl.int64)
    col = tl.arange(0, COLS)
    in_cols = col < n_cols
    gain = tl.load(weight + run * multiple(run_stride, ALIGN) + col, in_cols, other=0.0).to(
        tl.float32
    )
    weight_sum = tl.zeros((COLS,), tl.float32)
    for block in range(program, tl.cdiv(n_rows, ROWS), n_programs):
        row = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        in_rows = row < n_rows
        mask = in_rows[:, None] & in_cols[None, :]
        row += run * n_rows
        offset = row[:, None] * n_cols + col[None, :]
        grad = tl.load(grad_out + offset, mask, other=0.0).to(tl.float32)
        inverse = tl.load(rstd + row, in_rows, other=0.0)[:, None]
        normed = tl.load(stream + offset, mask, other=0.0).to(tl.float32) * inverse
        weight_sum += tl.sum(grad * normed, 0)
        scaled = grad * gain[None, :]
        dot = tl.sum(scaled * normed, 1) / n_cols
        result = (scaled - normed * dot[:, None]) * inverse
        if HAS_ADD:
            result += tl.load(grad_stream + offset, mask, other=0.0).to(tl.float32)
        tl.store(grad_x + offset, round_to(result, grad_x.dtype.element_ty), mask)
    slot = (run * n_programs + program) * n_cols + col
    tl.store(partial + slot, weight_sum, in_cols)


def _launch_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return out, stream (empty without a residual) and rstd."""
    x, weight = x.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.contiguous()
    n_runs, n_cols = n_batched(weight, 1), x.shape[-1]
    n_rows = x.numel() // (n_runs * n_cols)
    out = torch.empty_like(x)
    stream = torch.empty_like(x) if residual is not None else x.new_empty(0)
    rstd = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    config = row_config(architecture(x), n_cols)
    _forward_kernel[(triton.cdiv(n_rows, config.rows), n_runs)](
        x, x if residual is None else residual, weight, out, stream, rstd, n_rows, n_cols,
        n_cols if weight.ndim == 2 else 0, eps, HAS_ADD=residual is not None,
        ALIGN=alignment(n_cols), ROWS=config.rows, COLS=config.cols, num_warps=config.num_warps,
    )  # fmt: skip
    return out, stream, rstd


@torch.library.custom_op("scalelab::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out, _, rstd = _launch_forward(x, None, weight, eps)
    return out, rstd


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _empty(x), x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("scalelab::add_rms_norm", mutates_args=())
def _add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _launch_forward(x, residual, weight, eps)


@_add_rms_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(x), _empty(x), x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("scalelab::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    grad_out: Tensor, grad_stream: Tensor | None, stream: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    has_add = grad_stream is not None
    grad_out, stream, weight = grad_out.contiguous(), stream.contiguous(), weight.contiguous()
    grad_stream = grad_stream.contiguous() if grad_stream is not None else grad_out
    n_runs, n_cols = n_batched(weight, 1), stream.shape[-1]
    n_rows = stream.numel() // (n_runs * n_cols)
    config = row_config(architecture(stream), n_cols)
    n_programs = min(config.programs, triton.cdiv(n_rows, config.rows))
    grad_x = torch.empty_like(stream)
    partial = torch.empty(n_runs, n_programs, n_cols, dtype=torch.float32, device=stream.device)
    _backward_kernel[(n_programs, n_runs)](
        grad_out, grad_stream, stream, weight, rstd, grad_x, partial, n_rows, n_cols,
        n_cols if weight.ndim == 2 else 0, HAS_ADD=has_add, ALIGN=alignment(n_cols),
        ROWS=config.rows, COLS=config.cols, num_warps=config.num_warps,
    )  # fmt: skip
    return grad_x, partial.sum(1).view(weight.shape).to(weight.dtype)


@_rms_norm_backward.register_fake
def _(
    grad_out: Tensor, grad_stream: Tensor | None, stream: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    return _empty(stream), _empty(weight)


def _empty(x: Tensor) -> Tensor:
    """Return an uninitialized contiguous tensor like ``x``."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _ = inputs
    # Without this, the unused gradient of rstd would be a buffer of zeros; below, of stream too.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _norm_backward(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor, Tensor, None]:
    x, weight, rstd = ctx.saved_tensors
    grad_x, grad_weight = _rms_norm_backward(grad_out, None, x, weight, rstd)
    return grad_x, grad_weight, None


def _save_add_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, stream, rstd = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(stream, inputs[2], rstd)
    ctx.mark_non_differentiable(rstd)


def _add_norm_backward(
    ctx: Any, grad_out: Tensor | None, grad_stream: Tensor | None, _: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    if grad_out is None:
        return grad_stream, grad_stream, None, None
    stream, weight, rstd = ctx.saved_tensors
    grad_x, grad_weight = _rms_norm_backward(grad_out, grad_stream, stream, weight, rstd)
    return grad_x, grad_x, grad_weight, None


_rms_norm.register_autograd(_norm_backward, setup_context=_save_norm)
_add_rms_norm.register_autograd(_add_norm_backward, setup_context=_save_add_norm)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Return `scalelab_kernels.reference.rms_norm` of the same arguments, computed in fp32.

    Raises
    ------
    KernelUnavailableError
        Where Triton cannot run.
    """
    check_runs_here(x)
    out: Tensor = _rms_norm(x, weight, eps)[0]
    return out


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Return `scalelab_kernels.reference.add_rms_norm` of the same arguments, computed in fp32.

    Raises
    ------
    KernelUnavailableError
        Where Triton cannot run.
    """
    check_runs_here(x)
    out, stream, _ = _add_rms_norm(x, residual, weight, eps)
    return out, stream

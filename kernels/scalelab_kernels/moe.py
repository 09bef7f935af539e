"""Dispatch of tokens to experts and back, without atomics: all kernels gather.

``permute`` copies a token to each of its rows; its gradient sums the gradients of these rows.
``unpermute`` sums the rows of a token with weights; its gradients copy the token's gradient to its
rows times their weights, and take a dot product for each weight. The matrix product between them is
torch's grouped matmul.

Bytes for each token in bf16 with k choices: permute 4 k d (reads a token again from L2), unpermute
2 (k + 1) d; backward 2 (k + 1) d and 2 (3 k + 1) d.
"""

# Triton compiles the kernels from their source, in which annotations would be wrong.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from scalelab_kernels.configs import tile_config
from scalelab_kernels.errors import KernelUnavailableError
from scalelab_kernels.reference_moe import Route, route
from scalelab_kernels.runtime import alignment, architecture, check_runs_here, multiple, round_to

__all__ = ["Route", "grouped_linear", "permute", "route", "unpermute"]


@triton.jit
def _tile(n_rows, n_cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return the rows and columns of this program, and the masks of valid ones."""
    n_blocks = tl.cdiv(n_cols, COLS)
    row = (tl.program_id(0) // n_blocks * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    col = tl.program_id(0) % n_blocks * COLS + tl.arange(0, COLS)
    return row, col, row < n_rows, (row < n_rows)[:, None] & (col < n_cols)[None, :]


@triton.jit
def _spread_kernel(
    x, order, weights, out, n_rows, n_cols, n_choices,
    HAS_WEIGHTS: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Write the token of each row, times the row's weight."""
    n_cols = multiple(n_cols, ALIGN)
    row, col, in_rows, mask = _tile(n_rows, n_cols, ROWS, COLS)
    copy = tl.load(order + row, in_rows, other=0)
    value = tl.load(x + (copy // n_choices)[:, None] * n_cols + col[None, :], mask, other=0.0)
    if HAS_WEIGHTS:
        weight = tl.load(weights + copy, in_rows, other=0.0).to(tl.float32)
        value = round_to(value.to(tl.float32) * weight[:, None], out.dtype.element_ty)
    tl.store(out + row[:, None] * n_cols + col[None, :], value, mask)


@triton.jit
def _gather_kernel(
    y, slot, weights, out, n_tokens, n_cols, n_choices,
    HAS_WEIGHTS: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Write the sum of the rows of each token, times their weights."""
    n_cols = multiple(n_cols, ALIGN)
    token, col, in_rows, mask = _tile(n_tokens, n_cols, ROWS, COLS)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for choice in range(n_choices):
        row = tl.load(slot + token * n_choices + choice, in_rows, other=0)
        value = tl.load(y + row[:, None] * n_cols + col[None, :], mask, other=0.0).to(tl.float32)
        if HAS_WEIGHTS:
            weight = tl.load(weights + token * n_choices + choice, in_rows, other=0.0)
            value *= weight.to(tl.float32)[:, None]
        total += value
    result = round_to(total, out.dtype.element_ty)
    tl.store(out + token[:, None] * n_cols + col[None, :], result, mask)


@triton.jit
def _dot_kernel(
    y, grad_out, order, grad_weights, n_rows, n_cols, n_choices,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Write for each copy the dot product of its row with its token's gradient."""
    n_cols = multiple(n_cols, ALIGN)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    in_rows = row < n_rows
    copy = tl.load(order + row, in_rows, other=0)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, n_cols, COLS):
        col = first + tl.arange(0, COLS)
        mask = in_rows[:, None] & (col < n_cols)[None, :]
        a = tl.load(y + row[:, None] * n_cols + col[None, :], mask, other=0.0)
        to_token = (copy // n_choices)[:, None] * n_cols + col[None, :]
        b = tl.load(grad_out + to_token, mask, other=0.0)
        total += tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)
    tl.store(grad_weights + copy, total, in_rows)


def _launch(kernel: Any, source: Tensor, index: Tensor, weights: Tensor | None, out: Tensor,
            n_choices: int) -> Tensor:  # fmt: skip
    """Fill ``out`` with the spread or the gather kernel."""
    n_rows, n_cols = out.shape
    config = tile_config(architecture(out), n_cols)
    grid = (triton.cdiv(n_rows, config.rows) * triton.cdiv(n_cols, config.cols),)
    kernel[grid](
        source, index, source if weights is None else weights, out, n_rows, n_cols, n_choices,
        HAS_WEIGHTS=weights is not None, ALIGN=alignment(n_cols),
        ROWS=config.rows, COLS=config.cols, num_warps=config.num_warps,
    )  # fmt: skip
    return out


@torch.library.custom_op("scalelab::moe_spread", mutates_args=())
def _spread(x: Tensor, order: Tensor, weights: Tensor | None, n_choices: int) -> Tensor:
    x = x.contiguous()
    weights = None if weights is None else weights.contiguous()
    out = x.new_empty(order.shape[0], x.shape[1])
    return _launch(_spread_kernel, x, order, weights, out, n_choices)


@_spread.register_fake
def _(x: Tensor, order: Tensor, weights: Tensor | None, n_choices: int) -> Tensor:
    return x.new_empty(order.shape[0], x.shape[1])


@torch.library.custom_op("scalelab::moe_gather", mutates_args=())
def _gather(y: Tensor, slot: Tensor, weights: Tensor | None) -> Tensor:
    y = y.contiguous()
    weights = None if weights is None else weights.contiguous()
    out = y.new_empty(slot.shape[0], y.shape[1])
    return _launch(_gather_kernel, y, slot, weights, out, slot.shape[1])


@_gather.register_fake
def _(y: Tensor, slot: Tensor, weights: Tensor | None) -> Tensor:
    return y.new_empty(slot.shape[0], y.shape[1])


@torch.library.custom_op("scalelab::moe_dot", mutates_args=())
def _dot(y: Tensor, grad_out: Tensor, order: Tensor, n_choices: int) -> Tensor:
    y, grad_out = y.contiguous(), grad_out.contiguous()
    n_rows, n_cols = y.shape
    out = torch.empty(n_rows // n_choices, n_choices, dtype=torch.float32, device=y.device)
    config = tile_config(architecture(y), n_cols)
    _dot_kernel[(triton.cdiv(n_rows, config.rows),)](
        y, grad_out, order, out, n_rows, n_cols, n_choices,
        ALIGN=alignment(n_cols), ROWS=config.rows, COLS=config.cols, num_warps=config.num_warps,
    )  # fmt: skip
    return out


@_dot.register_fake
def _(y: Tensor, grad_out: Tensor, order: Tensor, n_choices: int) -> Tensor:
    return y.new_empty(y.shape[0] // n_choices, n_choices, dtype=torch.float32)


@torch.library.custom_op("scalelab::moe_permute", mutates_args=())
def _permute(x: Tensor, order: Tensor, slot: Tensor) -> Tensor:
    out: Tensor = _spread(x, order, None, slot.shape[1])
    return out


@_permute.register_fake
def _(x: Tensor, order: Tensor, slot: Tensor) -> Tensor:
    return x.new_empty(order.shape[0], x.shape[1])


@torch.library.custom_op("scalelab::moe_unpermute", mutates_args=())
def _unpermute(y: Tensor, weights: Tensor, order: Tensor, slot: Tensor) -> Tensor:
    out: Tensor = _gather(y, slot, weights)
    return out


@_unpermute.register_fake
def _(y: Tensor, weights: Tensor, order: Tensor, slot: Tensor) -> Tensor:
    return y.new_empty(slot.shape[0], y.shape[1])


def _save_permute(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])


def _permute_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None]:
    return _gather(grad_out, ctx.saved_tensors[0], None), None, None


def _save_unpermute(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _unpermute_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, None, None]:
    y, weights, order, slot = ctx.saved_tensors
    grad_y = _spread(grad_out, order, weights, slot.shape[1])
    grad_weights = _dot(y, grad_out, order, slot.shape[1])
    return grad_y, grad_weights.to(weights.dtype), None, None


_permute.register_autograd(_permute_backward, setup_context=_save_permute)
_unpermute.register_autograd(_unpermute_backward, setup_context=_save_unpermute)


def permute(x: Tensor, routing: Route) -> Tensor:
    """Return `scalelab_kernels.reference_moe.permute` of the same arguments.

    Raises
    ------
    KernelUnavailableError
        Where Triton cannot run.
    """
    check_runs_here(x)
    out: Tensor = _permute(x, routing.order, routing.slot)
    return out


def unpermute(y: Tensor, weights: Tensor, routing: Route) -> Tensor:
    """Return `scalelab_kernels.reference_moe.unpermute` of the same arguments.

    Raises
    ------
    KernelUnavailableError
        Where Triton cannot run.
    """
    check_runs_here(y)
    out: Tensor = _unpermute(y, weights, routing.order, routing.slot)
    return out


def grouped_linear(x: Tensor, weight: Tensor, routing: Route) -> Tensor:
    """Return `scalelab_kernels.reference_moe.grouped_linear`, with torch's grouped matmul.

    Raises
    ------
    KernelUnavailableError
        A torch without ``grouped_mm``, or a dtype that it does not support on a GPU.
    """
    if not hasattr(functional, "grouped_mm") or (x.is_cuda and x.dtype != torch.bfloat16):
        raise KernelUnavailableError(
            f"a grouped matmul of {x.dtype} with torch {torch.__version__}",
            "bf16 on a GPU of compute capability 8.0 or more, with torch.nn.functional.grouped_mm",
            "Train in bf16, or use kernels = reference.",
        )
    return functional.grouped_mm(x, weight.transpose(1, 2), offs=routing.ends)

"""Linear + cross-entropy: hidden x head -> loss, with at most one chunk of logits in memory.

There are two implementations (`scalelab_kernels.configs.recomputes_tiles`). For narrow heads in
half precision the kernels recompute each tile of logits (`scalelab_kernels.cross_entropy_tiles`).
Other heads are limited by their matmuls, which use cuBLAS: a matmul projects a chunk of tokens to
one reused buffer of logits, a kernel replaces each row by its gradient and writes its loss, and two
matmuls compute the gradients of activations and weight, the weight's in an fp32 accumulator.
Batched runs share a chunk if their tokens fit in it; otherwise a chunk belongs to one run.

`linear_cross_entropy_sum` computes unscaled gradients in the forward pass (6 N V d FLOPs). Backward
multiplies them by the gradient of the sum in one pass on the device, so a loss scale or a mean does
not synchronize with the host. The gradients of token losses (`linear_cross_entropy`) are not known
in the forward pass, so backward projects each chunk again (8 N V d).

Bytes for each token in bf16: 10 V (the first matmul writes 2, the kernel reads 2, reads again from
L2 and writes 2, the other matmuls read 4); unfused 38 V. Each chunk after a run's first also reads
and writes the accumulator, 8 V d. A label outside the vocabulary that is not ``ignore_index`` gives
a NaN loss, because raising an error would need the host.
"""

# Triton compiles the kernels from their source, in which annotations would be wrong.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from scalelab_kernels.configs import chunk_rows, logits_config, recomputes_tiles
from scalelab_kernels.cross_entropy_tiles import tiled_cross_entropy
from scalelab_kernels.errors import refuse_softcap
from scalelab_kernels.reference import IGNORE_INDEX
from scalelab_kernels.runtime import architecture, check_runs_here, round_to

ROW_MULTIPLE = 64
"""Rows of logits start at multiples of 128 bytes, which the fast products of cuBLAS need."""


@triton.jit
def _load_logits(
    row, start, n_vocab, row_stride, MASKED: tl.constexpr, UNROLL: tl.constexpr, COLS: tl.constexpr
):
    """Return UNROLL blocks of a row in fp32, with -inf after its end."""
    block = tl.arange(0, UNROLL)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    if MASKED:
        # A mask of whole 16-byte groups keeps the loads wide for all vocabularies. The padding
        # between `n_vocab` and `row_stride` is in memory, but not initialized.
        col = start + block
        x = tl.load(row + col, col < row_stride, other=0.0).to(tl.float32)
        return tl.where(col < n_vocab, x, float("-inf"))
    return tl.load(row + start + block).to(tl.float32)


@triton.jit
def _add_blocks(
    top, total, row, begin, end, row_stride,
    MASKED: tl.constexpr, UNROLL: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Update the maximum and the sum of each lane with the columns ``begin .. end`` of a row."""
    for start in range(begin, end, UNROLL * COLS):
        x = _load_logits(row, start, end, row_stride, MASKED, UNROLL, COLS)
        # A lane is one column of each of the UNROLL blocks, in one thread.
        new_top = tl.maximum(top, tl.max(x, 0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(x - base[None, :]), 0)
        top = new_top
    return top, total


@triton.jit
def _write_gradients(
    row, begin, end, row_stride, target, top, rest, pull, scale, is_counted,
    MASKED: tl.constexpr, UNROLL: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Replace the columns ``begin .. end`` of a row of logits by their gradients."""
    block = tl.arange(0, UNROLL)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    for start in range(begin, end, UNROLL * COLS):
        x = _load_logits(row, start, end, row_stride, MASKED, UNROLL, COLS)
        p = tl.exp((x - top) - rest)
        grad = p - tl.where(start + block == target, 1.0, 0.0) + p * pull
        grad = round_to(tl.where(is_counted, grad * scale, 0.0), row.dtype.element_ty)
        if MASKED:
            tl.store(row + start + block, grad, start + block < row_stride)
        else:
            tl.store(row + start + block, grad)


@triton.jit(do_not_specialize=["first_run", "first", "n_rows", "n_tokens", "ignore_index"])
def _rows_kernel(
    logits, targets, upstream, losses, n_rows, row_stride, first_run, n_tokens, first, n_vocab,
    z_loss, ignore_index,
    HAS_GRAD: tl.constexpr, HAS_UPSTREAM: tl.constexpr, UNROLL: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Write the loss of one row of logits, and replace the row by its gradient."""
    run = tl.program_id(1).to(tl.int64)
    token = (first_run + run) * n_tokens + first + tl.program_id(0)
    row = logits + (run * n_rows + tl.program_id(0)) * row_stride
    target = tl.load(targets + token)
    is_label = (target >= 0) & (target < n_vocab)
    picked = tl.load(row + target, is_label, other=float("nan")).to(tl.float32)
    # Each lane has a maximum and a sum: one reduction for a row, not one for each block.
    lanes = tl.full((COLS,), float("-inf"), tl.float32)
    total = tl.zeros((COLS,), tl.float32)
    n_whole = n_vocab // (UNROLL * COLS) * (UNROLL * COLS)
    lanes, total = _add_blocks(lanes, total, row, 0, n_whole, row_stride, False, UNROLL, COLS)
    lanes, total = _add_blocks(lanes, total, row, n_whole, n_vocab, row_stride, True, 1, COLS)
    top = tl.max(lanes, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    # As in `cross_entropy_tiles`, subtract the log-partition as two numbers.
    rest = tl.log(tl.sum(total * tl.exp(lanes - base), 0))
    lse = top + rest
    is_counted = target != ignore_index
    loss = rest - (picked - top) + z_loss * lse * lse
    tl.store(losses + token, tl.where(is_counted, loss, 0.0))
    if HAS_GRAD:
        pull = 2.0 * z_loss * lse
        scale = tl.load(upstream + token) if HAS_UPSTREAM else 1.0
        _write_gradients(
            row, 0, n_whole, row_stride, target, top, rest, pull, scale, is_counted,
            False, UNROLL // 2, COLS,
        )  # fmt: skip
        _write_gradients(
            row, n_whole, n_vocab, row_stride, target, top, rest, pull, scale, is_counted,
            True, 1, COLS,
        )  # fmt: skip


@triton.jit
def _scale_kernel(x, factor, out, n_elements, BLOCK: tl.constexpr):
    """Write ``x * factor[run]`` in the dtype of ``out``."""
    run = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n_elements
    index += run * n_elements
    value = tl.load(x + index, mask, other=0.0).to(tl.float32) * tl.load(factor + run)
    tl.store(out + index, round_to(value, out.dtype.element_ty), mask)


def _scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` (K, ...) times ``factor`` (K,), rounded once."""
    out = torch.empty_like(x, dtype=dtype)
    n_elements = x[0].numel()
    grid = (triton.cdiv(n_elements, 2048), x.shape[0])
    _scale_kernel[grid](x, factor.contiguous(), out, n_elements, BLOCK=2048)
    return out


def loss_rows(
    logits: Tensor, targets: Tensor, losses: Tensor, n_vocab: int, z_loss: float,
    ignore_index: int, *, has_grad: bool,
) -> None:  # fmt: skip
    """Write each row's loss and, if ``has_grad``, replace its logits by the loss's gradient.

    Parameters
    ----------
    logits : Tensor, shape (n, v)
        Contiguous. Columns from ``n_vocab`` do not count; their gradient is 0.
    targets : Tensor of int64, shape (n,)
    losses : Tensor of fp32, shape (n,)
    """
    config = logits_config(architecture(logits), n_vocab)
    n_rows = len(logits)
    _rows_kernel[(n_rows, 1)](
        logits, targets, losses, losses, n_rows, logits.stride(0), 0, n_rows, 0, n_vocab, z_loss,
        ignore_index, HAS_GRAD=has_grad, HAS_UPSTREAM=False,
        UNROLL=config.rows, COLS=config.cols, num_warps=config.num_warps,
    )  # fmt: skip


def _add_weight_gradient(
    acc: Tensor, grad_logits: Tensor, hidden: Tensor, *, is_first: bool
) -> None:
    """Set the fp32 ``acc`` (K, V, d) to ``grad_logits^T @ hidden``, or add it after the first."""
    columns = grad_logits.transpose(1, 2)
    if hidden.dtype == torch.float32:
        torch.bmm(columns, hidden, out=acc) if is_first else acc.baddbmm_(columns, hidden)
    elif not hidden.is_cuda:
        acc.baddbmm_(columns.float(), hidden.float(), beta=0 if is_first else 1)
    elif is_first:
        torch.ops.aten.bmm.dtype_out(columns, hidden, torch.float32, out=acc)
    else:
        torch.ops.aten.baddbmm.dtype_out(acc, columns, hidden, torch.float32, out=acc)


def _run_chunks(
    hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor | None,
    z_loss: float, ignore_index: int, *, has_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Return losses (K, N) and, if ``has_grad``, both gradients, the weight's in fp32."""
    hidden, targets = hidden.contiguous(), targets.contiguous()
    n_runs, n_tokens, _ = hidden.shape
    n_vocab = weight.shape[1]
    kind = architecture(hidden)
    config = logits_config(kind, n_vocab)
    row_stride = triton.cdiv(n_vocab, ROW_MULTIPLE) * ROW_MULTIPLE
    rows_at_a_time = chunk_rows(kind, row_stride, hidden.element_size())
    chunk = min(rows_at_a_time, n_tokens)
    runs_at_a_time = min(n_runs, rows_at_a_time // chunk)
    buffer = hidden.new_empty(runs_at_a_time * chunk * row_stride)
    losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
    grad_hidden = torch.empty_like(hidden) if has_grad else None
    grad_weight = (
        torch.empty(weight.shape, dtype=torch.float32, device=hidden.device) if has_grad else None
    )
    for first_run, first in itertools.product(
        range(0, n_runs, runs_at_a_time), range(0, n_tokens, chunk)
    ):
        runs = slice(first_run, first_run + runs_at_a_time)
        rows, own_weight = hidden[runs, first : first + chunk], weight[runs]
        shape = (*rows.shape[:2], row_stride)
        padded = buffer[: math.prod(shape)].view(shape)
        logits = padded[..., :n_vocab]
        torch.bmm(rows, own_weight.transpose(1, 2), out=logits)
        _rows_kernel[(shape[1], shape[0])](
            padded, targets, losses if upstream is None else upstream, losses,
            shape[1], row_stride, first_run, n_tokens, first, n_vocab, z_loss, ignore_index,
            HAS_GRAD=has_grad, HAS_UPSTREAM=upstream is not None,
            UNROLL=config.rows, COLS=config.cols, num_warps=config.num_warps,
        )  # fmt: skip
        if grad_hidden is not None and grad_weight is not None:
            torch.bmm(logits, own_weight, out=grad_hidden[runs, first : first + chunk])
            _add_weight_gradient(grad_weight[runs], logits, rows, is_first=first == 0)
    return losses, grad_hidden, grad_weight


@torch.library.custom_op("scalelab::chunked_cross_entropy", mutates_args=())
def _chunked(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, ignore_index: int
) -> Tensor:
    return _run_chunks(hidden, weight, targets, None, z_loss, ignore_index, has_grad=False)[0]


@_chunked.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, ignore_index: int) -> Tensor:
    return hidden.new_empty(targets.shape, dtype=torch.float32)


@torch.library.custom_op("scalelab::chunked_cross_entropy_backward", mutates_args=())
def _chunked_backward(
    grad_losses: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor,
    z_loss: float, ignore_index: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    upstream = grad_losses.contiguous()
    _, grad_hidden, grad_weight = _run_chunks(
        hidden, weight, targets, upstream, z_loss, ignore_index, has_grad=True
    )
    assert grad_hidden is not None
    assert grad_weight is not None
    return grad_hidden, grad_weight.to(weight.dtype)


@_chunked_backward.register_fake
def _(
    grad_losses: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor,
    z_loss: float, ignore_index: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


@torch.library.custom_op("scalelab::chunked_cross_entropy_sum", mutates_args=())
def _chunked_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    losses, grad_hidden, grad_weight = _run_chunks(
        hidden, weight, targets, None, z_loss, ignore_index, has_grad=True
    )
    assert grad_hidden is not None
    assert grad_weight is not None
    return losses.sum(1), grad_hidden, grad_weight


@_chunked_sum.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape[0], dtype=torch.float32),
        hidden.new_empty(hidden.shape),
        weight.new_empty(weight.shape, dtype=torch.float32),
    )


@torch.library.custom_op("scalelab::scale_gradients", mutates_args=())
def _scale_gradients(
    factor: Tensor, grad_hidden: Tensor, grad_weight: Tensor, weight_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return (
        _scaled(grad_hidden, factor, grad_hidden.dtype),
        _scaled(grad_weight, factor, weight_dtype),
    )


@_scale_gradients.register_fake
def _(
    factor: Tensor, grad_hidden: Tensor, grad_weight: Tensor, weight_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad_hidden), torch.empty_like(grad_weight, dtype=weight_dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.settings = inputs[3:]


def _backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
    grads = _chunked_backward(grad_losses, *ctx.saved_tensors, *ctx.settings)
    return *grads, None, None, None


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # Without this, backward would get buffers of zeros as large as the two gradients.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.weight_dtype = inputs[1].dtype


def _backward_sum(ctx: Any, factor: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return *_scale_gradients(factor, *ctx.saved_tensors, ctx.weight_dtype), None, None, None


_chunked.register_autograd(_backward, setup_context=_save)
_chunked_sum.register_autograd(_backward_sum, setup_context=_save_sum)


def _by_run(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """View the arguments as (K, N, d), (K, V, d) and (K, N)."""
    weight = weight if weight.ndim == 3 else weight.unsqueeze(0)
    n_runs = weight.shape[0]
    return hidden.reshape(n_runs, -1, hidden.shape[-1]), weight, targets.reshape(n_runs, -1)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Return `scalelab_kernels.reference.linear_cross_entropy` of the same arguments.

    Raises
    ------
    KernelUnavailableError
        Where Triton cannot run, or with a cap of the logits.
    """
    check_runs_here(hidden)
    refuse_softcap(softcap)
    arguments = (*_by_run(hidden, weight, targets), z_loss, ignore_index)
    if recomputes_tiles(architecture(hidden), hidden.shape[-1], hidden.element_size()):
        losses: Tensor = tiled_cross_entropy(*arguments)[0]
    else:
        losses = _chunked(*arguments)
    return losses.view(targets.shape)


def linear_cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Return `scalelab_kernels.reference.linear_cross_entropy_sum` of the same arguments.

    An evaluation (without gradients) does not compute gradients.

    Raises
    ------
    KernelUnavailableError
        Where Triton cannot run, or with a cap of the logits.
    """
    check_runs_here(hidden)
    refuse_softcap(softcap)
    arguments = (*_by_run(hidden, weight, targets), z_loss, ignore_index)
    is_training = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if recomputes_tiles(architecture(hidden), hidden.shape[-1], hidden.element_size()):
        total: Tensor = tiled_cross_entropy(*arguments)[0].sum(1)
    elif is_training:
        total = _chunked_sum(*arguments)[0]
    else:
        total = _chunked(*arguments).sum(1)
    return total if weight.ndim == 3 else total.squeeze(0)

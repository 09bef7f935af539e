"""QK-norm and RoPE on a fused qkv, in one pass forward and one backward.

Each head of q and k becomes ``rotate(x * rstd * weight, position)``. The kernel also copies v, so
that one backward pass writes the whole fused gradient (with a view of v, autograd would fill a
buffer with zeros and add to it: 18 d bytes instead of 4 d). Backward saves only the input and
recomputes ``rstd`` from the row that it reads. The operation is not in place: the gradient of the
weight needs the input, which the output does not determine if a weight is zero.

A row is one head of one token; rows are consecutive in memory. Bytes for each token in bf16 with
equal numbers of key and query heads: forward 12 d, backward 16 d, including 4 d for v in each.
"""

# Triton compiles the kernels from their source, in which annotations would be wrong.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from scalelab_kernels.configs import head_config
from scalelab_kernels.runtime import architecture, check_runs_here, n_batched, round_to


@triton.jit
def _rows(block, run, n_rows, n_positions, H: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr):
    """Return token, head, validity and position of this block's rows."""
    # 32 bits suffice for all rows that fit in a device's memory, and divide faster than 64.
    row = block * ROWS + tl.arange(0, ROWS)
    token = row // (H + 2 * G)
    head = row % (H + 2 * G)
    position = token % n_positions
    token = token.to(tl.int64) + run * (n_rows // (H + 2 * G))
    return token, head, row < n_rows, position


@triton.jit
def _angles(cos, sin, position, rotates, col, in_cols, HALF: tl.constexpr):
    """Return cos and sin (ROWS, HALF), with angle 0 for the rows of v."""
    mask = rotates[:, None] & in_cols[None, :]
    offset = position[:, None] * HALF + col[None, :]
    return tl.load(cos + offset, mask, other=1.0), tl.load(sin + offset, mask, other=0.0)


@triton.jit
def _gain(q_weight, k_weight, run, stride, is_q, is_k, col, in_cols):
    """Return the norm's weight for each row (ROWS, COLS), 1 for the rows of v."""
    of_q = tl.load(q_weight + run * stride + col, in_cols, other=0.0).to(tl.float32)[None, :]
    of_k = tl.load(k_weight + run * stride + col, in_cols, other=0.0).to(tl.float32)[None, :]
    return tl.where(is_q[:, None], of_q, tl.where(is_k[:, None], of_k, 1.0))


@triton.jit
def _forward_kernel(
    qkv, q_weight, k_weight, cos, sin, q, k, v, n_rows, n_positions, weight_stride, eps,
    HAS_NORM: tl.constexpr, H: tl.constexpr, G: tl.constexpr, HALF: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(1).to(tl.int64)
    token, head, in_rows, position = _rows(tl.program_id(0), run, n_rows, n_positions, H, G, ROWS)
    col = tl.arange(0, COLS)
    in_cols = col < HALF
    is_q = head < H
    is_k = (head >= H) & (head < H + G)
    mask = in_rows[:, None] & in_cols[None, :]
    source = (token * (H + 2 * G) + head)[:, None] * (2 * HALF) + col[None, :]
    x1 = tl.load(qkv + source, mask, other=0.0).to(tl.float32)
    x2 = tl.load(qkv + source + HALF, mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        mean_square = (tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / (2 * HALF)
        rstd = tl.where(is_q | is_k, 1.0 / tl.sqrt(mean_square + eps), 1.0)[:, None]
        x1 *= rstd * _gain(q_weight, k_weight, run, weight_stride, is_q, is_k, col, in_cols)
        x2 *= rstd * _gain(
            q_weight + HALF, k_weight + HALF, run, weight_stride, is_q, is_k, col, in_cols
        )
    c, s = _angles(cos, sin, position, is_q | is_k, col, in_cols, HALF)
    y1 = round_to(x1 * c - x2 * s, q.dtype.element_ty)
    y2 = round_to(x2 * c + x1 * s, q.dtype.element_ty)
    to_q = (token * H + head)[:, None] * (2 * HALF) + col[None, :]
    tl.store(q + to_q, y1, mask & is_q[:, None])
    tl.store(q + to_q + HALF, y2, mask & is_q[:, None])
    to_k = (token * G + head - H)[:, None] * (2 * HALF) + col[None, :]
    tl.store(k + to_k, y1, mask & is_k[:, None])
    tl.store(k + to_k + HALF, y2, mask & is_k[:, None])
    to_v = to_k - G * (2 * HALF)
    is_v = (head >= H + G)[:, None]
    tl.store(v + to_v, y1, mask & is_v)
    tl.store(v + to_v + HALF, y2, mask & is_v)


@triton.jit
def _load_gradient(grad_q, grad_k, grad_v, to_q, to_k, to_v, mask, is_q, is_k):
    """Return the gradient of one half of each row, from the gradient of q, k or v."""
    of_q = tl.load(grad_q + to_q, mask & is_q[:, None], other=0.0).to(tl.float32)
    of_k = tl.load(grad_k + to_k, mask & is_k[:, None], other=0.0).to(tl.float32)
    of_v = tl.load(grad_v + to_v, mask & ~(is_q | is_k)[:, None], other=0.0).to(tl.float32)
    return of_q + of_k + of_v


@triton.jit
def _backward_kernel(
    grad_q, grad_k, grad_v, qkv, q_weight, k_weight, cos, sin, grad_qkv, partial,
    n_rows, n_positions, weight_stride, eps,
    HAS_NORM: tl.constexpr, H: tl.constexpr, G: tl.constexpr, HALF: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    n_programs = tl.num_programs(0)
    run = tl.program_id(1).to(tl.int64)
    col = tl.arange(0, COLS)
    in_cols = col < HALF
    q_sum1 = tl.zeros((COLS,), tl.float32)
    q_sum2 = tl.zeros((COLS,), tl.float32)
    k_sum1 = tl.zeros((COLS,), tl.float32)
    k_sum2 = tl.zeros((COLS,), tl.float32)
    for block in range(program, tl.cdiv(n_rows, ROWS), n_programs):
        token, head, in_rows, position = _rows(block, run, n_rows, n_positions, H, G, ROWS)
        is_q = head < H
        is_k = (head >= H) & (head < H + G)
        rotates = is_q | is_k
        mask = in_rows[:, None] & in_cols[None, :]
        to_q = (token * H + head)[:, None] * (2 * HALF) + col[None, :]
        to_k = (token * G + head - H)[:, None] * (2 * HALF) + col[None, :]
        to_v = to_k - G * (2 * HALF)
        g1 = _load_gradient(grad_q, grad_k, grad_v, to_q, to_k, to_v, mask, is_q, is_k)
        g2 = _load_gradient(
            grad_q + HALF, grad_k + HALF, grad_v + HALF, to_q, to_k, to_v, mask, is_q, is_k
        )
        c, s = _angles(cos, sin, position, rotates, col, in_cols, HALF)
        d1 = g1 * c + g2 * s
        d2 = g2 * c - g1 * s
        source = (token * (H + 2 * G) + head)[:, None] * (2 * HALF) + col[None, :]
        if HAS_NORM:
            read = mask & rotates[:, None]
            x1 = tl.load(qkv + source, read, other=0.0).to(tl.float32)
            x2 = tl.load(qkv + source + HALF, read, other=0.0).to(tl.float32)
            mean_square = (tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / (2 * HALF)
            rstd = tl.where(rotates, 1.0 / tl.sqrt(mean_square + eps), 1.0)[:, None]
            x1 *= rstd
            x2 *= rstd
            q_sum1 += tl.sum(tl.where(is_q[:, None], d1 * x1, 0.0), 0)
            q_sum2 += tl.sum(tl.where(is_q[:, None], d2 * x2, 0.0), 0)
            k_sum1 += tl.sum(tl.where(is_k[:, None], d1 * x1, 0.0), 0)
            k_sum2 += tl.sum(tl.where(is_k[:, None], d2 * x2, 0.0), 0)
            d1 *= _gain(q_weight, k_weight, run, weight_stride, is_q, is_k, col, in_cols)
            d2 *= _gain(
                q_weight + HALF, k_weight + HALF, run, weight_stride, is_q, is_k, col, in_cols
            )
            dot = ((tl.sum(d1 * x1, 1) + tl.sum(d2 * x2, 1)) / (2 * HALF))[:, None]
            d1 = (d1 - x1 * dot) * rstd
            d2 = (d2 - x2 * dot) * rstd
        tl.store(grad_qkv + source, round_to(d1, grad_qkv.dtype.element_ty), mask)
        tl.store(grad_qkv + source + HALF, round_to(d2, grad_qkv.dtype.element_ty), mask)
    if HAS_NORM:
        slot = (run * n_programs + program) * (4 * HALF) + col
        tl.store(partial + slot, q_sum1, in_cols)
        tl.store(partial + slot + HALF, q_sum2, in_cols)
        tl.store(partial + slot + 2 * HALF, k_sum1, in_cols)
        tl.store(partial + slot + 3 * HALF, k_sum2, in_cols)


def _heads_empty(qkv: Tensor, n_heads: int, head_dim: int) -> Tensor:
    return qkv.new_empty(*qkv.shape[:-1], n_heads, head_dim)


@torch.library.custom_op("scalelab::qk_norm_rope", mutates_args=())
def _qk_norm_rope(
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor,
    n_heads: int, n_kv_heads: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    qkv, cos, sin = qkv.contiguous(), cos.contiguous(), sin.contiguous()
    head_dim = qkv.shape[-1] // (n_heads + 2 * n_kv_heads)
    q = _heads_empty(qkv, n_heads, head_dim)
    k, v = (_heads_empty(qkv, n_kv_heads, head_dim) for _ in range(2))
    n_runs = 1 if q_weight is None else n_batched(q_weight, 1)
    n_rows = qkv.numel() // (head_dim * n_runs)
    config = head_config(architecture(qkv), head_dim // 2)
    _forward_kernel[(triton.cdiv(n_rows, config.rows), n_runs)](
        qkv, qkv if q_weight is None else q_weight.contiguous(),
        qkv if k_weight is None else k_weight.contiguous(), cos, sin, q, k, v,
        n_rows, qkv.shape[-2], head_dim if n_runs > 1 else 0, eps,
        HAS_NORM=q_weight is not None, H=n_heads, G=n_kv_heads, HALF=head_dim // 2,
        ROWS=config.rows, COLS=config.cols, num_warps=config.num_warps,
    )  # fmt: skip
    return q, k, v


@_qk_norm_rope.register_fake
def _(
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor,
    n_heads: int, n_kv_heads: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    head_dim = qkv.shape[-1] // (n_heads + 2 * n_kv_heads)
    k, v = (_heads_empty(qkv, n_kv_heads, head_dim) for _ in range(2))
    return _heads_empty(qkv, n_heads, head_dim), k, v


@torch.library.custom_op("scalelab::qk_norm_rope_backward", mutates_args=())
def _qk_norm_rope_backward(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor,
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grad_q, grad_k, grad_v = grad_q.contiguous(), grad_k.contiguous(), grad_v.contiguous()
    qkv, cos, sin = qkv.contiguous(), cos.contiguous(), sin.contiguous()
    n_heads, head_dim = grad_q.shape[-2:]
    n_runs = 1 if q_weight is None else n_batched(q_weight, 1)
    n_rows = qkv.numel() // (head_dim * n_runs)
    config = head_config(architecture(qkv), head_dim // 2)
    n_programs = min(config.programs, triton.cdiv(n_rows, config.rows))
    grad_qkv = torch.empty_like(qkv)
    partial = torch.empty(n_runs, n_programs, 2, head_dim, dtype=torch.float32, device=qkv.device)
    _backward_kernel[(n_programs, n_runs)](
        grad_q, grad_k, grad_v, qkv, qkv if q_weight is None else q_weight.contiguous(),
        qkv if k_weight is None else k_weight.contiguous(), cos, sin, grad_qkv, partial,
        n_rows, qkv.shape[-2], head_dim if n_runs > 1 else 0, eps,
        HAS_NORM=q_weight is not None, H=n_heads, G=grad_k.shape[-2], HALF=head_dim // 2,
        ROWS=config.rows, COLS=config.cols, num_warps=config.num_warps,
    )  # fmt: skip
    if q_weight is None:
        return grad_qkv, partial.new_zeros(2, 0)
    return grad_qkv, partial.sum(1).transpose(0, 1).reshape(2, *q_weight.shape)


@_qk_norm_rope_backward.register_fake
def _(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor,
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = (0,) if q_weight is None else q_weight.shape
    grad_weights = qkv.new_empty(2, *shape, dtype=torch.float32)
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), grad_weights


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.eps = inputs[7]


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    qkv, q_weight, k_weight, cos, sin = ctx.saved_tensors
    grad_qkv, weights = _qk_norm_rope_backward(*grads, qkv, q_weight, k_weight, cos, sin, ctx.eps)
    none = (None,) * 5
    if q_weight is None:
        return grad_qkv, None, None, *none
    return grad_qkv, weights[0].to(q_weight.dtype), weights[1].to(k_weight.dtype), *none


_qk_norm_rope.register_autograd(_backward, setup_context=_save)


def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    n_heads: int,
    n_kv_heads: int,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `scalelab_kernels.reference.qk_norm_rope` of the same arguments, computed in fp32.

    In memory the results are (..., T, H, D), returned as views (..., H, T, D).

    Raises
    ------
    KernelUnavailableError
        Where Triton cannot run.
    """
    check_runs_here(qkv)
    q, k, v = _qk_norm_rope(qkv, q_weight, k_weight, cos, sin, n_heads, n_kv_heads, eps)
    return q.transpose(-2, -3), k.transpose(-2, -3), v.transpose(-2, -3)

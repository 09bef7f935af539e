"""Deterministic causal attention with grouped heads and documents of any length.

A program takes a block of queries of one head and loops over the keys that they see, with an online
softmax in base 2. Blocks below the diagonal need no mask. Documents are given by the start of each
position's document (`scalelab_kernels.reference.document_starts`); the loop starts there and skips
blocks that no query sees. Tensors are read by their strides, so q, k and v can be token-major in
memory, as `scalelab_kernels.qk_norm_rope` writes them. The result is token-major too, as the next
matmul needs it.

Scores, softmax and sums are in fp32; weights are rounded to the input's dtype for the second
matmul. FLOPs of a head: forward 2 T^2 D (the causal half of 4 T^2 D). Bytes: q, k, v and the result
once each. The backward pass is in `scalelab_kernels.attention_backward`.
"""

# Triton compiles the kernels from their source, in which annotations would be wrong.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from scalelab_kernels.attention_backward import (
    LOG2_E,
    attention_backward,
    last_dense,
    load_block,
    place,
    store_block,
)
from scalelab_kernels.configs import attention_config
from scalelab_kernels.errors import KernelUnavailableError
from scalelab_kernels.runtime import (
    alignment,
    architecture,
    check_runs_here,
    dot,
    multiple,
    round_to,
)

HEAD_DIM_MAX = 128


@triton.jit
def _forward_kernel(
    q, k, v, starts, out, lse, scale, n_positions,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    H: tl.constexpr, GROUP: tl.constexpr, HAS_STARTS: tl.constexpr, ALIGN: tl.constexpr,
    D: tl.constexpr, COLS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    tl.static_assert(QUERIES % KEYS == 0)
    # The last queries see the most keys: start with them, so that no long block runs at the end.
    block, batch, head = place(n_positions, QUERIES, H)
    first = (tl.cdiv(n_positions, QUERIES) - 1 - block) * QUERIES
    row = first + tl.arange(0, QUERIES)
    in_rows = row < n_positions
    q_token = multiple(q_token, ALIGN)
    k_token = multiple(k_token, ALIGN)
    v_token = multiple(v_token, ALIGN)
    q += multiple(batch * q_batch + head * q_head, ALIGN)
    k += multiple(batch * k_batch + head // GROUP * k_head, ALIGN)
    v += multiple(batch * v_batch + head // GROUP * v_head, ALIGN)
    queries = load_block(q, first, n_positions, q_token, QUERIES, D, COLS)
    begin = 0
    starts_of_row = tl.zeros((QUERIES,), tl.int32)
    if HAS_STARTS:
        starts_of_row = tl.load(starts + batch * n_positions + row, in_rows, other=n_positions)
        begin = tl.min(starts_of_row, 0) // KEYS * KEYS
    acc = tl.zeros((QUERIES, COLS), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    for start in range(begin, tl.minimum(first + QUERIES, n_positions), KEYS):
        col = start + tl.arange(0, KEYS)
        keys = load_block(k, start, n_positions, k_token, KEYS, D, COLS)
        scores = dot(queries, tl.trans(keys), tl.zeros((QUERIES, KEYS), tl.float32))
        if HAS_STARTS:
            is_seen = (col[None, :] <= row[:, None]) & (col[None, :] >= starts_of_row[:, None])
            scores = tl.where(is_seen, scores, float("-inf"))
        elif start >= first:
            scores = tl.where(col[None, :] <= row[:, None], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * scale)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores * scale - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, 1)
        values = load_block(v, start, n_positions, v_token, KEYS, D, COLS)
        acc = dot(round_to(weights, values.dtype), values, acc * shrink[:, None])
        top = new_top
    # Rows after the end have a sum of zero.
    total = tl.where(in_rows, total, 1.0)
    out += (batch * n_positions * H + head) * D
    store_block(out, first, n_positions, H * D, acc / total[:, None], QUERIES, D, COLS)
    tl.store(lse + (batch * H + head) * n_positions + row, top + tl.log2(total), in_rows)


@torch.library.custom_op("scalelab::attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the result, (B, T, H, D), and the log-partitions in base 2, (B, H, T)."""
    q, k, v = last_dense(q), last_dense(k), last_dense(v)
    starts = None if starts is None else starts.contiguous()
    n_batch, n_heads, n_positions, head_dim = q.shape
    out = q.new_empty(n_batch, n_positions, n_heads, head_dim)
    lse = q.new_empty(n_batch, n_heads, n_positions, dtype=torch.float32)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    config = attention_config(architecture(q), head_dim, q.element_size()).forward
    _forward_kernel[(triton.cdiv(n_positions, config.rows) * n_batch * n_heads,)](
        q, k, v, q if starts is None else starts, out, lse, scale * LOG2_E, n_positions,
        *strides, H=n_heads, GROUP=n_heads // k.shape[1], HAS_STARTS=starts is not None,
        ALIGN=alignment(*strides),
        D=head_dim, COLS=config.width, QUERIES=config.rows, KEYS=config.cols,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out, lse


@_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    n_batch, n_heads, n_positions, head_dim = q.shape
    out = q.new_empty(n_batch, n_positions, n_heads, head_dim)
    return out, q.new_empty(n_batch, n_heads, n_positions, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, starts, scale = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, starts, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.scale = scale


def _backward(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    grads = attention_backward(grad_out, *ctx.saved_tensors, ctx.scale)
    return *(g.transpose(1, 2) for g in grads), None, None


_attention.register_autograd(_backward, setup_context=_save)


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """Return `scalelab_kernels.reference.causal_attention` of the same arguments.

    Raises
    ------
    KernelUnavailableError
        Where Triton cannot run, or for heads wider than `HEAD_DIM_MAX`.
    ValueError
        A scale that is not positive.
    """
    check_runs_here(q)
    if q.shape[-1] > HEAD_DIM_MAX:
        raise KernelUnavailableError(
            f"the Triton attention for heads of size {q.shape[-1]}",
            f"heads of at most {HEAD_DIM_MAX}, whose blocks fit in shared memory",
            "Use attention = sdpa, or smaller heads.",
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if scale <= 0:
        raise ValueError(
            f"got scale = {scale}; expected a positive number. Negate the queries instead."
        )
    lead = q.shape[:-3]
    q4, k4, v4 = (t.flatten(0, -4) if t.ndim > 4 else t.view(-1, *t.shape[-3:]) for t in (q, k, v))
    starts = None if starts is None else starts.reshape(-1, starts.shape[-1])
    out: Tensor = _attention(q4, k4, v4, starts, scale)[0]
    return out.view(*lead, *out.shape[1:]).transpose(-2, -3)

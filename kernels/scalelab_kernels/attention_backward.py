"""Backward pass of causal attention, without atomics.

There are three launches:

1. Compute delta, the dot product of the result with its gradient, for each row.
2. For each block of keys, sum its gradients over the queries that see it, in its group's heads.
3. For each block of queries, sum its gradients over the keys that it sees.

Launches 2 and 3 both recompute the weights from the saved log-partition: 7 matmuls for each tile
instead of 5. In return, repeated calls are bitwise equal without a second buffer of gradients.
"""

# Triton compiles the kernels from their source, in which annotations would be wrong.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scalelab_kernels.configs import attention_config
from scalelab_kernels.runtime import alignment, architecture, dot, multiple, round_to

LOG2_E = 1.4426950408889634


@triton.jit
def load_block(
    pointer, first, n_rows, stride, ROWS: tl.constexpr, D: tl.constexpr, COLS: tl.constexpr
):
    """Return ROWS rows of a head from ``first`` on, with zeros outside it."""
    # The offset of a block is a scalar of 64 bits; within a block 32 bits suffice, and they do not
    # change in a loop. That saves registers.
    row = tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    pointer += tl.cast(first, tl.int64) * stride
    offset = row[:, None] * stride + col[None, :]
    mask = (first + row < n_rows)[:, None]
    if D < COLS:
        mask = mask & (col < D)[None, :]
    return tl.load(pointer + offset, mask, other=0.0)


@triton.jit
def store_block(
    pointer, first, n_rows, stride, value, ROWS: tl.constexpr, D: tl.constexpr, COLS: tl.constexpr
):
    """Write rows of a head from ``first`` on; the counterpart of `load_block`."""
    row = tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    pointer += tl.cast(first, tl.int64) * stride
    mask = (first + row < n_rows)[:, None] & (col < D)[None, :]
    value = round_to(value, pointer.dtype.element_ty)
    tl.store(pointer + row[:, None] * stride + col[None, :], value, mask)


@triton.jit
def place(n_positions, ROWS: tl.constexpr, H: tl.constexpr):
    """Return this program's block of positions, its sequence and its head.

    The grid has one axis: the others are limited to 65,535, and batched runs can have more heads.
    """
    n_blocks = tl.cdiv(n_positions, ROWS)
    row_of_heads = tl.program_id(0) // n_blocks
    batch = (row_of_heads // H).to(tl.int64)
    return tl.program_id(0) % n_blocks, batch, (row_of_heads % H).to(tl.int64)


@triton.jit
def _delta_kernel(
    out, grad_out, delta, n_positions,
    H: tl.constexpr, D: tl.constexpr, COLS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    block, batch, head = place(n_positions, ROWS, H)
    row = block * ROWS + tl.arange(0, ROWS)
    own = (batch * n_positions * H + head) * D
    a = load_block(out + own, block * ROWS, n_positions, H * D, ROWS, D, COLS).to(tl.float32)
    b = load_block(grad_out + own, block * ROWS, n_positions, H * D, ROWS, D, COLS).to(tl.float32)
    to_delta = (batch * H + head) * n_positions + row
    tl.store(delta + to_delta, tl.sum(a * b, 1), row < n_positions)


@triton.jit
def _key_kernel(
    q, k, v, starts, ends, grad_out, lse, delta, grad_k, grad_v, scale, n_positions,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    H: tl.constexpr, GROUP: tl.constexpr, HAS_STARTS: tl.constexpr, ALIGN: tl.constexpr,
    D: tl.constexpr, COLS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    tl.static_assert(KEYS % QUERIES == 0)
    G: tl.constexpr = H // GROUP
    block, batch, kv_head = place(n_positions, KEYS, G)
    first = block * KEYS
    col = first + tl.arange(0, KEYS)
    q_token = multiple(q_token, ALIGN)
    k_token = multiple(k_token, ALIGN)
    v_token = multiple(v_token, ALIGN)
    k += multiple(batch * k_batch + kv_head * k_head, ALIGN)
    v += multiple(batch * v_batch + kv_head * v_head, ALIGN)
    keys = load_block(k, first, n_positions, k_token, KEYS, D, COLS)
    values = load_block(v, first, n_positions, v_token, KEYS, D, COLS)
    end = n_positions
    if HAS_STARTS:
        end = tl.load(ends + batch * n_positions + tl.minimum(first + KEYS, n_positions) - 1)
        starts += batch * n_positions
    acc_k = tl.zeros((KEYS, COLS), tl.float32)
    acc_v = tl.zeros((KEYS, COLS), tl.float32)
    n_steps = tl.cdiv(end - first, QUERIES)
    # One loop over the heads of the group and their queries: the pipeline does not drain between
    # heads, and the compiler needs fewer registers than for two loops.
    for step in range(GROUP * n_steps):
        member = step // n_steps if GROUP > 1 else 0
        begin = first + (step - member * n_steps) * QUERIES
        head = kv_head * GROUP + member
        row_of_head = (batch * H + head) * n_positions
        own_q = q + multiple(batch * q_batch + head * q_head, ALIGN)
        own_grad = grad_out + (batch * n_positions * H + head) * D
        row = begin + tl.arange(0, QUERIES)
        in_rows = row < n_positions
        queries = load_block(own_q, begin, n_positions, q_token, QUERIES, D, COLS)
        upstream = load_block(own_grad, begin, n_positions, H * D, QUERIES, D, COLS)
        log_sum = tl.load(lse + row_of_head + row, in_rows, other=float("inf"))
        scores = dot(keys, tl.trans(queries), tl.zeros((KEYS, QUERIES), tl.float32))
        # Queries after the end have an infinite log-partition, hence weight 0.
        weights = tl.exp2(scores * scale - log_sum[None, :])
        if HAS_STARTS:
            starts_of_row = tl.load(starts + row, in_rows, other=0)
            is_seen = (col[:, None] <= row[None, :]) & (col[:, None] >= starts_of_row[None, :])
            weights = tl.where(is_seen, weights, 0.0)
        elif begin < first + KEYS:
            weights = tl.where(col[:, None] <= row[None, :], weights, 0.0)
        grad_weights = dot(values, tl.trans(upstream), tl.zeros((KEYS, QUERIES), tl.float32))
        shift = tl.load(delta + row_of_head + row, in_rows, other=0.0)
        grad_scores = weights * (grad_weights - shift[None, :])
        acc_v = dot(round_to(weights, upstream.dtype), upstream, acc_v)
        acc_k = dot(round_to(grad_scores, queries.dtype), queries, acc_k)
    to_grad = (batch * n_positions * G + kv_head) * D
    # `scale` includes log2(e); the factor ln 2 removes it.
    acc_k = acc_k * (scale * 0.6931471805599453)
    store_block(grad_k + to_grad, first, n_positions, G * D, acc_k, KEYS, D, COLS)
    store_block(grad_v + to_grad, first, n_positions, G * D, acc_v, KEYS, D, COLS)


@triton.jit
def _query_kernel(
    q, k, v, starts, grad_out, lse, delta, grad_q, scale, n_positions,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    H: tl.constexpr, GROUP: tl.constexpr, HAS_STARTS: tl.constexpr, ALIGN: tl.constexpr,
    D: tl.constexpr, COLS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    tl.static_assert(QUERIES % KEYS == 0)
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
    own = (batch * n_positions * H + head) * D
    upstream = load_block(grad_out + own, first, n_positions, H * D, QUERIES, D, COLS)
    row_of_head = (batch * H + head) * n_positions + row
    log_sum = tl.load(lse + row_of_head, in_rows, other=float("inf"))
    shift = tl.load(delta + row_of_head, in_rows, other=0.0)
    begin = 0
    starts_of_row = tl.zeros((QUERIES,), tl.int32)
    if HAS_STARTS:
        starts_of_row = tl.load(starts + batch * n_positions + row, in_rows, other=n_positions)
        begin = tl.min(starts_of_row, 0) // KEYS * KEYS
    acc = tl.zeros((QUERIES, COLS), tl.float32)
    for start in range(begin, tl.minimum(first + QUERIES, n_positions), KEYS):
        col = start + tl.arange(0, KEYS)
        keys = load_block(k, start, n_positions, k_token, KEYS, D, COLS)
        values = load_block(v, start, n_positions, v_token, KEYS, D, COLS)
        scores = dot(queries, tl.trans(keys), tl.zeros((QUERIES, KEYS), tl.float32))
        weights = tl.exp2(scores * scale - log_sum[:, None])
        if HAS_STARTS:
            is_seen = (col[None, :] <= row[:, None]) & (col[None, :] >= starts_of_row[:, None])
            weights = tl.where(is_seen, weights, 0.0)
        elif start >= first:
            weights = tl.where(col[None, :] <= row[:, None], weights, 0.0)
        grad_weights = dot(upstream, tl.trans(values), tl.zeros((QUERIES, KEYS), tl.float32))
        grad_scores = weights * (grad_weights - shift[:, None])
        acc = dot(round_to(grad_scores, keys.dtype), keys, acc)
    acc = acc * (scale * 0.6931471805599453)
    store_block(grad_q + own, first, n_positions, H * D, acc, QUERIES, D, COLS)


def last_dense(x: Tensor) -> Tensor:
    """Return ``x``; copy it if the elements of a head are not consecutive in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.library.custom_op("scalelab::attention_backward", mutates_args=())
def attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None,
    out: Tensor, lse: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v, each (B, T, heads, D)."""
    q, k, v = last_dense(q), last_dense(k), last_dense(v)
    grad_out, out = grad_out.contiguous(), out.contiguous()
    n_batch, n_heads, n_positions, head_dim = q.shape
    n_kv_heads = k.shape[1]
    grad_q = torch.empty_like(grad_out)
    grad_k, grad_v = (q.new_empty(n_batch, n_positions, n_kv_heads, head_dim) for _ in range(2))
    delta = torch.empty_like(lse)
    ends = starts = None if starts is None else starts.contiguous()
    if starts is not None:
        # For each key, the first query of the next document; starts are sorted.
        positions = torch.arange(n_positions, dtype=starts.dtype, device=q.device)
        positions = positions.expand_as(starts).contiguous()
        ends = torch.searchsorted(starts, positions, right=True).to(torch.int32)
    config = attention_config(architecture(q), head_dim, q.element_size())
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    shape = {
        "H": n_heads, "GROUP": n_heads // n_kv_heads, "HAS_STARTS": starts is not None,
        "ALIGN": alignment(*strides), "D": head_dim,
    }  # fmt: skip
    # A thread has 16 elements of each of two blocks in registers.
    delta_rows = min(config.query.rows, 2048 // config.query.width)
    _delta_kernel[(triton.cdiv(n_positions, delta_rows) * n_batch * n_heads,)](
        out, grad_out, delta, n_positions,
        H=n_heads, D=head_dim, COLS=config.query.width, ROWS=delta_rows,
    )  # fmt: skip
    _key_kernel[(triton.cdiv(n_positions, config.key.rows) * n_batch * n_kv_heads,)](
        q, k, v, q if starts is None else starts, q if ends is None else ends,
        grad_out, lse, delta, grad_k, grad_v, scale * LOG2_E, n_positions, *strides, **shape,
        COLS=config.key.width, QUERIES=config.key.cols, KEYS=config.key.rows,
        num_warps=config.key.num_warps, num_stages=config.key.num_stages,
    )  # fmt: skip
    _query_kernel[(triton.cdiv(n_positions, config.query.rows) * n_batch * n_heads,)](
        q, k, v, q if starts is None else starts, grad_out, lse, delta, grad_q,
        scale * LOG2_E, n_positions, *strides, **shape,
        COLS=config.query.width, QUERIES=config.query.rows, KEYS=config.query.cols,
        num_warps=config.query.num_warps, num_stages=config.query.num_stages,
    )  # fmt: skip
    return grad_q, grad_k, grad_v


@attention_backward.register_fake
def _(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None,
    out: Tensor, lse: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    n_batch, n_kv_heads, n_positions, head_dim = k.shape
    grad_k, grad_v = (q.new_empty(n_batch, n_positions, n_kv_heads, head_dim) for _ in range(2))
    return torch.empty_like(grad_out, memory_format=torch.contiguous_format), grad_k, grad_v

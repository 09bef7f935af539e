"""Linear + cross-entropy without logits in memory: kernels recompute each tile of logits.

For narrow models (d <= 128), whose head is limited by the bytes of its logits, not by matmuls.
Forward runs an online softmax for a block of tokens over a share of the vocabulary, then joins the
shares. Backward recomputes each tile twice: by token blocks for the gradient of the activations,
and by vocabulary blocks for the gradient of the weight. If there are too few blocks to fill a
device, the other axis is split into shares. Each share writes its own fp32 sums, which are added in
a fixed order, without atomics. A tile of logits stays in fp32 until the softmax, so half precision
loses less than with a matmul followed by a loss.

FLOPs: 10 N V d (unfused 6 N V d). Bytes for each token: about 0 instead of 38 V in bf16. Formulas
for each token: ``loss = lse - logit[target] + z lse^2``, ``d logit = g (p - onehot + 2 z lse p)``.

The log-partition is stored as two numbers, ``lse = top + rest``: the largest logit, and the log of
the sum relative to it. ``p = exp((logit - top) - rest)`` then rounds when the exponent is small.
With a single fp32 ``lse``, each p of a token would be off by up to half an ulp of ``lse`` (1e-6 at
20 nats).
"""

# Triton compiles the kernels from their source, in which annotations would be wrong.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from scalelab_kernels.configs import cross_entropy_config
from scalelab_kernels.runtime import alignment, architecture, dot, multiple, round_to


@triton.jit
def _load_rows(pointer, first, n_rows, d, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return rows ``first ..`` of a (n_rows, d) matrix, with zeros outside it."""
    row = tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    mask = (first + row < n_rows)[:, None] & (col < d)[None, :]
    pointer += tl.cast(first, tl.int64) * d
    return tl.load(pointer + row[:, None] * d + col[None, :], mask, other=0.0)


@triton.jit
def _forward_kernel(
    hidden, weight, targets, maxima, sums, picked, n_tokens, n_vocab, d, blocks_a_share,
    ALIGN: tl.constexpr, TOKENS: tl.constexpr, VOCAB: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    d = multiple(d, ALIGN)
    share = tl.program_id(1)
    run = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * TOKENS
    token = first + tl.arange(0, TOKENS)
    h = _load_rows(hidden + run * n_tokens * d, first, n_tokens, d, TOKENS, COLS)
    target = tl.load(targets + run * n_tokens + token, token < n_tokens, other=-1)
    top = tl.full((TOKENS,), float("-inf"), tl.float32)
    total = tl.zeros((TOKENS,), tl.float32)
    value = tl.zeros((TOKENS,), tl.float32)
    begin = share * blocks_a_share * VOCAB
    for start in range(begin, min(begin + blocks_a_share * VOCAB, n_vocab), VOCAB):
        w = _load_rows(weight + run * n_vocab * d, start, n_vocab, d, VOCAB, COLS)
        logits = dot(h, tl.trans(w), tl.zeros((TOKENS, VOCAB), tl.float32))
        col = start + tl.arange(0, VOCAB)
        logits = tl.where((col < n_vocab)[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(logits - base[:, None]), 1)
        top = new_top
        value += tl.sum(tl.where(col[None, :] == target[:, None], logits, 0.0), 1)
    slot = (share * tl.num_programs(2) + run) * n_tokens + token
    tl.store(maxima + slot, top, token < n_tokens)
    tl.store(sums + slot, total, token < n_tokens)
    tl.store(picked + slot, value, token < n_tokens)


@triton.jit
def _join_kernel(
    maxima, sums, picked, targets, losses, tops, rests, n_tokens, n_vocab, n_shares, z_loss,
    ignore_index, TOKENS: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    mask = token < n_tokens
    stride = tl.num_programs(1).to(tl.int64) * n_tokens
    slot = run * n_tokens + token
    top = tl.full((TOKENS,), float("-inf"), tl.float32)
    total = tl.zeros((TOKENS,), tl.float32)
    value = tl.zeros((TOKENS,), tl.float32)
    for share in range(n_shares):
        share_top = tl.load(maxima + share * stride + slot, mask, other=0.0)
        new_top = tl.maximum(top, share_top)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        share_sum = tl.load(sums + share * stride + slot, mask, other=1.0)
        total = total * tl.exp(top - base) + share_sum * tl.exp(share_top - base)
        top = new_top
        value += tl.load(picked + share * stride + slot, mask, other=0.0)
    rest = tl.log(total)
    log_sum = top + rest
    target = tl.load(targets + slot, mask, other=0)
    is_label = (target >= 0) & (target < n_vocab)
    loss = rest - (value - top) + z_loss * log_sum * log_sum
    loss = tl.where(is_label, loss, float("nan"))
    tl.store(losses + slot, tl.where(target == ignore_index, 0.0, loss), mask)
    tl.store(tops + slot, top, mask)
    tl.store(rests + slot, rest, mask)


@triton.jit
def _grad_hidden_kernel(
    hidden, weight, targets, tops, rests, grad_losses, partial, n_tokens, n_vocab, d,
    blocks_a_share, z_loss, ignore_index,
    ALIGN: tl.constexpr, TOKENS: tl.constexpr, VOCAB: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    d = multiple(d, ALIGN)
    share = tl.program_id(1)
    run = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * TOKENS
    token = first + tl.arange(0, TOKENS)
    in_tokens = token < n_tokens
    h = _load_rows(hidden + run * n_tokens * d, first, n_tokens, d, TOKENS, COLS)
    target = tl.load(targets + run * n_tokens + token, in_tokens, other=ignore_index).to(tl.int32)
    top = tl.load(tops + run * n_tokens + token, in_tokens, other=0.0)
    rest = tl.load(rests + run * n_tokens + token, in_tokens, other=0.0)
    pull = 2.0 * z_loss * (top + rest)
    acc = tl.zeros((TOKENS, COLS), tl.float32)
    begin = share * blocks_a_share * VOCAB
    for start in range(begin, min(begin + blocks_a_share * VOCAB, n_vocab), VOCAB):
        w = _load_rows(weight + run * n_vocab * d, start, n_vocab, d, VOCAB, COLS)
        logits = dot(h, tl.trans(w), tl.zeros((TOKENS, VOCAB), tl.float32))
        col = start + tl.arange(0, VOCAB)
        logits = tl.where((col < n_vocab)[None, :], logits, float("-inf"))
        p = tl.exp((logits - top[:, None]) - rest[:, None])
        grad = tl.where(col[None, :] == target[:, None], p - 1.0, p) + p * pull[:, None]
        acc = dot(round_to(grad, w.dtype), w, acc)
    upstream = tl.load(grad_losses + run * n_tokens + token, in_tokens, other=0.0)
    # A masked token gets a zero gradient even if its activations made the tile NaN.
    acc = tl.where((target != ignore_index)[:, None], acc * upstream[:, None], 0.0)
    col = tl.arange(0, COLS)
    row = (share * tl.num_programs(2) + run) * n_tokens + token.to(tl.int64)
    mask = in_tokens[:, None] & (col < d)[None, :]
    tl.store(
        partial + row[:, None] * d + col[None, :], round_to(acc, partial.dtype.element_ty), mask
    )


@triton.jit
def _grad_weight_kernel(
    hidden, weight, targets, tops, rests, grad_losses, partial, n_tokens, n_vocab, d,
    blocks_a_share, z_loss, ignore_index,
    ALIGN: tl.constexpr, TOKENS: tl.constexpr, VOCAB: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    d = multiple(d, ALIGN)
    share = tl.program_id(1)
    run = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * VOCAB
    vocab = first + tl.arange(0, VOCAB)
    w = _load_rows(weight + run * n_vocab * d, first, n_vocab, d, VOCAB, COLS)
    acc = tl.zeros((VOCAB, COLS), tl.float32)
    begin = share * blocks_a_share * TOKENS
    for start in range(begin, min(begin + blocks_a_share * TOKENS, n_tokens), TOKENS):
        token = start + tl.arange(0, TOKENS)
        in_tokens = token < n_tokens
        h = _load_rows(hidden + run * n_tokens * d, start, n_tokens, d, TOKENS, COLS)
        target = tl.load(targets + run * n_tokens + token, in_tokens, other=ignore_index).to(
            tl.int32
        )
        top = tl.load(tops + run * n_tokens + token, in_tokens, other=0.0)
        rest = tl.load(rests + run * n_tokens + token, in_tokens, other=0.0)
        upstream = tl.load(grad_losses + run * n_tokens + token, in_tokens, other=0.0)
        logits = dot(w, tl.trans(h), tl.zeros((VOCAB, TOKENS), tl.float32))
        p = tl.exp((logits - top[None, :]) - rest[None, :])
        grad = tl.where(vocab[:, None] == target[None, :], p - 1.0, p)
        grad += p * (2.0 * z_loss * (top + rest))[None, :]
        grad = tl.where((target != ignore_index)[None, :], grad * upstream[None, :], 0.0)
        acc = dot(round_to(grad, h.dtype), h, acc)
    col = tl.arange(0, COLS)
    row = (share * tl.num_programs(2) + run) * n_vocab + vocab.to(tl.int64)
    mask = (vocab < n_vocab)[:, None] & (col < d)[None, :]
    tl.store(
        partial + row[:, None] * d + col[None, :], round_to(acc, partial.dtype.element_ty), mask
    )


def _shares(n_blocks: int, n_other: int, programs: int) -> tuple[int, int]:
    """Return the number of shares into which to split ``n_blocks``, and the blocks of a share."""
    n_shares = max(1, min(n_blocks, programs // n_other))
    blocks = triton.cdiv(n_blocks, n_shares)
    return triton.cdiv(n_blocks, blocks), blocks


@torch.library.custom_op("scalelab::tiled_cross_entropy", mutates_args=())
def tiled_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return fp32 losses (K, N) and log-partitions (2, K, N) for (K, N, d), (K, V, d), (K, N)."""
    hidden, weight, targets = hidden.contiguous(), weight.contiguous(), targets.contiguous()
    n_runs, n_tokens, d = hidden.shape
    n_vocab = weight.shape[1]
    config = cross_entropy_config(architecture(hidden), d, n_vocab)
    walk = config.tokens
    n_blocks = triton.cdiv(n_tokens, walk.rows)
    n_shares, blocks = _shares(triton.cdiv(n_vocab, walk.cols), n_blocks * n_runs, config.programs)
    parts = hidden.new_empty(3, n_shares, n_runs, n_tokens, dtype=torch.float32)
    losses, partition = torch.empty_like(parts[0, 0]), torch.empty_like(parts[:2, 0])
    _forward_kernel[(n_blocks, n_shares, n_runs)](
        hidden, weight, targets, *parts, n_tokens, n_vocab, d, blocks,
        ALIGN=alignment(d), TOKENS=walk.rows, VOCAB=walk.cols, COLS=walk.width,
        num_warps=walk.num_warps, num_stages=walk.num_stages,
    )  # fmt: skip
    _join_kernel[(triton.cdiv(n_tokens, 128), n_runs)](
        *parts, targets, losses, *partition, n_tokens, n_vocab, n_shares, z_loss, ignore_index,
        TOKENS=128,
    )  # fmt: skip
    return losses, partition


@tiled_cross_entropy.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    shape = hidden.shape[:2]
    losses = hidden.new_empty(shape, dtype=torch.float32)
    return losses, hidden.new_empty(2, *shape, dtype=torch.float32)


@torch.library.custom_op("scalelab::tiled_cross_entropy_backward", mutates_args=())
def tiled_cross_entropy_backward(
    grad_losses: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, partition: Tensor,
    z_loss: float, ignore_index: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of hidden (K, N, d) and weight (K, V, d), in the inputs' dtypes."""
    hidden, weight, targets = hidden.contiguous(), weight.contiguous(), targets.contiguous()
    grad_losses = grad_losses.contiguous()
    n_runs, n_tokens, d = hidden.shape
    n_vocab = weight.shape[1]
    config = cross_entropy_config(architecture(hidden), d, n_vocab)
    results = []
    for kernel, like, others, walk, tile in (
        (_grad_hidden_kernel, hidden, n_vocab, config.tokens, ("TOKENS", "VOCAB")),
        (_grad_weight_kernel, weight, n_tokens, config.vocab, ("VOCAB", "TOKENS")),
    ):
        mine = triton.cdiv(like.shape[1], walk.rows)
        n_shares, blocks = _shares(triton.cdiv(others, walk.cols), mine * n_runs, config.programs)
        dtype = like.dtype if n_shares == 1 else torch.float32
        partial = like.new_empty(n_shares, *like.shape, dtype=dtype)
        kernel[(mine, n_shares, n_runs)](
            hidden, weight, targets, *partition, grad_losses, partial, n_tokens, n_vocab, d,
            blocks, z_loss, ignore_index,
            ALIGN=alignment(d), **dict(zip(tile, (walk.rows, walk.cols), strict=True)),
            COLS=walk.width, num_warps=walk.num_warps, num_stages=walk.num_stages,
        )  # fmt: skip
        results.append(partial[0] if n_shares == 1 else partial.sum(0).to(like.dtype))
    return results[0], results[1]


@tiled_cross_entropy_backward.register_fake
def _(
    grad_losses: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, partition: Tensor,
    z_loss: float, ignore_index: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.settings = inputs[3:]


def _backward(ctx: Any, grad_losses: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    grads = tiled_cross_entropy_backward(grad_losses, *ctx.saved_tensors, *ctx.settings)
    return *grads, None, None, None


tiled_cross_entropy.register_autograd(_backward, setup_context=_save)

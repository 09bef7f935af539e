"""Reference implementation of each fused operation in plain torch, for all dtypes and devices.

The Triton operations have the same names, arguments and results, and are tested against these in
float64. A CPU worker trains with these operations, so they are fast in eager fp32: `rms_norm` and
`apply_rope` have hand-written backward passes with fewer memory passes than autograd (checked by
``gradcheck``), and the explicit path of `causal_attention` is faster than SDPA on a CPU at short
sequences.

Shapes: ``K`` batched runs (optional, always leading), ``T`` positions, ``d`` model width, ``H``
query heads, ``G`` key/value heads, ``D`` head size, ``V`` vocabulary, ``...`` any leading
dimensions. A parameter with one extra leading dimension has one entry for each batched run; the
first dimension of the activations is then K. Half-precision inputs are normalized, rotated and
reduced in fp32 and rounded once at the end.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from scalelab_kernels.reference_adamw import HYPER, adamw_step_, hyper_table

IGNORE_INDEX = -100
ROPE_BASE = 10_000.0
AttentionPath = Literal["explicit", "sdpa"]

__all__ = [
    "HYPER",
    "IGNORE_INDEX",
    "ROPE_BASE",
    "adamw_step_",
    "add_rms_norm",
    "apply_rope",
    "causal_attention",
    "document_starts",
    "hyper_table",
    "linear_cross_entropy",
    "linear_cross_entropy_sum",
    "qk_norm_rope",
    "rms_norm",
    "rope_tables",
    "swiglu",
]


def _work_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype to compute in: fp32 for half precision, otherwise the dtype of ``x``."""
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def _per_run(parameter: Tensor, x: Tensor) -> Tensor:
    """View a vector parameter, (n,) or (K, n), so that it broadcasts over ``x`` (K, ..., n)."""
    if parameter.ndim == 1:
        return parameter
    return parameter.view(parameter.shape[0], *[1] * (x.ndim - 2), parameter.shape[-1])


class _RMSNorm(torch.autograd.Function):
    """``x / sqrt(mean(x^2) + eps) * weight``; saves the normalized rows for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(_work_dtype(x))
        # vector_norm takes one pass over memory; square().mean() takes two and writes the squares.
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1]
        rstd = torch.rsqrt(mean_square + eps)
        normed = wide * rstd
        ctx.save_for_backward(normed, rstd, weight)
        return (normed * _per_run(weight, x)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, rstd, weight = ctx.saved_tensors
        grad = grad_out.to(normed.dtype)
        scaled = grad * _per_run(weight, grad)
        dot = (scaled * normed).mean(-1, keepdim=True)
        grad_x = torch.addcmul(scaled, normed, dot, value=-1).mul_(rstd)
        # Sum over dimensions, because transposed heads cannot be viewed as rows.
        rows = tuple(range(weight.ndim - 1, grad.ndim - 1))
        return grad_x.to(grad_out.dtype), (grad * normed).sum(rows).to(weight.dtype), None


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Return ``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    Parameters
    ----------
    x : Tensor, shape (..., d)
        Activations, any floating dtype.
    weight : Tensor, shape (d,) or (K, d)
        Gain; with K rows, ``x`` is (K, ..., d).
    eps : float
        Added to the mean square.

    Returns
    -------
    Tensor, shape and dtype of ``x``

    References
    ----------
    Zhang and Sennrich 2019, arXiv:1910.07467, equation 4.
    """
    normed: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normed


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Return ``(rms_norm(x + residual), x + residual)``.

    Parameters
    ----------
    x, residual : Tensor, shape (..., d)
        Output of a block, and the residual stream to which it is added.
    weight : Tensor, shape (d,) or (K, d)
        Gain of the norm.
    eps : float
        Added to the mean square.

    Returns
    -------
    normed, stream : Tensor, shape (..., d)
        The norm uses the stream after rounding to its dtype, as the unfused operations do.
    """
    stream = x + residual
    return rms_norm(stream, weight, eps), stream


def swiglu(gate_up: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` of the two halves of the last dimension.

    Parameters
    ----------
    gate_up : Tensor, shape (..., 2 f)
        ``[gate, up]``, the output of one matmul.

    Returns
    -------
    Tensor, shape (..., f)

    References
    ----------
    Shazeer 2020, arXiv:2002.05202, equation 6.
    """
    gate, up = gate_up.chunk(2, -1)
    wide = _work_dtype(gate_up)
    return (functional.silu(gate.to(wide)) * up.to(wide)).to(gate_up.dtype)


def rope_tables(
    n_positions: int,
    head_dim: int,
    base: float = ROPE_BASE,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of ``position * base**(-2 i / D)``, each of shape (T, D / 2).

    Angles are computed in float64 on the CPU and rounded once, so all devices have equal tables.

    Parameters
    ----------
    n_positions, head_dim : int
        T and D (even).
    base : float
        Wavelength base.
    device, dtype
        Device and dtype of the tables.

    References
    ----------
    Su et al. 2021, arXiv:2104.09864, section 3.2.2.
    """
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(n_positions, dtype=torch.float64), frequency)
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """Rotate the pairs ``(x_i, x_{i + D/2})`` by the tables' angles; ``sign`` -1 rotates back."""
    x1, x2 = x.to(cos.dtype).chunk(2, -1)
    if torch.compiler.is_compiling():
        # The compiler fuses this form; writing to the two halves would break its graph.
        turned = torch.cat((x1 * cos - sign * x2 * sin, x2 * cos + sign * x1 * sin), -1)
        return turned.to(x.dtype)
    out = torch.empty_like(x, dtype=cos.dtype)
    out1, out2 = out.chunk(2, -1)
    torch.mul(x1, cos, out=out1).addcmul_(x2, sin, value=-sign)
    torch.mul(x2, cos, out=out2).addcmul_(x1, sin, value=sign)
    return out.to(x.dtype)


class _Rope(torch.autograd.Function):
    """Rotation by RoPE; backward rotates the gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad_out, cos, sin, -1), None, None


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return ``x`` with each pair ``(x_i, x_{i + D/2})`` rotated by its position's angle.

    Parameters
    ----------
    x : Tensor, shape (..., T, D)
        Queries or keys.
    cos, sin : Tensor, shape (T, D / 2)
        From `rope_tables`, in fp32 for half-precision ``x``. They get no gradient.
    """
    rotated: Tensor = _Rope.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return rotated


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
    """Split a fused qkv, normalize each head of q and k, and rotate them by position.

    Parameters
    ----------
    qkv : Tensor, shape (..., T, (H + 2 G) D)
        Output of one matmul: all query heads, then key heads, then value heads.
    q_weight, k_weight : Tensor, shape (D,) or (K, D), or None
        Gains of the QK-norm; None for both disables the norm.
    cos, sin : Tensor, shape (T, D / 2)
        From `rope_tables`.
    n_heads, n_kv_heads : int
        H and G.
    eps : float
        Added to the mean square of the norm.

    Returns
    -------
    q : Tensor, shape (..., H, T, D)
    k, v : Tensor, shape (..., G, T, D)

    References
    ----------
    QK-norm: Henry et al. 2020, arXiv:2010.04245; per head and before RoPE as in Qwen3.
    """
    head_dim = qkv.shape[-1] // (n_heads + 2 * n_kv_heads)
    heads = qkv.reshape(*qkv.shape[:-1], -1, head_dim).transpose(-2, -3)
    q, k, v = torch.split(heads, [n_heads, n_kv_heads, n_kv_heads], dim=-3)
    if q_weight is not None and k_weight is not None:
        q, k = rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps)
    return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v


def document_starts(document_ids: Tensor) -> Tensor:
    """Return the first position of each position's document: int32, shape (..., T).

    Parameters
    ----------
    document_ids : Tensor of int, shape (..., T)
        Document numbers; consecutive equal numbers are one document.
    """
    position = torch.arange(document_ids.shape[-1], device=document_ids.device)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[..., 1:] = document_ids[..., 1:] != document_ids[..., :-1]
    return torch.where(begins, position, 0).cummax(-1).values.to(torch.int32)


def _is_visible(n_positions: int, starts: Tensor | None, device: torch.device) -> Tensor:
    """Return the mask (T, T), or (..., T, T) with documents: True if query i (row) sees key j."""
    position = torch.arange(n_positions, device=device)
    visible = position[:, None] >= position
    return visible if starts is None else visible & (position >= starts.unsqueeze(-1))


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    starts: Tensor | None = None,
    path: AttentionPath = "explicit",
) -> Tensor:
    """Return causal softmax attention with grouped key/value heads.

    Parameters
    ----------
    q : Tensor, shape (..., H, T, D)
    k, v : Tensor, shape (..., G, T, D)
        H is a multiple of G; query head h uses key head ``h // (H / G)``.
    scale : float or None
        Factor of the scores; None is ``1 / sqrt(D)``.
    starts : Tensor of int32, shape (..., T), or None
        From `document_starts`: a position sees only positions of its own document.
    path : {"explicit", "sdpa"}
        Two batched matmuls around a softmax (memory T^2), or torch's fused attention, which skips
        the masked scores.

    Returns
    -------
    Tensor, shape (..., H, T, D)
    """
    *lead, n_heads, n_positions, head_dim = q.shape
    n_kv_heads = k.shape[-3]
    group = n_heads // n_kv_heads
    scale = head_dim**-0.5 if scale is None else scale
    if path == "sdpa":
        q4, k4, v4 = (t.flatten(0, -4) if t.ndim > 4 else t for t in (q, k, v))
        mask = None if starts is None else _is_visible(n_positions, starts, q.device)
        if mask is not None:
            mask = mask.view(-1, 1, n_positions, n_positions)
        out = functional.scaled_dot_product_attention(
            q4, k4, v4, mask, is_causal=mask is None, scale=scale, enable_gqa=group > 1
        )
        return out.view(q.shape)
    hidden = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(
        ~_is_visible(n_positions, starts, q.device), float("-inf")
    )
    # Stack the heads of a group along the rows, to avoid repeating keys and values.
    if starts is not None:
        hidden = hidden[..., None, None, :, :].expand(*lead, n_kv_heads, group, -1, -1)
        hidden = hidden.reshape(-1, group * n_positions, n_positions)
    elif group > 1:
        hidden = hidden.repeat(group, 1)
    q3 = q.reshape(-1, group * n_positions, head_dim)
    k3, v3 = (t.reshape(-1, n_positions, head_dim) for t in (k, v))
    scores = torch.baddbmm(hidden, q3, k3.transpose(1, 2), alpha=scale)
    weights = torch.softmax(scores.to(_work_dtype(q)), -1).to(q.dtype)
    return torch.bmm(weights, v3).view(*lead, n_heads, n_positions, head_dim)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Return each token's loss ``lse - logit[target] + z_loss * lse^2`` in nats; 0 if masked.

    Parameters
    ----------
    hidden : Tensor, shape (..., d)
        Final activations.
    weight : Tensor, shape (V, d) or (K, V, d)
        Head; with K heads, ``hidden`` is (K, ..., d).
    targets : Tensor of int64, shape (...)
        Labels in [0, V), or ``ignore_index``.
    z_loss : float
        Weight of the squared log-partition (arXiv:2204.02311, section 5).
    softcap : float
        Logits are ``softcap * tanh(logit / softcap)`` (arXiv:2408.00118, section 2); 0 for no cap.
    ignore_index : int
        Label of masked tokens, which have no loss and no gradient.

    Returns
    -------
    Tensor of fp32 (float64 for float64 input), shape (...)
        Token losses; sum them in float64 for an evaluation.
    """
    if weight.ndim == 2:
        logits = functional.linear(hidden, weight)
    else:
        rows = hidden.reshape(weight.shape[0], -1, hidden.shape[-1])
        logits = torch.bmm(rows, weight.transpose(1, 2))
    logits = logits.to(_work_dtype(hidden)).view(-1, weight.shape[-2])
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    labels = targets.reshape(-1)
    losses = functional.cross_entropy(logits, labels, reduction="none", ignore_index=ignore_index)
    if z_loss:
        penalty = z_loss * torch.logsumexp(logits, -1).square()
        losses = losses + torch.where(labels == ignore_index, 0.0, penalty)
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
    """Return the summed loss for a training step, shape () or (K,) with K heads.

    Arguments as in `linear_cross_entropy`. For the mean, divide by the number of unmasked labels.
    With a sum, the caller can accumulate over micro-batches before dividing.
    """
    losses = linear_cross_entropy(
        hidden, weight, targets, z_loss=z_loss, softcap=softcap, ignore_index=ignore_index
    )
    return losses.sum() if weight.ndim == 2 else losses.flatten(1).sum(1)

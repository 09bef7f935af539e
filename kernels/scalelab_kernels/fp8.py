"""Matrix products in fp8 with one scale a tensor: a linear layer, and the head with its loss.

Activations and weights are rounded to e4m3, gradients to e5m2. A tensor's scale is the power of two
that brings its largest magnitude just below the format's, computed on the device, so a CUDA graph
can hold the step and a resumed run needs no saved scales. Multiplying by a power of two does not
round, so the scale hardly changes a result: it only moves the end at which small values are lost.

`torch._scaled_mm` multiplies a row-major by a column-major matrix whose sides are multiples of 16,
so each tensor is also stored transposed, for the products of the backward pass. Forward products
accumulate in the matrix units' own precision, the others in fp32 (``use_fast_accum``).

The head's logits are in memory one chunk of tokens at a time, as in
`scalelab_kernels.linear_cross_entropy`, whose kernel replaces each row by its gradient.

References
----------
Micikevicius et al. 2022, arXiv:2209.05433 (e4m3 forward, e5m2 gradients, a scale for each tensor).
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scalelab_kernels.errors import refuse_softcap
from scalelab_kernels.operations import Operations
from scalelab_kernels.reference import IGNORE_INDEX

E4M3 = torch.float8_e4m3fn
E5M2 = torch.float8_e5m2
MULTIPLE = 16
"""Sides of the factors of `torch._scaled_mm` are multiples of this."""
CHUNK_TOKENS = 4096
"""Tokens whose logits are in memory at a time."""
_SMALLEST = 1e-30
_EXPONENT_BITS = 0x7F800000


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return ``x`` times its scale in fp8, and the inverse scale.

    Parameters
    ----------
    x : Tensor, shape (m, n)
    dtype : torch.dtype
        `E4M3` or `E5M2`.

    Returns
    -------
    values : Tensor of fp8, shape (m, n)
    inverse : Tensor of fp32, shape ()
        A power of two. An ``x`` that is not finite gives products that are not.
    """
    top = torch.linalg.vector_norm(x, ord=float("inf"), dtype=torch.float32)
    ratio = torch.finfo(dtype).max / top.clamp(min=_SMALLEST)
    # Without its fraction bits, a float is the power of two below it.
    scale = (ratio.view(torch.int32) & _EXPONENT_BITS).view(torch.float32)
    return (x * scale).to(dtype), 1 / scale


def _transposed(values: Tensor) -> Tensor:
    """Return the transpose in row-major order."""
    return values.view(torch.uint8).t().contiguous().view(values.dtype)


def _product(
    left: Tensor, right_t: Tensor, left_inverse: Tensor, right_inverse: Tensor, *, is_forward: bool,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:  # fmt: skip
    """Return ``left @ right_t.T`` of two row-major fp8 matrices."""
    return torch._scaled_mm(
        left,
        right_t.t(),
        scale_a=left_inverse,
        scale_b=right_inverse,
        out_dtype=dtype,
        use_fast_accum=is_forward,
    )


def _padded_rows(x: Tensor) -> Tensor:
    """Return the rows of (..., n) as (m, n), with rows of zeros up to a multiple of 16."""
    rows = x.reshape(-1, x.shape[-1])
    n_missing = -rows.shape[0] % MULTIPLE
    return functional.pad(rows, (0, 0, 0, n_missing)) if n_missing else rows


# Custom operators keep the compiler out: its own backward pass gave NaN (torch 2.13 on a CPU).
@torch.library.custom_op("scalelab::fp8_linear", mutates_args=())
def _linear(rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return ``rows @ weight.T``, and both factors in fp8 with their inverse scales."""
    values, inverse = quantize(rows, E4M3)
    factor, factor_inverse = quantize(weight, E4M3)
    out = _product(values, factor, inverse, factor_inverse, is_forward=True)
    return out, values, inverse, factor, factor_inverse


@_linear.register_fake
def _(rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        rows.new_empty(rows.shape[0], weight.shape[0]),
        torch.empty_like(rows, dtype=E4M3),
        rows.new_empty((), dtype=torch.float32),
        torch.empty_like(weight, dtype=E4M3),
        rows.new_empty((), dtype=torch.float32),
    )


@torch.library.custom_op("scalelab::fp8_linear_backward", mutates_args=())
def _linear_backward(
    grad_out: Tensor, rows: Tensor, inverse: Tensor, weight: Tensor, weight_inverse: Tensor
) -> tuple[Tensor, Tensor]:
    grad, grad_inverse = quantize(grad_out, E5M2)
    grad_rows = _product(grad, _transposed(weight), grad_inverse, weight_inverse, is_forward=False)
    grad_weight = _product(
        _transposed(grad), _transposed(rows), grad_inverse, inverse, is_forward=False
    )
    return grad_rows, grad_weight


@_linear_backward.register_fake
def _(
    grad_out: Tensor, rows: Tensor, inverse: Tensor, weight: Tensor, weight_inverse: Tensor
) -> tuple[Tensor, Tensor]:
    return grad_out.new_empty(rows.shape), grad_out.new_empty(weight.shape)


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward_linear(ctx: Any, grad_out: Tensor, *_: Any) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = _linear_backward(grad_out, *ctx.saved_tensors)
    return grads


_linear.register_autograd(_backward_linear, setup_context=_save_linear)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x @ weight.T`` in bf16, with all products in fp8.

    Parameters
    ----------
    x : Tensor of bf16, shape (..., n)
    weight : Tensor of bf16, shape (m, n)
        m and n are multiples of `MULTIPLE`.
    """
    n_rows = x.numel() // x.shape[-1]
    out: Tensor = _linear(_padded_rows(x), weight)[0]
    return out[:n_rows].view(*x.shape[:-1], weight.shape[0])


def _loss_rows(
    logits: Tensor, targets: Tensor, losses: Tensor, n_vocab: int, z_loss: float,
    ignore_index: int, *, has_grad: bool,
) -> None:  # fmt: skip
    """Do what `scalelab_kernels.linear_cross_entropy.loss_rows` does, in plain torch."""
    wide = logits[:, :n_vocab].float()
    lse = torch.logsumexp(wide, 1)
    is_counted = targets != ignore_index
    labels = torch.where(is_counted, targets, 0).unsqueeze(1)
    values = lse - wide.gather(1, labels).squeeze(1) + z_loss * lse.square()
    losses.copy_(torch.where(is_counted, values, 0.0))
    if has_grad:
        grad = wide.sub_(lse.unsqueeze(1)).exp_().mul_((1 + 2 * z_loss * lse).unsqueeze(1))
        grad.scatter_(1, labels, grad.gather(1, labels) - 1)
        logits[:, :n_vocab] = torch.where(is_counted.unsqueeze(1), grad, 0.0)


def _run_chunks(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, ignore_index: int,
    implementation: str, *, has_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Return losses (n,) and, if ``has_grad``, both gradients of their sum, the weight's in fp32.

    The padding rows of the weight have logits of 0, which neither count nor get a gradient.
    """
    loss_rows = _loss_rows
    if implementation == "triton":
        loss_rows = importlib.import_module("scalelab_kernels.linear_cross_entropy").loss_rows
    n_tokens, n_vocab = targets.numel(), weight.shape[0]
    rows, rows_inverse = quantize(_padded_rows(hidden), E4M3)
    head, head_inverse = quantize(_padded_rows(weight), E4M3)
    labels = functional.pad(targets.flatten(), (0, len(rows) - n_tokens), value=ignore_index)
    losses = torch.empty(len(rows), dtype=torch.float32, device=hidden.device)
    grad_hidden = torch.empty(rows.shape, dtype=hidden.dtype, device=hidden.device)
    grad_weight = torch.zeros(head.shape, dtype=torch.float32, device=hidden.device)
    columns = _transposed(head) if has_grad else head
    for first in range(0, len(rows), CHUNK_TOKENS):
        part = slice(first, first + CHUNK_TOKENS)
        logits = _product(rows[part], head, rows_inverse, head_inverse, is_forward=True)
        loss_rows(
            logits, labels[part], losses[part], n_vocab, z_loss, ignore_index, has_grad=has_grad
        )
        if has_grad:
            grad, inverse = quantize(logits, E5M2)
            grad_hidden[part] = _product(grad, columns, inverse, head_inverse, is_forward=False)
            grad_weight += _product(
                _transposed(grad), _transposed(rows[part]), inverse, rows_inverse,
                is_forward=False, dtype=torch.float32,
            )  # fmt: skip
    if not has_grad:
        return losses[:n_tokens], None, None
    return losses[:n_tokens], grad_hidden[:n_tokens].view(hidden.shape), grad_weight[:n_vocab]


@torch.library.custom_op("scalelab::fp8_cross_entropy", mutates_args=())
def _losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, ignore_index: int,
    implementation: str,
) -> Tensor:  # fmt: skip
    found = _run_chunks(
        hidden, weight, targets, z_loss, ignore_index, implementation, has_grad=False
    )
    return found[0].view(targets.shape).clone()


@_losses.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, ignore_index: int,
    implementation: str,
) -> Tensor:  # fmt: skip
    return hidden.new_empty(targets.shape, dtype=torch.float32)


@torch.library.custom_op("scalelab::fp8_cross_entropy_sum", mutates_args=())
def _loss_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, ignore_index: int,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    losses, grad_hidden, grad_weight = _run_chunks(
        hidden, weight, targets, z_loss, ignore_index, implementation, has_grad=True
    )
    assert grad_hidden is not None
    assert grad_weight is not None
    return losses.sum(), grad_hidden, grad_weight


@_loss_sum.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, ignore_index: int,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        hidden.new_empty((), dtype=torch.float32),
        torch.empty_like(hidden),
        torch.empty_like(weight, dtype=torch.float32),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.weight_dtype = inputs[1].dtype


def _backward(ctx: Any, factor: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grad_hidden, grad_weight = ctx.saved_tensors
    scaled = grad_hidden * factor, (grad_weight * factor).to(ctx.weight_dtype)
    return *scaled, None, None, None, None


_loss_sum.register_autograd(_backward, setup_context=_save)


def operations(ops: Operations) -> Operations:
    """Return the operations with the head's products in fp8, for bf16 activations of one run.

    The token losses of `linear_cross_entropy` have no gradients; a training step uses their sum.
    """

    def linear_cross_entropy(
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        z_loss: float = 0.0,
        softcap: float = 0.0,
        ignore_index: int = IGNORE_INDEX,
    ) -> Tensor:
        refuse_softcap(softcap)
        arguments = (hidden, weight, targets, z_loss, ignore_index, ops.implementation)
        losses: Tensor = _losses(*arguments)
        return losses

    def linear_cross_entropy_sum(
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        z_loss: float = 0.0,
        softcap: float = 0.0,
        ignore_index: int = IGNORE_INDEX,
    ) -> Tensor:
        refuse_softcap(softcap)
        arguments = (hidden, weight, targets, z_loss, ignore_index, ops.implementation)
        total: Tensor = _loss_sum(*arguments)[0]
        return total

    return replace(
        ops,
        linear_cross_entropy=linear_cross_entropy,
        linear_cross_entropy_sum=linear_cross_entropy_sum,
    )

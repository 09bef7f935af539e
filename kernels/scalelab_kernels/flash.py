"""torch's FlashAttention by its own operator, with deterministic gradients.

`torch.nn.functional.scaled_dot_product_attention` chooses among backends, and the gradients of most
of them add in any order. This module calls the FlashAttention operator itself, so the name says
what runs. Its backward pass adds in a fixed order only while torch's deterministic mode is on
(aten/src/ATen/native/transformers/cuda/attention_backward.cu). The mode is turned on for that call
only: elsewhere it would fill new tensors and refuse operations that are repeatable here.

Runs on a CUDA device, in half precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scalelab_kernels.errors import KernelUnavailableError

HEAD_DIM_MAX = 256
HEAD_MULTIPLE = 8
"""The operator takes head sizes that are multiples of this; the others are padded with zeros."""


@contextlib.contextmanager
def deterministic_mode() -> Iterator[None]:
    """Turn on torch's deterministic mode, without its filling of uninitialized tensors."""
    was_on = torch.are_deterministic_algorithms_enabled()
    was_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    was_filling = settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False
    # The public function would also change how torch.compile generates code.
    torch._C._set_deterministic_algorithms(True, warn_only=False)
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(was_on, warn_only=was_warning)
        settings.fill_uninitialized_memory = was_filling


@torch.library.custom_op("scalelab::flash_attention", mutates_args=())
def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the result (B, H, T, D) and the log-partitions."""
    found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, scale=scale)
    return found[0], found[1]


@_flash.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, scale=scale)
    return found[0], found[1]


@torch.library.custom_op("scalelab::flash_attention_backward", mutates_args=())
def _flash_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    # Without dropout nothing reads the seeds. None stands for sequences of one length.
    seed = torch.empty(2, dtype=torch.uint64, device=q.device)
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    with deterministic_mode():
        grads: tuple[Tensor, Tensor, Tensor] = (
            torch.ops.aten._scaled_dot_product_flash_attention_backward(
                grad_out, q, k, v, out, lse, None, None, n_queries, n_keys, 0.0, True,
                seed, seed[0], scale=scale,
            )
        )  # fmt: skip
    return grads


@_flash_backward.register_fake
def _(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.mark_non_differentiable(output[1])
    ctx.scale = inputs[3]


def _backward(ctx: Any, grad_out: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return None, None, None, None
    return *_flash_backward(grad_out, *ctx.saved_tensors, ctx.scale), None


_flash.register_autograd(_backward, setup_context=_save)


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
        For documents, for dtypes other than bf16 and fp16, or for heads wider than `HEAD_DIM_MAX`.
    """
    head_dim = q.shape[-1]
    is_half = q.dtype in (torch.bfloat16, torch.float16)
    if starts is not None or not is_half or head_dim > HEAD_DIM_MAX:
        raise KernelUnavailableError(
            f"FlashAttention of {q.dtype} with heads of size {head_dim}"
            + ("" if starts is None else " and documents"),
            f"bf16 or fp16, heads of at most {HEAD_DIM_MAX}, one document for each sequence",
            "Use attention = sdpa or triton.",
        )
    scale = head_dim**-0.5 if scale is None else scale
    padding = (0, -head_dim % HEAD_MULTIPLE)
    q4, k4, v4 = (t.flatten(0, -4) if t.ndim > 4 else t.view(-1, *t.shape[-3:]) for t in (q, k, v))
    if padding[1]:
        q4, k4, v4 = (functional.pad(t, padding) for t in (q4, k4, v4))
    out: Tensor = _flash(q4, k4, v4, scale)[0]
    return out[..., :head_dim].view(q.shape)

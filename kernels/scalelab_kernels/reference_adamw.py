"""AdamW over one flat buffer of K batched runs, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HYPER = ("lr", "beta1", "beta2", "eps", "weight_decay", "max_norm", "grad_scale", "ema_decay")
"""Columns of the settings table, in the order in which `adamw_step_` reads them."""
NORM_CHUNK = 8192


def hyper_table(
    *,
    lr: float | Sequence[float],
    beta1: float | Sequence[float] = 0.9,
    beta2: float | Sequence[float] = 0.95,
    eps: float | Sequence[float] = 1e-8,
    weight_decay: float | Sequence[float] = 0.1,
    max_norm: float | Sequence[float] = float("inf"),
    grad_scale: float | Sequence[float] = 1.0,
    ema_decay: float | Sequence[float] = 0.0,
    n_runs: int = 1,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the settings of K runs as a float64 table, shape (K, 8), columns `HYPER`.

    A schedule writes the ``lr`` column on the device, so a CUDA graph of the step needs no host.

    Parameters
    ----------
    lr, beta1, beta2, eps, weight_decay : float or K of them
        As in AdamW; the decoupled decay is multiplied by the learning rate.
    max_norm : float or K of them
        Gradients are clipped to this global norm; infinity disables clipping.
    grad_scale : float or K of them
        Factor of the gradient before clipping: 1 / (loss scale x accumulated micro-batches).
    ema_decay : float or K of them
        Decay of the weight average.
    n_runs : int
        K.
    device : torch.device or str or None
        Device of the table.

    Raises
    ------
    ValueError
        A sequence whose length is not K.
    """
    columns = (lr, beta1, beta2, eps, weight_decay, max_norm, grad_scale, ema_decay)
    table = torch.empty(n_runs, len(HYPER), dtype=torch.float64)
    for index, column in enumerate(columns):
        values = torch.as_tensor(column, dtype=torch.float64)
        if values.ndim and len(values) != n_runs:
            raise ValueError(
                f"got {len(values)} values of {HYPER[index]}; expected 1, or {n_runs}: one for "
                "each batched run."
            )
        table[:, index] = values
    return table.to(device)


def check_rounding(param: Tensor, seed: Tensor | None) -> None:
    """Raise if a seed for stochastic rounding is given with parameters that are not bf16."""
    if seed is not None and param.dtype != torch.bfloat16:
        raise ValueError(
            f"got a rounding seed with parameters of {param.dtype}; expected torch.bfloat16. "
            "Remove the seed, or keep the parameters in bf16."
        )


def _mix(x: Tensor) -> Tensor:
    """Hash 32-bit values held in int64 (the ``lowbias32`` integer hash of C. Wellons)."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def round_stochastically(values: Tensor, seed: Tensor) -> Tensor:
    """Round fp32 to bf16 up or down, with the probabilities that keep the mean.

    Adds a hash of (seed, position) to the lower 16 bits and truncates. The Triton kernel uses the
    same hash, so both give the same bits.

    Parameters
    ----------
    values : Tensor of fp32
        Values to round; infinities and NaN do not change.
    seed : Tensor of int64, shape ()
        Seed of the step.
    """
    index = torch.arange(values.numel(), device=values.device).view(values.shape)
    noise = _mix((index & 0xFFFFFFFF) ^ _mix((index >> 32) ^ (seed & 0xFFFFFFFF))) & 0xFFFF
    bits = values.contiguous().view(torch.int32)
    rounded = ((bits.long() + noise) & ~0xFFFF).to(torch.int32).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).bfloat16()


def adamw_step_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    hyper: Tensor,
    *,
    n_decay: int,
    copy: Tensor | None = None,
    ema: Tensor | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """Clip, take one AdamW step in place, and return the gradient norm before clipping, (K,).

    If the gradient norm of a run is not finite, its buffers do not change, and the returned norm
    shows it. A diverging run does not affect the other batched runs. The step does not synchronize
    with the host.

    Parameters
    ----------
    param : Tensor, shape (P,) or (K, P)
        Flat parameters, fp32, or bf16 without a wider master copy.
    grad : Tensor, shape of ``param``
        Gradients, any floating dtype.
    exp_avg, exp_avg_sq : Tensor of fp32, shape of ``param``
        First and second moments.
    step : Tensor of int64, shape () or (K,)
        Number of this step, 1 for the first.
    hyper : Tensor of float64, shape (K, 8)
        From `hyper_table`.
    n_decay : int
        Number of leading parameters of each run with weight decay (the matrices).
    copy : Tensor of bf16 or fp16, shape of ``param``, or None
        Receives the new parameters, rounded to nearest, for the next forward pass.
    ema : Tensor of fp32, shape of ``param``, or None
        Weight average to update.
    seed : Tensor of int64, shape (), or None
        Rounds a bf16 ``param`` stochastically; use a new seed at each step. None rounds to nearest.

    Returns
    -------
    Tensor of fp32, shape (K,)

    Raises
    ------
    ValueError
        A seed with parameters that are not bf16.

    References
    ----------
    Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.
    """
    check_rounding(param, seed)
    n_runs = hyper.shape[0]
    p, g, m, v = (t.view(n_runs, -1) for t in (param, grad, exp_avg, exp_avg_sq))
    lr, beta1, beta2, eps, decay, max_norm, scale, ema_decay = hyper.unsqueeze(-1).unbind(1)
    wide = v.dtype
    norm: Tensor = _row_norms(g, wide).double() * scale
    is_finite = norm.isfinite()
    clip = scale * torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    steps = step.view(-1, 1).double()

    def where_finite(value: Tensor, otherwise: float) -> Tensor:
        return torch.where(is_finite, value, otherwise).to(wide)

    # A skipped run gets factors that change nothing, and a zero gradient because 0 x NaN is NaN.
    g = torch.where(is_finite, g.to(wide) * clip.to(wide), 0.0)
    m.lerp_(g, where_finite(1 - beta1, 0.0))
    v.mul_(where_finite(beta2, 1.0)).add_(g.square_().mul_(where_finite(1 - beta2, 0.0)))
    root = torch.sqrt(v).mul_(where_finite((1 - beta2**steps) ** -0.5, 1.0)).add_(eps.to(wide))
    size = where_finite(lr / (1 - beta1**steps), 0.0)
    new = p.to(wide)
    new[:, :n_decay].mul_(where_finite(1 - lr * decay, 1.0))
    new.sub_((m / root).mul_(size))
    if new is not p:
        p.copy_(new if seed is None else round_stochastically(new, seed))
    if copy is not None:
        copy.view(n_runs, -1).copy_(p)
    if ema is not None:
        ema.view(n_runs, -1).lerp_(p.to(wide), where_finite(1 - ema_decay, 0.0))
    return norm[:, 0].float()


def _row_norms(g: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the norm of each row, (K, 1), with the same bits for any number of CPU threads.

    torch splits the sum over a long row among threads, so its rounding depends on their number. One
    thread sums each chunk of `NORM_CHUNK` values.
    """
    n_chunks = g.shape[1] // NORM_CHUNK
    n_whole = n_chunks * NORM_CHUNK
    chunks = g[:, :n_whole].view(g.shape[0], n_chunks, NORM_CHUNK)
    norms = torch.cat(
        (
            torch.linalg.vector_norm(chunks, dim=2, dtype=dtype),
            torch.linalg.vector_norm(g[:, n_whole:], dim=1, keepdim=True, dtype=dtype),
        ),
        dim=1,
    )
    joined: Tensor = torch.linalg.vector_norm(norms, dim=1, keepdim=True)
    return joined

"""Mixture of experts: top-k routing without dropped tokens, a shared expert, and router losses.

Each token goes to its k most probable experts. Their outputs are weighted by the probabilities,
renormalised to sum to 1. `scalelab_kernels.reference_moe` moves the tokens to the experts and back.
Each batched run has its own group of experts. The output of a shared expert, through which every
token passes, is added with weight 1.

References
----------
Shazeer et al. 2017, arXiv:1701.06538 (top-k gating). Fedus et al. 2021, arXiv:2101.03961, section
2.2 (load balance). Gale et al. 2022, arXiv:2211.15841 (dropless). Zoph et al. 2022,
arXiv:2202.08906, section 3.3 (router z-loss). Dai et al. 2024, arXiv:2401.06066, section 3.2
(shared experts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scalelab_kernels.operations import Operations
from scalelab_kernels.reference_moe import route
from torch import Tensor

from scalelab.sweep.run_spec import RunSpec


@dataclass(frozen=True, slots=True)
class RouterWeights:
    """Weights of the router's losses in the training loss: `RunSpec` describes them."""

    balance: float
    z: float

    @classmethod
    def of(cls, spec: RunSpec) -> RouterWeights:
        """Return the weights of a run."""
        return cls(spec.balance_weight, spec.router_z_weight)


def choose(logits: Tensor, n_active: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose each token's experts.

    Parameters
    ----------
    logits : Tensor, shape (..., T, E)
        Output of the router; the softmax is in fp32.
    n_active : int
        Experts for each token, k.

    Returns
    -------
    weights : Tensor of fp32, shape (..., T, k)
        Positive, summing to 1.
    experts : Tensor of int64, shape (..., T, k)
    probabilities : Tensor of fp32, shape (..., T, E)
    """
    probabilities = torch.softmax(logits.float(), -1)
    chosen, experts = probabilities.topk(n_active, dim=-1)
    return chosen / chosen.sum(-1, keepdim=True), experts, probabilities


def balance_loss(counts: Tensor, probabilities: Tensor) -> Tensor:
    """Return ``sum_i f_i P_i``, shape () or (K,); 1 means perfect balance.

    Parameters
    ----------
    counts : Tensor of int64, shape (E,) or (K, E)
        Tokens sent to each expert; f is their share times E.
    probabilities : Tensor, shape (..., T, E), with a leading K for batched runs
        P is the router's mean probability of each expert.
    """
    shares = counts * (counts.shape[-1] / counts.sum(-1, keepdim=True))
    means = probabilities.flatten(counts.ndim - 1, -2).mean(-2)
    return (shares * means).sum(-1)


def router_z_loss(logits: Tensor) -> Tensor:
    """Return the mean over tokens of ``logsumexp(logits)^2``, shape (K,), for logits (K, T, E)."""
    return torch.logsumexp(logits.float(), -1).square().mean(-1)


def feed_forward(
    x: Tensor,
    router: Tensor,
    gate_up: Tensor,
    down: Tensor,
    n_active: int,
    ops: Operations,
    losses: RouterWeights,
    *,
    shared: Callable[[Tensor], Tensor] | None = None,
    enter: Callable[[Tensor], Tensor] = lambda whole: whole,
) -> tuple[Tensor, Tensor]:
    """Return the experts' output for activations x and the weighted sum of the router's losses.

    Parameters
    ----------
    x : Tensor, shape (..., T, d), with a leading K for batched runs
    router : Tensor, shape (E, d) or (K, E, d)
    gate_up : Tensor, shape (E, 2 f, d) or (K, E, 2 f, d)
    down : Tensor, shape (E, d, f) or (K, E, d, f)
    n_active : int
        Experts for each token.
    ops : Operations
        Reference or Triton operations.
    losses : RouterWeights
        Weights of the load-balance and the router z-loss.
    shared : Callable, optional
        The shared expert, of rows (K, N, d) with K = 1 for one run; its output is added.
    enter : Callable
        Applied to the experts' common inputs under tensor parallelism, where each device has a part
        of every expert and the whole router.

    Returns
    -------
    out : Tensor, shape of ``x``
    penalty : Tensor of fp32, shape () or (K,)
        Weighted sum of `balance_loss` and `router_z_loss`.
    """
    n_experts = router.shape[-2]
    n_runs = router.shape[0] if router.ndim == 3 else 1
    rows = x.reshape(n_runs, -1, x.shape[-1])
    logits = torch.bmm(rows, router.view(n_runs, n_experts, -1).transpose(1, 2))
    weights, experts, probabilities = choose(logits, n_active)
    first = torch.arange(n_runs, device=x.device).mul_(n_experts).view(-1, 1, 1)
    routing = route((experts + first).flatten(0, 1), n_runs * n_experts)
    entered = enter(rows)
    permuted = ops.permute(entered.flatten(0, 1), routing)
    hidden = ops.swiglu(ops.grouped_linear(permuted, gate_up.flatten(0, -3), routing))
    out = ops.grouped_linear(hidden, down.flatten(0, -3), routing)
    mixed = ops.unpermute(out, enter(weights).flatten(0, 1), routing).view(x.shape)
    counts = routing.ends.diff(prepend=routing.ends.new_zeros(1)).view(n_runs, n_experts)
    if shared is not None:
        mixed = mixed + shared(entered).view(x.shape)
    penalty = losses.balance * balance_loss(counts, probabilities)
    if losses.z:
        penalty = penalty + losses.z * router_z_loss(logits)
    return mixed, penalty if router.ndim == 3 else penalty[0]

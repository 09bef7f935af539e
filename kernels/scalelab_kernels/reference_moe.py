"""Dispatch of tokens to experts and back, in plain torch.

A layer is ``route -> permute -> grouped_linear (twice) -> unpermute``. Every shape is known ahead
(tokens x choices), whatever the router says, so nothing waits for the device and no token is
dropped. K packed runs are one call: their experts are numbered one run after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Where each copy of a token goes; R = tokens x choices rows, sorted by expert.

    Attributes
    ----------
    order : Tensor of int64, shape (R,)
        Copy ``token * n_choices + choice`` that each row holds.
    slot : Tensor of int64, shape (N, k)
        Row of each copy; the inverse of ``order``.
    ends : Tensor of int32, shape (E,)
        End of each expert's rows.
    """

    order: Tensor
    slot: Tensor
    ends: Tensor


def route(experts: Tensor, n_experts: int) -> Route:
    """Sort the copies of tokens by expert, equal ones by token.

    Parameters
    ----------
    experts : Tensor of int64, shape (N, k)
        Chosen experts of each token. For K packed runs, (K N, k) with the run's number times the
        experts of a run added.
    n_experts : int
        E, over all runs.
    """
    ordered, order = experts.reshape(-1).sort(stable=True)
    slot = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    numbers = torch.arange(n_experts, device=order.device)
    ends = torch.searchsorted(ordered, numbers, right=True).to(torch.int32)
    return Route(order=order, slot=slot.view(experts.shape), ends=ends)


def permute(x: Tensor, way: Route) -> Tensor:
    """Return each row's token: (N, d) to (R, d)."""
    return x[way.order // way.slot.shape[1]]


def grouped_linear(x: Tensor, weight: Tensor, way: Route) -> Tensor:
    """Return each expert's rows times its own matrix: (R, d) and (E, f, d) to (R, f).

    Reads the sizes of the groups on the host, which the kernels' own does not.
    """
    ends = way.ends.tolist()
    begins = [0, *ends[:-1]]
    return torch.cat([x[a:b] @ w.T for a, b, w in zip(begins, ends, weight, strict=True)])


def unpermute(y: Tensor, weights: Tensor, way: Route) -> Tensor:
    """Return each token's sum over its choices: (R, d) and fp32 (N, k) to (N, d)."""
    wide = torch.promote_types(y.dtype, torch.float32)
    return (y[way.slot].to(wide) * weights.to(wide).unsqueeze(-1)).sum(1).to(y.dtype)

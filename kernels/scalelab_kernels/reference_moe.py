"""Dispatch of tokens to experts and back, in plain torch.

A layer is ``route -> permute -> grouped_linear (twice) -> unpermute``. All shapes are fixed (tokens
x choices) and do not depend on the router, so the host does not wait for the device and no token is
dropped. K batched runs are one call; their experts are numbered consecutively, run by run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """The row of each copy of a token; R = tokens x choices rows, sorted by expert.

    Attributes
    ----------
    order : Tensor of int64, shape (R,)
        The copy ``token * n_choices + choice`` in each row.
    slot : Tensor of int64, shape (N, k)
        Row of each copy; the inverse of ``order``.
    ends : Tensor of int32, shape (E,)
        End of the rows of each expert.
    """

    order: Tensor
    slot: Tensor
    ends: Tensor


def route(experts: Tensor, n_experts: int) -> Route:
    """Sort the copies of tokens by expert, then by token.

    Parameters
    ----------
    experts : Tensor of int64, shape (N, k)
        Chosen experts of each token. For K batched runs the shape is (K N, k), and run i adds
        i times the experts of a run.
    n_experts : int
        E, over all runs.
    """
    ordered, order = experts.reshape(-1).sort(stable=True)
    slot = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    numbers = torch.arange(n_experts, device=order.device)
    ends = torch.searchsorted(ordered, numbers, right=True).to(torch.int32)
    return Route(order=order, slot=slot.view(experts.shape), ends=ends)


def permute(x: Tensor, routing: Route) -> Tensor:
    """Return the token of each row: (N, d) to (R, d)."""
    return x[routing.order // routing.slot.shape[1]]


def grouped_linear(x: Tensor, weight: Tensor, routing: Route) -> Tensor:
    """Multiply the rows of each expert by its matrix: (R, d) and (E, f, d) to (R, f).

    Reads the sizes of the groups on the host; the Triton implementation does not.
    """
    ends = routing.ends.tolist()
    begins = [0, *ends[:-1]]
    return torch.cat([x[a:b] @ w.T for a, b, w in zip(begins, ends, weight, strict=True)])


def unpermute(y: Tensor, weights: Tensor, routing: Route) -> Tensor:
    """Return the weighted sum over each token's choices: (R, d) and fp32 (N, k) to (N, d)."""
    wide = torch.promote_types(y.dtype, torch.float32)
    return (y[routing.slot].to(wide) * weights.to(wide).unsqueeze(-1)).sum(1).to(y.dtype)

"""Tensor parallelism: several devices split the products of each block.

Each device of a group has some heads and some hidden units of each block: their rows of ``qkv`` and
``gate_up``, their columns of ``out`` and ``down``. The residual stream, norms, routers, embedding
and head are whole on all devices, with the same bits. For the head, each device takes a share of
the tokens. The group sums the outputs of a block in the forward pass, and the gradients of its
inputs in the backward pass: two sums of the stream's size in each pass of a block.

References
----------
Shoeybi et al. 2019, arXiv:1909.08053, section 3 (f and g there are `enter` and `leave` here).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SHARED_GAINS = ("q_norm", "k_norm")
"""Weights that are whole on each device, but whose gradients cover only the device's own heads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorGroup:
    """The devices that share the blocks with this one.

    Attributes
    ----------
    rank, n_ranks : int
        Index of this device and number of devices.
    group : ProcessGroup or None
        Process group of the devices; None for a single one.
    """

    rank: int = 0
    n_ranks: int = 1
    group: Any = None

    def enter(self, x: Tensor) -> Tensor:
        """Return x, which is equal on all devices; its gradient is summed over them."""
        return x if self.group is None else _Enter.apply(x, self.group)  # type: ignore[no-untyped-call]

    def leave(self, x: Tensor) -> Tensor:
        """Return the sum of x over the devices; each x gets the gradient of the sum."""
        return x if self.group is None else _Leave.apply(x, self.group)  # type: ignore[no-untyped-call]


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum(grad, ctx.group), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _sum(x: Tensor, group: Any) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total

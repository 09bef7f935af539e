"""Blocks whose products are shared by several devices (tensor parallel).

Each device of a group has some heads and some hidden units of every block: their rows of ``qkv``
and ``gate_up``, their columns of ``out`` and ``down``. The residual stream, norms, routers,
embedding and head are whole on all, with the same bits; of the head's tokens each device takes a
share. What a block's part gives is summed over the group in the forward pass, and the gradient of
what the parts share in the backward pass: two sums of the stream's size each way.

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
"""Weights that are whole on every device, though each has the gradient of its own heads alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorGroup:
    """The place of this device among those that share its blocks.

    Attributes
    ----------
    rank, n_ranks : int
        Number of this device and of all.
    group : ProcessGroup or None
        They; None where this device is alone.
    """

    rank: int = 0
    n_ranks: int = 1
    group: Any = None

    def enter(self, x: Tensor) -> Tensor:
        """Return x, the same on all devices; its gradient is the sum of theirs."""
        return x if self.group is None else _Enter.apply(x, self.group)  # type: ignore[no-untyped-call]

    def leave(self, x: Tensor) -> Tensor:
        """Return the sum of the devices' x; the gradient of each is the sum's."""
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

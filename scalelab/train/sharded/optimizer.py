"""AdamW and Muon over weights in shards, with the numbers of `scalelab.train.optimizer`.

AdamW works value by value, on each device's shards. Muon turns whole matrices: each is gathered,
turned on one device, the devices taking turns, and sent back; a step moves about two more copies of
the blocks' weights, in fp32, than one of AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from scalelab.sweep.run_spec import RunSpec
from scalelab.train.optimizer import (
    CLIP_EPSILON,
    MUON_MOMENTUM,
    muon_scale,
    orthogonalize,
    require_optimizer,
)
from scalelab.train.parameters import Entry, Layout
from scalelab.train.parametrization import width_factors
from scalelab.train.sharded.shards import Shards

MOMENTS = ("exp_avg", "exp_avg_sq")


class ShardedOptimizer:
    """Updates this device's shards of the weights.

    Parameters
    ----------
    spec : RunSpec
        The run.
    layout : Layout
        Of the whole model.
    weights : Mapping[str, nn.Parameter]
        This device's shards of all weights.
    shards : Shards
        Where the values lie.

    Raises
    ------
    UsageError
        When optimizer and parametrisation do not go together.
    """

    def __init__(
        self,
        spec: RunSpec,
        layout: Layout,
        weights: Mapping[str, nn.Parameter],
        shards: Shards,
    ) -> None:
        require_optimizer(spec)
        self.spec, self.weights, self.shards = spec, weights, shards
        n_turned = layout.n_muon if spec.optimizer == "muon" else 0
        self._turned = [entry for entry in layout.entries if entry.start < n_turned]
        self._momentum = {
            entry.name: torch.zeros_like(weights[entry.name].detach()) for entry in self._turned
        }
        hidden_rate = width_factors(spec).hidden_rate
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for entry in layout.entries:
            if entry.name not in self._momentum:
                decay = spec.weight_decay if entry.is_decayed else 0.0
                rate = hidden_rate if entry.start < layout.n_hidden else 1.0
                groups.setdefault((decay, rate), []).append(weights[entry.name])
        self._adamw = torch.optim.AdamW(
            [
                {"params": params, "weight_decay": decay, "rate": rate}
                for (decay, rate), params in groups.items()
            ],
            lr=spec.lr,
            betas=(spec.beta1, spec.beta2),
            eps=spec.epsilon,
        )

    def step(self, rate: float) -> Tensor:
        """Clip the gradients, take a step at a learning rate, drop the gradients; return the norm.

        The norm, shape (), is that of the whole gradient before clipping.
        """
        self._agree()
        norm = self._clip()
        for group in self._adamw.param_groups:
            group["lr"] = rate * group["rate"]
        self._adamw.step()
        if self._turned:
            self._muon(rate)
        for weight in self.weights.values():
            weight.grad = None
        return norm

    def moments(self, name: str) -> dict[str, Tensor]:
        """Return this device's shards of a weight's moments; none before the first step.

        Muon's momentum is ``exp_avg``, as on one device.
        """
        if name in self._momentum:
            return {"exp_avg": self._momentum[name]}
        state = self._adamw.state.get(self.weights[name], {})
        return {moment: state[moment] for moment in MOMENTS if moment in state}

    def load(self, name: str, n_steps: int, moments: Mapping[str, Tensor]) -> None:
        """Put a weight's moments where a run of so many steps had them."""
        if name in self._momentum:
            self._momentum[name] = moments["exp_avg"]
            return
        state: dict[str, Any] = {"step": torch.tensor(float(n_steps)), **moments}
        self._adamw.state[self.weights[name]] = state

    def _agree(self) -> None:
        """Give what is whole on all devices of a group the first one's gradient.

        Each computed the same, but on a GPU not always to the last bit, and what differs once would
        drift apart.
        """
        tensor = self.shards.tensor
        if tensor.group is None:
            return
        grads = [
            _local(_gradient(weight))
            for name, weight in self.weights.items()
            if not self.shards.is_split(name)
        ]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.broadcast(flat, group=tensor.group, group_src=0)
        for grad, values in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
            grad.copy_(values.view_as(grad))

    def _clip(self) -> Tensor:
        """Scale the gradients to the largest norm allowed; return the norm that they had."""
        grads = {name: _local(_gradient(weight)) for name, weight in self.weights.items()}
        counted = [grad for name, grad in grads.items() if self.shards.is_counted(name)]
        square = torch.stack(torch._foreach_norm(counted)).square().sum()
        dist.all_reduce(square)
        norm = square.sqrt()
        factor = torch.clamp(self.spec.grad_clip / (norm + CLIP_EPSILON), max=1.0)
        torch._foreach_mul_([*grads.values()], factor)
        return norm

    def _muon(self, rate: float) -> None:
        updates = {name: _gradient(self.weights[name]) for name in self._momentum}
        own, flats = [*map(_local, updates.values())], [*map(_local, self._momentum.values())]
        torch._foreach_lerp_(flats, own, 1 - MUON_MOMENTUM)
        torch._foreach_lerp_(own, flats, MUON_MOMENTUM)
        rank, n_ranks = dist.get_rank(), dist.get_world_size()
        wholes: dict[str, Tensor] = {}
        for turn, entry in enumerate(self._turned):
            whole = self.shards.gather(entry.name, updates[entry.name])
            if turn % n_ranks == rank:
                wholes[entry.name] = whole
        # Between the exchanges, so that the devices turn their matrices at the same time.
        changes = {e.name: _turn(e, wholes[e.name]) for e in self._turned if e.name in wholes}
        for turn, entry in enumerate(self._turned):
            weight = self.weights[entry.name].detach()
            change = self.shards.send(
                entry.name, changes.pop(entry.name, None), turn % n_ranks, weight
            )
            _local(weight).mul_(1 - rate * self.spec.weight_decay).sub_(_local(change), alpha=rate)


def _turn(entry: Entry, whole: Tensor) -> Tensor:
    """Return Muon's change of a weight at learning rate 1; fused matrices and experts count apart.

    Parameters
    ----------
    entry : Entry
    whole : Tensor, shape ``entry.shape``
    """
    stacked = whole.view(-1, *entry.shape[-2:])
    parts = [
        orthogonalize(part) * muon_scale(part.shape[-2], part.shape[-1])
        for part in torch.split(stacked, list(entry.split_rows), dim=1)
    ]
    return torch.cat(parts, 1).view(entry.shape)


def _gradient(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def _local(share: Tensor) -> Tensor:
    """Return the values on this device, which changes in place reach."""
    assert isinstance(share, DTensor)
    return share.to_local()

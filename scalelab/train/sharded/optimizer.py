"""AdamW and Muon over sharded weights, with the results of `scalelab.train.optimizer`.

AdamW updates each device's shards value by value. Muon orthogonalizes whole matrices: it gathers
each one, orthogonalizes it on one device (round robin) and sends it back. A step of Muon transfers
about two more fp32 copies of the blocks' weights than a step of AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from scalelab_kernels.operations import Operations
from torch import Tensor, nn

from scalelab.sweep.run_spec import RunSpec
from scalelab.train.muon import muon_scale, orthogonalize
from scalelab.train.optimizer import CLIP_EPSILON, MUON_MOMENTUM
from scalelab.train.parameters import Entry, Layout
from scalelab.train.parametrization import UpdateFactors, update_factors
from scalelab.train.sharded.shards import Shards, local

MOMENTS = ("exp_avg", "exp_avg_sq")


class ShardedOptimizer:
    """Updates this device's shards of the weights.

    Parameters
    ----------
    spec : RunSpec
        The run.
    layout : Layout
        Layout of the whole model.
    weights : Mapping[str, nn.Parameter]
        This device's shards of all weights.
    shards : Shards
        Placement of the weights.
    ops : Operations
        Reference or Triton operations.
    """

    def __init__(
        self,
        spec: RunSpec,
        layout: Layout,
        weights: Mapping[str, nn.Parameter],
        shards: Shards,
        ops: Operations,
    ) -> None:
        self.spec, self.weights, self.shards, self.ops = spec, weights, shards, ops
        n_muon = layout.n_muon if spec.optimizer == "muon" else 0
        self._muon_entries = [entry for entry in layout.entries if entry.start < n_muon]
        self._momentum = {
            entry.name: torch.zeros_like(weights[entry.name].detach())
            for entry in self._muon_entries
        }
        self._factors = {entry.name: update_factors(spec, entry) for entry in layout.entries}
        groups: dict[tuple[float, UpdateFactors], list[nn.Parameter]] = {}
        for entry in layout.entries:
            if entry.name not in self._momentum:
                decay = spec.weight_decay if entry.is_decayed else 0.0
                key = (decay, self._factors[entry.name])
                groups.setdefault(key, []).append(weights[entry.name])
        self._adamw = torch.optim.AdamW(
            [
                {
                    "params": params,
                    "weight_decay": decay * factors.decay,
                    "eps": spec.epsilon * factors.epsilon,
                    "rate": factors.rate,
                }
                for (decay, factors), params in groups.items()
            ],
            lr=spec.lr,
            betas=(spec.beta1, spec.beta2),
            eps=spec.epsilon,
        )

    def step(self, rate: float) -> Tensor:
        """Clip the gradients, take a step, clear the gradients; return the norm before clipping.

        The norm, shape (), is of the whole gradient.
        """
        self._equalize()
        norm = self._clip()
        for group in self._adamw.param_groups:
            group["lr"] = rate * group["rate"]
        self._adamw.step()
        if self._muon_entries:
            self._muon(rate)
        for weight in self.weights.values():
            weight.grad = None
        return norm

    def moments(self, name: str) -> dict[str, Tensor]:
        """Return this device's shards of a weight's moments; empty before the first step.

        Muon's momentum is ``exp_avg``, as on one device.
        """
        if name in self._momentum:
            return {"exp_avg": self._momentum[name]}
        state = self._adamw.state.get(self.weights[name], {})
        return {moment: state[moment] for moment in MOMENTS if moment in state}

    def load(self, name: str, n_steps: int, moments: Mapping[str, Tensor]) -> None:
        """Set a weight's moments to those after ``n_steps`` steps."""
        if name in self._momentum:
            self._momentum[name] = moments["exp_avg"]
            return
        state: dict[str, Any] = {"step": torch.tensor(float(n_steps)), **moments}
        self._adamw.state[self.weights[name]] = state

    def _equalize(self) -> None:
        """Copy the first device's gradients of unsplit weights to all devices of a group.

        Each device computed the same gradients, but on a GPU the last bits can differ, and then the
        weights would drift apart.
        """
        tensor = self.shards.tensor
        if tensor.group is None:
            return
        grads = [
            local(_gradient(weight))
            for name, weight in self.weights.items()
            if not self.shards.is_split(name)
        ]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.broadcast(flat, group=tensor.group, group_src=0)
        for grad, values in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
            grad.copy_(values.view_as(grad))

    def _clip(self) -> Tensor:
        """Clip the gradients to ``grad_clip``; return their norm before clipping."""
        grads = {name: local(_gradient(weight)) for name, weight in self.weights.items()}
        counted = [grad for name, grad in grads.items() if self.shards.is_counted(name)]
        square = torch.stack(torch._foreach_norm(counted)).square().sum()
        dist.all_reduce(square)
        norm = square.sqrt()
        factor = torch.clamp(self.spec.grad_clip / (norm + CLIP_EPSILON), max=1.0)
        torch._foreach_mul_([*grads.values()], factor)
        return norm

    def _muon(self, rate: float) -> None:
        updates = {name: _gradient(self.weights[name]) for name in self._momentum}
        own, flats = [*map(local, updates.values())], [*map(local, self._momentum.values())]
        torch._foreach_lerp_(flats, own, 1 - MUON_MOMENTUM)
        torch._foreach_lerp_(own, flats, MUON_MOMENTUM)
        rank, n_ranks = dist.get_rank(), dist.get_world_size()
        wholes: dict[str, Tensor] = {}
        for turn, entry in enumerate(self._muon_entries):
            whole = self.shards.gather(entry.name, updates[entry.name])
            if turn % n_ranks == rank:
                wholes[entry.name] = whole
        # A separate loop between the transfers, so that all devices compute at the same time.
        changes = {
            e.name: self._muon_update(e, wholes[e.name])
            for e in self._muon_entries
            if e.name in wholes
        }
        for turn, entry in enumerate(self._muon_entries):
            weight = self.weights[entry.name].detach()
            change = self.shards.send(
                entry.name, changes.pop(entry.name, None), turn % n_ranks, weight
            )
            factors = self._factors[entry.name]
            own_rate = rate * factors.rate
            decay = self.spec.weight_decay * factors.decay
            local(weight).mul_(1 - own_rate * decay).sub_(local(change), alpha=own_rate)

    def _muon_update(self, entry: Entry, whole: Tensor) -> Tensor:
        """Return Muon's update of a weight at learning rate 1; fused matrices are separate.

        Parameters
        ----------
        entry : Entry
        whole : Tensor, shape ``entry.shape``
        """
        stacked = whole.view(-1, *entry.shape[-2:])
        is_half = self.spec.precision != "fp32"
        parts = [
            orthogonalize(part, self.ops, is_half=is_half).to(whole.dtype)
            * muon_scale(part.shape[-2], part.shape[-1])
            for part in torch.split(stacked, list(entry.split_rows), dim=1)
        ]
        return torch.cat(parts, 1).view(entry.shape)


def _gradient(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None
    return weight.grad

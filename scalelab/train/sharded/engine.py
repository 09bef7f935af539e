"""One run over several devices: weights, gradients and optimizer state sharded (ZeRO-3).

`torch.distributed.fsdp.fully_shard` gathers a block's weights when it is needed, so that a model
larger than one device fits; every rank takes its share of the batch. Where a block alone is too
wide, neighbouring ranks share its products (`tensor_parallel`) and a share of the
batch. The numbers are those of `scalelab.train.engine.Engine` to rounding: same initial weights,
batches, clipping, schedule and average of the weights.

A state is gathered on rank 0, weight by weight, into the buffers that one device would have: a run
may go on with any number of ranks in any arrangement, one included. torch.distributed.checkpoint
was tried before: its folders hold a pickle that its reader loads unchecked, which no file of a
results folder may be.

References
----------
Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO).
Chen et al. 2016, arXiv:1604.06174 (recomputation).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from scalelab.sweep.devices import require_multi_device
from scalelab.sweep.run_spec import ExecutionSpec, RunSpec
from scalelab.train.engine import (
    EVAL_TOKENS_PER_BATCH,
    STATE_NAMES,
    average_decay,
    learning_rates,
)
from scalelab.train.optimizer import require_optimizer
from scalelab.train.parameters import initial_values, lay_out
from scalelab.train.sharded.model import ShardedModel
from scalelab.train.sharded.optimizer import MOMENTS, ShardedOptimizer
from scalelab.train.sharded.shards import Shards


class ShardedEngine:
    """One run on all ranks of the process group; every rank calls the same methods.

    Parameters
    ----------
    spec : RunSpec
        The run.
    execution : ExecutionSpec
        ``micro_batch_seqs`` is a rank's share of a forward pass; 0 means all of its sequences.

    Raises
    ------
    UsageError
        When the run cannot be shared evenly, or be trained at all.
    """

    def __init__(self, spec: RunSpec, execution: ExecutionSpec) -> None:
        require_shardable(spec, execution)
        self.spec, self.execution = spec, execution
        self.rank = dist.get_rank()
        self.device = torch.device(execution.device)
        self.layout = lay_out(spec.shape)
        self.shards = Shards(spec.shape, execution)
        self.model = ShardedModel(spec, execution, self.shards)
        policy = MixedPrecisionPolicy()
        if spec.precision == "bf16":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for module in (*self.model.blocks, self.model):
            fully_shard(module, mesh=self.shards.mesh, mp_policy=policy)
        self.model.to_empty(device=execution.device)
        named = [(n.removeprefix("blocks."), p) for n, p in self.model.named_parameters()]
        own = self.shards.own
        self._weights = {n if n in own else f"layers.{n}": p for n, p in named}
        self._averages: dict[str, Tensor] = {}
        if spec.ema_decay:
            self._averages = {n: torch.zeros_like(w.detach()) for n, w in self._weights.items()}
        self.optimizer = ShardedOptimizer(spec, self.layout, self._weights, self.shards)
        self.n_steps = 0
        self._rates = learning_rates(spec)

    @property
    def n_micro(self) -> int:
        """Forward passes of a step over all ranks; a rank's last may be smaller."""
        n_groups = self.execution.n_data_parallel
        own_seqs = self.spec.batch_seqs // n_groups
        return n_groups * -(-own_seqs // (self.execution.micro_batch_seqs or own_seqs))

    def initialize(self) -> None:
        """Give the run the initial weights that a single device would give it."""
        for entry in self.layout.entries:
            weight = self._weights[entry.name].detach()
            whole = initial_values(entry, self.spec).to(weight.device)
            weight.copy_(self.shards.share(entry.name, whole, weight))
            if self._averages:
                self._averages[entry.name].copy_(weight)

    def step(self, own: Tensor) -> Tensor:
        """Take a step with this rank's sequences of the batch; return what it measured.

        Parameters
        ----------
        own : Tensor of int64, shape (B / data-parallel groups, T + 1)

        Returns
        -------
        Tensor, shape (3,)
            Loss and gradient norm of the whole batch, and the mean squared norm of the mean
            gradients of the forward passes of all ranks: the same on every rank.
        """
        spec, n_groups = self.spec, self.execution.n_data_parallel
        parts = torch.split(own, self.execution.micro_batch_seqs or len(own))
        sums = torch.zeros(2, device=own.device)
        for index, part in enumerate(parts):
            # Until they are reduced, gradients are whole on every rank: not where memory is short.
            is_reduced = index == len(parts) - 1 or self.execution.recomputes_blocks
            self.model.set_requires_gradient_sync(is_reduced)  # type: ignore[operator]
            reported, objective = self.model(part, spec.z_loss)
            # The mean over ranks is taken when gradients meet; the sum over the batch is wanted.
            (objective * n_groups / spec.tokens_per_step).backward()
            if self.shards.tensor.rank == 0:
                sums[0] += reported.detach() / spec.tokens_per_step
            # A forward pass's own mean gradient: the sum was divided by a rank's share.
            share = len(part) * n_groups / spec.batch_seqs
            sums[1] += self.model.squares.take() / (share**2 * self.n_micro)
        dist.all_reduce(sums)
        norm = self.optimizer.step(self._rates[self.n_steps])
        self.n_steps += 1
        if self._averages:
            decay = average_decay(torch.tensor(float(self.n_steps)), spec.ema_decay)
            torch._foreach_lerp_(_local(self._averages), _local(self._weights), float(1 - decay))
        return torch.stack((sums[0], norm, sums[1]))

    @torch.no_grad()
    def evaluate(self, own: Tensor) -> Tensor:
        """Return the mean loss of each of this rank's sequences, fp64 on the CPU.

        Every rank calls it with as many sequences, shape (n, T + 1).
        """
        n_rows = max(1, EVAL_TOKENS_PER_BATCH[self.device.type] // (own.shape[1] - 1))
        means = [
            self.model(part, None)[0].double().mean(-1).cpu() for part in torch.split(own, n_rows)
        ]
        # What lies outside the blocks stays gathered after a forward pass, and would go stale.
        self.model.reshard()  # type: ignore[operator]
        return torch.cat(means)

    @torch.no_grad()
    def evaluate_average(self, own: Tensor) -> Tensor:
        """Return what `evaluate` does of the average of the weights, which the run must keep.

        The run's own weights are put back, bit for bit.
        """
        weights, averages = _local(self._weights), _local(self._averages)
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, averages)
        try:
            return self.evaluate(own)
        finally:
            torch._foreach_copy_(weights, kept)

    def state(self) -> dict[str, Any]:
        """Return the state that a single device would have: whole on rank 0, empty on others."""
        names = (*STATE_NAMES, *(("ema",) if self._averages else ()))
        n_values = self.layout.n_values if self.rank == 0 else 0
        flats = {name: torch.zeros(n_values) for name in names}
        for entry in self.layout.entries:
            found = {"master": self._weights[entry.name].detach()}
            found |= self.optimizer.moments(entry.name)
            if self._averages:
                found["ema"] = self._averages[entry.name]
            for name, share in found.items():
                whole = self.shards.gather(entry.name, share)
                if self.rank == 0:
                    entry.view(flats[name]).copy_(whole)
        return {"step": self.n_steps, **flats}

    def load_state(self, step: int, state: dict[str, Any] | None) -> None:
        """Put the run where `state` found it; only rank 0 has the state."""
        self.n_steps = step
        names = (*STATE_NAMES, *(("ema",) if self._averages else ()))
        for entry in self.layout.entries:
            weight = self._weights[entry.name].detach()
            parts = {}
            for name in names:
                whole = None if state is None else entry.view(state[name]).to(weight.device)
                parts[name] = self.shards.send(entry.name, whole, 0, weight)
            weight.copy_(parts["master"])
            if self._averages:
                self._averages[entry.name].copy_(parts["ema"])
            self.optimizer.load(entry.name, step, {name: parts[name] for name in MOMENTS})


def require_shardable(spec: RunSpec, execution: ExecutionSpec) -> None:
    """Raise when a run cannot be trained by all devices of an execution together.

    Raises
    ------
    UsageError
    """
    require_multi_device(spec, execution)
    require_optimizer(spec)


def _local(shares: dict[str, Any]) -> list[Tensor]:
    """Return the values on this device of all weights."""
    found: list[Tensor] = []
    for share in shares.values():
        values = share.detach()
        assert isinstance(values, DTensor)
        found.append(values.to_local())
    return found

"""One run on several devices: sharded weights, gradients and optimizer state (ZeRO-3).

`torch.distributed.fsdp.fully_shard` gathers a block's weights when they are needed, so a model can
be larger than one device. Each rank takes its share of the batch. Under tensor parallelism,
neighbouring ranks take the same share of the batch and split the products of each block
(`tensor_parallel`). Results equal those of `scalelab.train.engine.Engine` to rounding: same initial
weights, batches, clipping, schedule and weight average.

Rank 0 gathers the state, one weight at a time, into the buffers of a single-device engine. A run
can therefore resume on any number of ranks. We do not use torch.distributed.checkpoint: its folders
contain a pickle that its reader loads unchecked, and a results folder must not contain such files.

References
----------
Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO).
Chen et al. 2016, arXiv:1604.06174 (recomputation).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from scalelab_kernels.operations import get_operations
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from scalelab.sweep.devices import require_multi_device
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.engine import (
    EVAL_TOKENS_PER_BATCH,
    STATE_NAMES,
    average_decay,
    learning_rates,
)
from scalelab.train.parameters import initial_values, lay_out
from scalelab.train.sharded.model import ShardedModel
from scalelab.train.sharded.optimizer import MOMENTS, ShardedOptimizer
from scalelab.train.sharded.shards import Shards, local


class ShardedEngine:
    """One run on all ranks of the process group; all ranks call the same methods.

    Parameters
    ----------
    spec : RunSpec
        The run.
    execution : ExecutionSpec
        ``micro_batch_seqs`` is the sequences of a rank's forward pass; 0 means its whole share.

    Raises
    ------
    UsageError
        When the devices cannot share the run evenly, or the run is invalid.
    """

    def __init__(self, spec: RunSpec, execution: ExecutionSpec) -> None:
        require_multi_device(spec, execution)
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
        ops = get_operations(execution.kernels, self.device)  # type: ignore[arg-type]
        self.optimizer = ShardedOptimizer(spec, self.layout, self._weights, self.shards, ops)
        self.n_steps = 0
        self._rates = learning_rates(spec)

    @property
    def n_micro(self) -> int:
        """Number of forward passes of a step on all ranks; a rank's last may be smaller."""
        n_groups = self.execution.n_data_parallel
        own_seqs = self.spec.batch_seqs // n_groups
        return n_groups * -(-own_seqs // (self.execution.micro_batch_seqs or own_seqs))

    def initialize(self) -> None:
        """Set the weights to the same initial values as on a single device."""
        for entry in self.layout.entries:
            weight = self._weights[entry.name].detach()
            whole = initial_values(entry, self.spec).to(weight.device)
            weight.copy_(self.shards.share(entry.name, whole, weight))
            if self._averages:
                self._averages[entry.name].copy_(weight)

    def step(self, own: Tensor) -> Tensor:
        """Take a step with this rank's sequences of the batch; return its readings.

        Parameters
        ----------
        own : Tensor of int64, shape (B / data-parallel groups, T + 1)

        Returns
        -------
        Tensor, shape (3,)
            Loss and gradient norm of the whole batch, and the squared norm of a forward pass's mean
            gradient, averaged over the forward passes of all ranks. Equal on all ranks.
        """
        spec, n_groups = self.spec, self.execution.n_data_parallel
        parts = torch.split(own, self.execution.micro_batch_seqs or len(own))
        sums = torch.zeros(2, device=own.device)
        for index, part in enumerate(parts):
            # Unreduced gradients are whole on each rank; when memory is short, reduce each time.
            is_reduced = index == len(parts) - 1 or self.execution.recomputes_blocks
            self.model.set_requires_gradient_sync(is_reduced)  # type: ignore[operator]
            reported, objective = self.model(part, spec.z_loss)
            # fully_shard averages gradients over ranks; we need the sum over the batch.
            (objective * n_groups / spec.tokens_per_step).backward()
            if self.shards.tensor.rank == 0:
                sums[0] += reported.detach() / spec.tokens_per_step
            # Rescale to the mean gradient of this forward pass.
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

        All ranks call it with the same number of sequences, shape (n, T + 1).
        """
        n_rows = max(1, EVAL_TOKENS_PER_BATCH[self.device.type] // (own.shape[1] - 1))
        means = [
            self.model(part, None)[0].double().mean(-1).cpu() for part in torch.split(own, n_rows)
        ]
        # Weights outside the blocks stay gathered after a forward pass and would become stale.
        self.model.reshard()  # type: ignore[operator]
        return torch.cat(means)

    @torch.no_grad()
    def evaluate_average(self, own: Tensor) -> Tensor:
        """Return `evaluate` with the weight average, which the run must keep.

        The run's own weights are restored bit for bit.
        """
        weights, averages = _local(self._weights), _local(self._averages)
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, averages)
        try:
            return self.evaluate(own)
        finally:
            torch._foreach_copy_(weights, kept)

    def state(self) -> dict[str, Any]:
        """Return the state as of a single-device engine on rank 0; empty tensors on other ranks."""
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
        """Restore the run from the result of `state`, which only rank 0 has."""
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


def _local(shares: dict[str, Any]) -> list[Tensor]:
    return [local(share.detach()) for share in shares.values()]

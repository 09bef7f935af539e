"""One run over several devices: weights, gradients and optimizer state sharded (ZeRO-3).

`torch.distributed.fsdp.fully_shard` gathers a block's weights when it is needed, so that a model
larger than one device fits; every rank takes its share of the batch. The numbers are those of
`scalelab.train.engine.Engine` to rounding: same initial weights, batches, clipping and schedule.
Checkpoints are `torch.distributed.checkpoint` folders, which another number of ranks can read. Only
this module imports anything distributed.

References
----------
Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO).
Chen et al. 2016, arXiv:1604.06174 (recomputation).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from scalelab_kernels.operations import get_attention, get_operations
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from scalelab.errors import UsageError
from scalelab.sweep.run_spec import ExecutionSpec, RunSpec
from scalelab.train.engine import learning_rates
from scalelab.train.model import Decoder
from scalelab.train.parameters import Entry, initial_values, lay_out
from scalelab.train.scales import scales_of


class _Weights(nn.Module):
    """Some weights of the layout as parameters, under their names without the prefix."""

    def __init__(self, entries: list[Entry], prefix: str) -> None:
        super().__init__()
        self.prefix = prefix
        self.names = [entry.name.removeprefix(prefix) for entry in entries]
        for name, entry in zip(self.names, entries, strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(entry.shape, device="meta")))

    def by_name(self) -> dict[str, Tensor]:
        return {self.prefix + name: getattr(self, name) for name in self.names}


class _Block(_Weights):
    """A block of the decoder: its weights are whole while it runs."""

    def __init__(self, entries: list[Entry], layer: int, decoder: Decoder) -> None:
        super().__init__(entries, f"layers.{layer}.")
        self.decoder = decoder

    def forward(self, stream: Tensor) -> tuple[Tensor, Tensor | None]:
        self.decoder.weights = self.by_name()
        return self.decoder.block(stream, self.prefix)


class _Decoder(Decoder):
    """A decoder whose blocks are modules."""

    blocks: nn.ModuleList
    recomputes_blocks: bool

    def run_block(self, stream: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
        block = self.blocks[layer]
        if self.recomputes_blocks and torch.is_grad_enabled():
            return checkpoint(block, stream, use_reentrant=False)  # type: ignore[no-any-return]
        return block(stream)  # type: ignore[no-any-return]


class _Model(_Weights):
    """The whole model: embedding, norm and head of its own, and the blocks."""

    def __init__(self, spec: RunSpec, execution: ExecutionSpec, recomputes_blocks: bool) -> None:
        entries = lay_out(spec.shape).entries
        super().__init__([entry for entry in entries if "." not in entry.name], "")
        ops = get_operations(execution.kernels, execution.device)  # type: ignore[arg-type]
        attend = get_attention(execution.attention, execution.device)  # type: ignore[arg-type]
        arguments: tuple[Any, ...] = (ops, attend, scales_of(spec))
        place = {"final_norm": torch.empty(0, device=execution.device)}
        self.decoder = _Decoder(spec.shape, place, spec.seq_len, *arguments)
        self.decoder.recomputes_blocks = recomputes_blocks
        self.blocks = nn.ModuleList()
        for layer in range(spec.shape.n_layers):
            own = [entry for entry in entries if entry.name.startswith(f"layers.{layer}.")]
            inner = Decoder(spec.shape, place, spec.seq_len, *arguments)
            self.blocks.append(_Block(own, layer, inner))
        self.decoder.blocks = self.blocks

    def forward(self, tokens: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
        self.decoder.weights = self.by_name()
        return self.decoder.loss_sums(tokens, z_loss)


class ShardedEngine:
    """One run on all ranks of the process group; every rank calls the same methods.

    Parameters
    ----------
    spec : RunSpec
        The run; AdamW in the standard parametrisation.
    execution : ExecutionSpec
        ``micro_batch_seqs`` is a rank's share of a forward pass; 0 means all of its sequences.
    recomputes_blocks : bool
        Whether activations inside blocks are computed again in the backward pass.

    Raises
    ------
    UsageError
        When the batch cannot be split evenly, or the optimizer is not AdamW.
    """

    def __init__(
        self, spec: RunSpec, execution: ExecutionSpec, *, recomputes_blocks: bool = False
    ) -> None:
        self.rank, self.n_ranks = dist.get_rank(), dist.get_world_size()
        _require_shardable(spec, self.n_ranks)
        self.spec, self.execution = spec, execution
        self.model = _Model(spec, execution, recomputes_blocks)
        mesh = init_device_mesh(execution.device, (self.n_ranks,))
        policy = MixedPrecisionPolicy()
        if spec.precision == "bf16":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in self.model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self.model, mesh=mesh, mp_policy=policy)
        self.model.to_empty(device=execution.device)
        kinds = {entry.name: entry for entry in lay_out(spec.shape).entries}
        named = [(n.removeprefix("blocks."), p) for n, p in self.model.named_parameters()]
        self._weights = {n if n in kinds else f"layers.{n}": p for n, p in named}
        decayed = [p for n, p in self._weights.items() if kinds[n].is_decayed]
        spared = [p for n, p in self._weights.items() if not kinds[n].is_decayed]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": spec.weight_decay},
                {"params": spared, "weight_decay": 0.0},
            ],
            lr=spec.lr,
            betas=(spec.beta1, spec.beta2),
            eps=spec.epsilon,
        )
        self.n_steps = 0
        self._rates = learning_rates(spec)

    def initialize(self) -> None:
        """Give the run the initial weights that a single device would give it."""
        for entry in lay_out(self.spec.shape).entries:
            weight = self._weights[entry.name]
            assert isinstance(weight, DTensor)
            whole = initial_values(entry, self.spec)
            part = distribute_tensor(
                whole.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
            )
            with torch.no_grad():
                weight.copy_(part)

    def step(self, tokens: NDArray[np.int64]) -> tuple[float, float]:
        """Take a step with the whole batch, shape (B, T + 1); return loss and gradient norm."""
        spec = self.spec
        own = torch.from_numpy(tokens).to(self.execution.device).chunk(self.n_ranks)[self.rank]
        parts = torch.split(own, self.execution.micro_batch_seqs or len(own))
        total = torch.zeros((), device=own.device)
        for index, part in enumerate(parts):
            self.model.set_requires_gradient_sync(index == len(parts) - 1)  # type: ignore[operator]
            reported, objective = self.model(part, spec.z_loss)
            # The mean over ranks is taken when gradients meet; the sum over the batch is wanted.
            (objective * self.n_ranks / spec.tokens_per_step).backward()
            total += reported.detach() / spec.tokens_per_step
        dist.all_reduce(total)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), spec.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rates[self.n_steps]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.n_steps += 1
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return float(total), float(whole)

    def save(self, folder: Path) -> None:
        """Write a checkpoint that any number of ranks can read."""
        state_dict_saver.save(self._state(), checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint that any number of ranks wrote."""
        state = self._state()
        state_dict_loader.load(state, checkpoint_id=folder)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.n_steps = state["n_steps"]

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "n_steps": self.n_steps}


def _require_shardable(spec: RunSpec, n_ranks: int) -> None:
    if spec.batch_seqs % n_ranks:
        raise UsageError(
            f"{spec.batch_seqs} sequences a batch over {n_ranks} ranks",
            "a multiple of the ranks",
            "Choose another batch or number of devices.",
        )
    if spec.optimizer != "adamw" or spec.parametrization != "standard":
        raise UsageError(
            f"{spec.optimizer} with {spec.parametrization} over several devices",
            "adamw with standard",
            "Train such a run on one device.",
        )

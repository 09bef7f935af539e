"""One run over several devices: weights, gradients and optimizer state sharded (ZeRO-3).

`torch.distributed.fsdp.fully_shard` gathers a block's weights when it is needed, so that a model
larger than one device fits; every rank takes its share of the batch. The numbers are those of
`scalelab.train.engine.Engine` to rounding: same initial weights, batches, clipping and schedule.

A state is gathered on rank 0, weight by weight, into the buffers that one device would have: a run
may go on with any number of ranks, one included. torch.distributed.checkpoint was tried before: its
folders hold a pickle that its reader loads unchecked, which no file of a results folder may be.

References
----------
Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO).
Chen et al. 2016, arXiv:1604.06174 (recomputation).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from scalelab_kernels.operations import get_attention, get_operations
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from scalelab.errors import UsageError
from scalelab.sweep.run_spec import ExecutionSpec, RunSpec
from scalelab.train.engine import EVAL_TOKENS_PER_BATCH, STATE_NAMES, learning_rates
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

    def __init__(self, spec: RunSpec, execution: ExecutionSpec) -> None:
        entries = lay_out(spec.shape).entries
        super().__init__([entry for entry in entries if "." not in entry.name], "")
        ops = get_operations(execution.kernels, execution.device)  # type: ignore[arg-type]
        attend = get_attention(execution.attention, execution.device)  # type: ignore[arg-type]
        arguments: tuple[Any, ...] = (ops, attend, scales_of(spec))
        place = {"final_norm": torch.empty(0, device=execution.device)}
        self.decoder = _Decoder(spec.shape, place, spec.seq_len, *arguments)
        self.decoder.recomputes_blocks = execution.recomputes_blocks
        self.blocks = nn.ModuleList()
        for layer in range(spec.shape.n_layers):
            own = [entry for entry in entries if entry.name.startswith(f"layers.{layer}.")]
            inner = Decoder(spec.shape, place, spec.seq_len, *arguments)
            self.blocks.append(_Block(own, layer, inner))
        self.decoder.blocks = self.blocks

    def forward(self, tokens: Tensor, z_loss: float | None) -> tuple[Tensor, Tensor]:
        """Return the sums that a step needs; without a z_loss each token's loss, twice."""
        self.decoder.weights = self.by_name()
        if z_loss is None:
            losses = self.decoder.token_losses(tokens)
            return losses, losses
        return self.decoder.loss_sums(tokens, z_loss)


class ShardedEngine:
    """One run on all ranks of the process group; every rank calls the same methods.

    Parameters
    ----------
    spec : RunSpec
        The run; its optimizer is AdamW.
    execution : ExecutionSpec
        ``micro_batch_seqs`` is a rank's share of a forward pass; 0 means all of its sequences.

    Raises
    ------
    UsageError
        When the batch cannot be split evenly, the optimizer is not AdamW, or an average of the
        weights is asked for.
    """

    def __init__(self, spec: RunSpec, execution: ExecutionSpec) -> None:
        self.rank, self.n_ranks = dist.get_rank(), dist.get_world_size()
        require_shardable(spec, self.n_ranks)
        self.spec, self.execution = spec, execution
        self.device = torch.device(execution.device)
        self.layout = lay_out(spec.shape)
        self.model = _Model(spec, execution)
        mesh = init_device_mesh(execution.device, (self.n_ranks,))
        policy = MixedPrecisionPolicy()
        if spec.precision == "bf16":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in self.model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self.model, mesh=mesh, mp_policy=policy)
        self.model.to_empty(device=execution.device)
        names = {entry.name for entry in self.layout.entries}
        named = [(n.removeprefix("blocks."), p) for n, p in self.model.named_parameters()]
        self._weights = {n if n in names else f"layers.{n}": p for n, p in named}
        self.optimizer = torch.optim.AdamW(
            self._groups(),
            lr=spec.lr,
            betas=(spec.beta1, spec.beta2),
            eps=spec.epsilon,
        )
        self.n_steps = 0
        self._rates = learning_rates(spec)

    def _groups(self) -> list[dict[str, Any]]:
        """Return the weights by decay and by the factor of their learning rate."""
        hidden_rate = scales_of(self.spec).hidden_rate
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for entry in self.layout.entries:
            decay = self.spec.weight_decay if entry.is_decayed else 0.0
            rate = hidden_rate if entry.start < self.layout.n_hidden else 1.0
            groups.setdefault((decay, rate), []).append(self._weights[entry.name])
        return [
            {"params": weights, "weight_decay": decay, "rate": rate}
            for (decay, rate), weights in groups.items()
        ]

    def initialize(self) -> None:
        """Give the run the initial weights that a single device would give it."""
        for entry in self.layout.entries:
            weight = self._weights[entry.name]
            whole = initial_values(entry, self.spec).to(weight.device)
            with torch.no_grad():
                weight.copy_(_shard_like(weight, whole, src_data_rank=None))

    def step(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step with this rank's sequences of the batch; return loss and gradient norm.

        Parameters
        ----------
        own : Tensor of int64, shape (B / ranks, T + 1)

        Returns
        -------
        loss, norm : Tensor, shape ()
            Of the whole batch: the same on every rank.
        """
        spec = self.spec
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
            group["lr"] = self._rates[self.n_steps] * group["rate"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.n_steps += 1
        return total, norm.full_tensor() if isinstance(norm, DTensor) else norm

    @torch.no_grad()
    def evaluate(self, own: Tensor) -> Tensor:
        """Return the mean loss of each of this rank's sequences, fp64 on the CPU.

        Every rank calls it with as many sequences, shape (n, T + 1).
        """
        n_rows = max(1, EVAL_TOKENS_PER_BATCH[self.device.type] // (own.shape[1] - 1))
        means = [
            self.model(part, None)[0].double().mean(-1).cpu() for part in torch.split(own, n_rows)
        ]
        return torch.cat(means)

    def state(self) -> dict[str, Any]:
        """Return the state that a single device would have: whole on rank 0, empty on others."""
        flats = {
            name: torch.zeros(self.layout.n_values if self.rank == 0 else 0) for name in STATE_NAMES
        }
        for entry in self.layout.entries:
            weight = self._weights[entry.name]
            moments = self.optimizer.state.get(weight, {})
            for name, flat in flats.items():
                part = weight.detach() if name == "master" else moments.get(name)
                if part is None:  # before the first step
                    continue
                assert isinstance(part, DTensor)
                whole = part.full_tensor()
                if self.rank == 0:
                    entry.view(flat).copy_(whole)
        return {"step": self.n_steps, **flats}

    def load_state(self, step: int, state: dict[str, Any] | None) -> None:
        """Put the run where `state` found it; only rank 0 has the state."""
        self.n_steps = step
        for entry in self.layout.entries:
            weight = self._weights[entry.name]
            parts = {}
            for name in STATE_NAMES:
                whole = torch.empty(entry.shape, device=weight.device)
                if state is not None:
                    whole.copy_(entry.view(state[name]))
                parts[name] = _shard_like(weight, whole, src_data_rank=0)
            with torch.no_grad():
                weight.copy_(parts.pop("master"))
            self.optimizer.state[weight] = {"step": torch.tensor(float(step)), **parts}


def _shard_like(weight: Tensor, whole: Tensor, *, src_data_rank: int | None) -> DTensor:
    """Return a whole tensor in shards like a weight's, from one rank's copy or from each's own."""
    assert isinstance(weight, DTensor)
    return distribute_tensor(
        whole, weight.device_mesh, weight.placements, src_data_rank=src_data_rank
    )


def require_shardable(spec: RunSpec, n_ranks: int) -> None:
    """Raise when a run cannot be spread over so many devices.

    Raises
    ------
    UsageError
    """
    if spec.batch_seqs % n_ranks:
        raise UsageError(
            f"{spec.batch_seqs} sequences a batch over {n_ranks} devices",
            "a multiple of the devices",
            "Choose another batch or number of devices.",
        )
    if spec.optimizer != "adamw" or spec.ema_decay:
        raise UsageError(
            f"{spec.optimizer} with ema_decay = {spec.ema_decay:g} over several devices",
            "adamw without an average of the weights",
            "Train such a run on one device.",
        )

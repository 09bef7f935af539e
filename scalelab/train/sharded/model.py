"""The decoder as torch modules, whose weights `fully_shard` gathers block by block."""

from __future__ import annotations

from typing import Any

import torch
from scalelab_kernels.operations import get_attention, get_operations
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.model import Decoder
from scalelab.train.moe import RouterWeights
from scalelab.train.parameters import Entry
from scalelab.train.parametrization import shape_factors
from scalelab.train.sharded.shards import Shards
from scalelab.train.sharded.tensor_parallel import SHARED_GAINS, TensorGroup


class GradientSquares:
    """Sums squared norms of whole gradients before `fully_shard` reduces them.

    The forward pass uses a view of each weight. A hook on the view gets the gradient of one
    backward pass over this device's sequences, without gradients accumulated before.
    """

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._squares: list[Tensor] = []

    def watch(self, name: str, weight: Tensor) -> Tensor:
        """Return the view of the weight to use in this forward pass."""
        if not (torch.is_grad_enabled() and self._shards.is_counted(name)):
            return weight
        seen = weight.view_as(weight)
        seen.register_hook(self._add)  # type: ignore[no-untyped-call]
        return seen

    def take(self) -> Tensor:
        """Return and clear the sum since the last call, shape ()."""
        squares, self._squares = self._squares, []
        return torch.stack(squares).sum()

    def _add(self, grad: Tensor) -> None:
        self._squares.append(torch.linalg.vector_norm(grad, dtype=torch.float32).square())


class _Weights(nn.Module):
    """Weights of the layout as module parameters, named without the prefix."""

    def __init__(
        self, entries: list[Entry], prefix: str, tensor: TensorGroup, squares: GradientSquares
    ) -> None:
        super().__init__()
        self.prefix, self.tensor, self.squares = prefix, tensor, squares
        self.names = [entry.name.removeprefix(prefix) for entry in entries]
        for name, entry in zip(self.names, entries, strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(entry.shape, device="meta")))

    def by_name(self) -> dict[str, Tensor]:
        """Return the weights for one forward pass."""
        found = {}
        for name in self.names:
            weight = self.squares.watch(self.prefix + name, getattr(self, name))
            found[self.prefix + name] = (
                self.tensor.enter(weight) if name in SHARED_GAINS else weight
            )
        return found


class _PartDecoder(Decoder):
    """A decoder whose blocks can be tensor-parallel parts."""

    tensor: TensorGroup

    def enter(self, x: Tensor) -> Tensor:
        return self.tensor.enter(x)

    def leave(self, x: Tensor) -> Tensor:
        return self.tensor.leave(x)


class _Block(_Weights):
    """A block of the decoder; `fully_shard` makes its weights whole while it runs."""

    decoder: Decoder

    def forward(
        self, output: Tensor | None, stream: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        self.decoder.weights = self.by_name()
        output, stream, penalty = self.decoder.block(output, stream, self.prefix, starts)
        # fully_shard adds hooks to the outputs of a module, which must not be views.
        if penalty is None:
            return output, stream, None
        return output.clone(), stream, penalty.clone()


class _Decoder(_PartDecoder):
    """A decoder whose blocks are modules and whose head splits its tokens over a group."""

    blocks: nn.ModuleList
    recomputes_blocks: bool

    def run_block(
        self, output: Tensor | None, stream: Tensor, layer: int, starts: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        block = self.blocks[layer]
        if self.recomputes_blocks and torch.is_grad_enabled():
            return checkpoint(block, output, stream, starts, use_reentrant=False)  # type: ignore[no-any-return]
        return block(output, stream, starts)  # type: ignore[no-any-return]

    def each_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        sizes = [len(part) for part in targets.flatten().tensor_split(self.tensor.n_ranks)]
        rank = self.tensor.rank
        own = super().each_loss(*self._own_tokens(hidden, targets))
        around = (sum(sizes[:rank]), sum(sizes[rank + 1 :]))
        return self.leave(functional.pad(own, around)).view(targets.shape)

    def summed_loss(self, hidden: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        return self.leave(super().summed_loss(*self._own_tokens(hidden, targets), z_loss))

    def _own_tokens(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return this device's share of the head's inputs and targets, flattened to rows."""
        rows = (self.enter(hidden).flatten(0, -2), targets.flatten())
        hidden, targets = (x.tensor_split(self.tensor.n_ranks)[self.tensor.rank] for x in rows)
        return hidden, targets

    def head(self) -> Tensor:
        return self.enter(super().head())


class ShardedModel(_Weights):
    """The part of a model on one device: embedding, final norm, head and blocks.

    Parameters
    ----------
    spec : RunSpec
        The run.
    execution : ExecutionSpec
        Gives operations, attention and whether to recompute activations of blocks.
    shards : Shards
        This device's part of each weight. The weights are created on the meta device.

    Raises
    ------
    KernelUnavailableError
        When the kernels cannot run on this device.
    """

    def __init__(self, spec: RunSpec, execution: ExecutionSpec, shards: Shards) -> None:
        squares = GradientSquares(shards)
        entries = list(shards.own.values())
        outer = [entry for entry in entries if "." not in entry.name]
        super().__init__(outer, "", shards.tensor, squares)
        ops = get_operations(execution.kernels, execution.device)  # type: ignore[arg-type]
        attend = get_attention(execution.attention, execution.device)  # type: ignore[arg-type]
        place = {"final_norm": torch.empty(0, device=execution.device)}
        arguments: tuple[Any, ...] = (
            shards.shape,
            place,
            spec.seq_len,
            ops,
            attend,
            shape_factors(spec),
            RouterWeights.of(spec),
        )
        loss = {
            "softcap": spec.logit_softcap,
            "is_document_masked": spec.is_document_masked,
            "end_token": spec.end_token,
        }
        self.decoder = _Decoder(*arguments, **loss)  # type: ignore[arg-type]
        self.decoder.tensor = shards.tensor
        self.decoder.recomputes_blocks = execution.recomputes_blocks
        self.blocks = nn.ModuleList()
        for layer in range(spec.shape.n_layers):
            prefix = f"layers.{layer}."
            own = [entry for entry in entries if entry.name.startswith(prefix)]
            block = _Block(own, prefix, shards.tensor, squares)
            inner = _PartDecoder(*arguments, **loss)  # type: ignore[arg-type]
            inner.tensor = shards.tensor
            block.decoder = inner
            self.blocks.append(block)
        self.decoder.blocks = self.blocks

    def forward(self, tokens: Tensor, z_loss: float | None) -> tuple[Tensor, Tensor]:
        """Return `Decoder.loss_sums`; if z_loss is None, return the token losses twice."""
        self.decoder.weights = self.by_name()
        if z_loss is None:
            losses = self.decoder.token_losses(tokens)
            return losses, losses
        return self.decoder.loss_sums(tokens, z_loss)

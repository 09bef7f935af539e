"""Losses and gradients of K runs, by two implementations that agree to rounding.

`Autograd` differentiates `scalelab.train.model` with torch, for all models, devices, precisions and
kernels. `Direct` uses `scalelab.train.direct.step`, which is faster for dense models on a CPU; in
bf16 only where the CPU multiplies bf16 matrices fast.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, MethodType

import torch
from scalelab_kernels.errors import KernelUnavailableError
from scalelab_kernels.operations import get_attention, get_operations
from torch import Tensor

from scalelab.errors import UsageError
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.direct.step import DirectStep, LossSettings
from scalelab.train.model import Decoder
from scalelab.train.moe import RouterWeights
from scalelab.train.optimizer import row_norms
from scalelab.train.parameters import Layout
from scalelab.train.parametrization import shape_factors
from scalelab.train.precision import DTYPES, products


class Autograd:
    """Gradients by torch autograd.

    Parameters
    ----------
    specs : sequence of RunSpec
        The runs.
    execution : ExecutionSpec
        How the steps are executed.
    layout : Layout
        Of a run's buffer.
    master, grad : Tensor of fp32, shape (P,) or (K, P)
        Weights, and the buffer that receives the gradients.
    copy : Tensor or None
        Rounded weights for the matrix products.

    Raises
    ------
    UsageError
        When the kernels cannot run on this device.
    """

    def __init__(
        self,
        specs: Sequence[RunSpec],
        execution: ExecutionSpec,
        layout: Layout,
        master: Tensor,
        grad: Tensor,
        copy: Tensor | None,
    ) -> None:
        self.specs, self.execution = specs, execution
        device = master.device
        try:
            ops = get_operations(execution.kernels, device)  # type: ignore[arg-type]
            self._attend = get_attention(execution.attention, device)  # type: ignore[arg-type]
        except KernelUnavailableError as error:
            raise UsageError(error.given, error.allowed, error.do) from error
        self._linear, self.ops = products(specs[0], ops)
        self.leaves: dict[str, Tensor] = {}
        for entry in layout.entries:
            source = master if copy is None or entry.kind == "norm" else copy
            self.leaves[entry.name] = entry.view(source).detach().requires_grad_()
        views = layout.views(grad)
        self._grad_views = [views[name] for name in self.leaves]
        # torch copies a list in one launch only if all sources have one dtype.
        self._of_dtype: dict[torch.dtype, list[int]] = {}
        for index, leaf in enumerate(self.leaves.values()):
            self._of_dtype.setdefault(leaf.dtype, []).append(index)
        self.model = self._decoder(self.leaves, specs[0].seq_len)
        is_compiled = execution.step == "compiled"
        self._loss_sums = _compiled(self.model) if is_compiled else self.model.loss_sums

    def take(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Write the gradients of the mean losses to ``grad``; return losses and squared norms.

        Parameters
        ----------
        tokens : Tensor of int64, shape (B, T + 1) or (K, B, T + 1)

        Returns
        -------
        loss : Tensor, shape (K,)
            Nats per token.
        square : Tensor, shape (K,)
            Mean squared norm of the micro-batches' mean gradients; 0 without micro-batches.
        """
        spec = self.specs[0]
        loss = torch.zeros(len(self.specs), device=tokens.device)
        square = torch.zeros_like(loss)
        leaves = list(self.leaves.values())
        parts = torch.split(tokens, self.execution.micro_batch_seqs or spec.batch_seqs, dim=-2)
        for index, part in enumerate(parts):
            reported, objective = self._loss_sums(part, spec.z_loss)
            grads = torch.autograd.grad((objective / spec.tokens_per_step).sum(), leaves)
            for places in self._of_dtype.values():
                into, own = ([found[i] for i in places] for found in (self._grad_views, grads))
                if index == 0:
                    torch._foreach_copy_(into, own)
                else:
                    torch._foreach_add_(into, own)
            loss += reported.detach() / spec.tokens_per_step
            if len(parts) > 1:
                # `grads` is divided by the whole batch; rescale to the micro-batch's mean gradient.
                square += self._squares(grads) * (spec.batch_seqs / part.shape[-2]) ** 2
        return loss, square / len(parts)

    @torch.no_grad()
    def token_losses(self, run: int, tokens: Tensor) -> Tensor:
        """Return each token's loss in nats, shape (B, T), of a run on tokens (B, T + 1)."""
        leaves = self.leaves.items()
        weights = {n: leaf if len(self.specs) == 1 else leaf[run] for n, leaf in leaves}
        return self._decoder(weights, tokens.shape[1] - 1).token_losses(tokens)

    def _decoder(self, weights: Mapping[str, Tensor], seq_len: int) -> Decoder:
        first = self.specs[0]
        return Decoder(
            first.shape,
            weights,
            seq_len,
            self.ops,
            self._attend,
            shape_factors(first),
            RouterWeights.of(first),
            self._linear,
            softcap=first.logit_softcap,
            is_document_masked=first.is_document_masked,
            end_token=first.end_token,
        )

    def _squares(self, grads: Sequence[Tensor]) -> Tensor:
        if len(self.specs) == 1:
            norms = [
                norm
                for places in self._of_dtype.values()
                for norm in torch._foreach_norm([grads[i] for i in places], 2, torch.float32)
            ]
            return torch.stack(norms).square().sum().unsqueeze(0)
        rows = [grad.flatten(1) for grad in grads]
        each = [torch.linalg.vector_norm(row, dim=1, dtype=torch.float32) for row in rows]
        return torch.stack(each).square().sum(0)


def _compiled(model: Decoder) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
    """Return a model's `Decoder.loss_sums`, compiled for its shapes only.

    Dynamo keeps its compilations with the code of a function, and after a few runs the function as
    it is, with a warning. A copy of the code gives each model its own few, which end with it, and
    reaching the limit is an error.
    """
    config = importlib.import_module("torch._dynamo").config  # a second to import
    for name in ("fail_on_recompile_limit_hit", "fail_on_cache_limit_hit"):  # the name before 2.6
        if hasattr(config, name):
            setattr(config, name, True)
    shared = Decoder.loss_sums
    own = FunctionType(shared.__code__.replace(), shared.__globals__, shared.__name__)
    compiled: Callable[[Tensor, float], tuple[Tensor, Tensor]] = torch.compile(
        MethodType(own, model), dynamic=False
    )
    return compiled


class Direct:
    """Gradients by hand-written derivatives over fixed buffers; interface as `Autograd`."""

    def __init__(
        self,
        specs: Sequence[RunSpec],
        execution: ExecutionSpec,
        layout: Layout,
        master: Tensor,
        grad: Tensor,
    ) -> None:
        self.specs = specs
        first = specs[0]
        self._layout = layout
        self._master, self._grad = (flat.view(len(specs), -1) for flat in (master, grad))
        micro = execution.micro_batch_seqs or first.batch_seqs
        self._sizes = [
            min(micro, first.batch_seqs - start) for start in range(0, first.batch_seqs, micro)
        ]
        # A single pass writes to the optimizer's buffer; several passes are summed in it.
        self._part = self._grad if len(self._sizes) == 1 else torch.zeros_like(self._grad)
        self._steps = {size: self._new_step(self._master, self._part, size) for size in self._sizes}
        self._evaluations: dict[tuple[int, int, int], DirectStep] = {}

    def take(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Write the gradients of the mean losses; as `Autograd.take`."""
        spec = self.specs[0]
        tokens = tokens.view(len(self.specs), *tokens.shape[-2:])
        loss = torch.zeros(len(self.specs))
        square = torch.zeros_like(loss)
        if len(self._sizes) == 1:
            return self._steps[self._sizes[0]].loss_sums(tokens) / spec.tokens_per_step, square
        for index, part in enumerate(torch.split(tokens, self._sizes, dim=1)):
            size = part.shape[1]
            loss += self._steps[size].loss_sums(part) / spec.tokens_per_step
            # As in `Autograd.take`.
            square += row_norms(self._part).square_() * (spec.batch_seqs / size) ** 2
            if index == 0:
                self._grad.copy_(self._part)
            else:
                self._grad.add_(self._part)
        return loss, square / len(self._sizes)

    def token_losses(self, run: int, tokens: Tensor) -> Tensor:
        """Return each token's loss in nats, shape (B, T); as `Autograd.token_losses`."""
        n_seqs, seq_len = tokens.shape[0], tokens.shape[1] - 1
        key = (run, n_seqs, seq_len)
        if key not in self._evaluations:
            weights = self._master[run : run + 1]
            # Keep the buffers of one size: an evaluation set has at most one smaller last batch.
            self._evaluations = {key: self._new_step(weights, None, n_seqs, seq_len)}
        return self._evaluations[key].token_losses(tokens.unsqueeze(0))[0]

    def _new_step(
        self, weights: Tensor, grads: Tensor | None, n_seqs: int, seq_len: int | None = None
    ) -> DirectStep:
        first = self.specs[0]
        return DirectStep(
            first.shape,
            self._layout,
            weights,
            grads,
            n_seqs=n_seqs,
            seq_len=seq_len or first.seq_len,
            factors=shape_factors(first),
            grad_scale=1 / first.tokens_per_step,
            loss=LossSettings(
                z_loss=first.z_loss,
                softcap=first.logit_softcap,
                is_document_masked=first.is_document_masked,
                end_token=first.end_token,
            ),
            dtype=DTYPES[first.precision],
        )

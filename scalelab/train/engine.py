"""The arithmetic of training: buffers and optimizer steps of K runs of one shape.

The engine uses no files and no clocks. Losses and gradient norms stay on the device until `read`,
so a step never waits for the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scalelab_kernels.operations import get_operations
from torch import Tensor

from scalelab.errors import UsageError
from scalelab.sweep.batched_runs import EQUAL_FIELDS
from scalelab.sweep.devices import require_divisible_devices
from scalelab.sweep.execution import (
    DIRECT_RUNS,
    STEPS,
    ExecutionSpec,
    is_direct_possible,
    loss_problem,
)
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.schedule import learning_rate_ratio
from scalelab.train.batches import PinnedBatch
from scalelab.train.gradients import Autograd, Direct
from scalelab.train.optimizer import Optimizer
from scalelab.train.parameters import Layout, initialize_, lay_out
from scalelab.train.precision import DTYPES

EVAL_TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 8192}
"""Tokens in a forward pass of an evaluation. They are constants so that all runs sum losses in the
same order. The CPU value is smaller so that activations stay in its cache."""

GRAPH_WARMUP_STEPS = 2
STATE_NAMES = ("master", "exp_avg", "exp_avg_sq")
EMA_START_STEPS = 10
"""The decay of the weight average is at most (1 + step) / (EMA_START_STEPS + step)."""
HALF_ATTENTIONS = ("flash", "cudnn")
"""Attentions without kernels for fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Readings:
    """Losses and gradient norms of consecutive steps.

    Attributes
    ----------
    losses : ndarray of fp32, shape (steps, K)
        Training losses, nats per token.
    norms : ndarray of fp32, shape (steps, K)
        Gradient norms before clipping.
    micro_squares : ndarray of fp32, shape (steps, K), or None
        Squared norm of a micro-batch's mean gradient, averaged over the micro-batches of a step;
        None without micro-batches.
    """

    losses: NDArray[np.float32]
    norms: NDArray[np.float32]
    micro_squares: NDArray[np.float32] | None


def learning_rates(spec: RunSpec) -> list[float]:
    """Return the learning rate of each step of a run."""
    return [
        spec.lr
        * learning_rate_ratio(
            step,
            schedule=spec.schedule,
            n_steps=spec.n_steps,
            warmup_steps=spec.warmup_steps,
            decay_steps=spec.decay_steps,
            end_ratio=spec.lr_end_ratio,
        )
        for step in range(spec.n_steps)
    ]


def average_decay(steps: Tensor, decay: float) -> Tensor:
    """Return the decay of the weight average at these steps (1 is the first), smaller at first."""
    return ((1 + steps) / (EMA_START_STEPS + steps)).clamp(max=decay)


def batch_shape(specs: Sequence[RunSpec]) -> tuple[int, ...]:
    """Return the shape of a step's tokens: (B, T + 1) for one run, (K, B, T + 1) for several."""
    lead = () if len(specs) == 1 else (len(specs),)
    return (*lead, specs[0].batch_seqs, specs[0].seq_len + 1)


class Engine:
    """K runs of one shape, sequence length and batch, trained in the same steps.

    Parameters
    ----------
    specs : sequence of RunSpec
        The runs. Several runs are a leading dimension K of every tensor; one run has none.
    execution : ExecutionSpec
        How the steps are executed.

    Raises
    ------
    UsageError
        When the runs cannot share a step, or this machine cannot execute the step.
    """

    def __init__(self, specs: Sequence[RunSpec], execution: ExecutionSpec) -> None:
        _require_equal(specs)
        _require_possible(specs, execution)
        first = specs[0]
        self.specs = tuple(specs)
        self.execution = execution
        self.device = torch.device(execution.device)
        self.layout: Layout = lay_out(first.shape)
        n_runs = len(specs)
        lead = () if n_runs == 1 else (n_runs,)
        flat_shape = (*lead, self.layout.n_values)
        # Separate allocations: views of one buffer would share autograd's version counter.
        self.master, self.grad, self.exp_avg, self.exp_avg_sq = (
            torch.zeros(flat_shape, device=self.device) for _ in range(4)
        )
        self.ema = torch.zeros_like(self.master) if first.ema_decay else None
        self._state_names = (*STATE_NAMES, *(() if self.ema is None else ("ema",)))
        self.steps = torch.zeros(n_runs, dtype=torch.int64, device=self.device)
        rates = torch.zeros(n_runs, max(spec.n_steps for spec in specs), dtype=torch.float64)
        for run, spec in enumerate(specs):
            rates[run, : spec.n_steps] = torch.tensor(learning_rates(spec), dtype=torch.float64)
        self.rates = rates.to(self.device)
        # Autograd multiplies rounded copies of the weights in half precision; norm gains stay fp32.
        dtype = DTYPES[first.precision]
        has_copy = dtype != torch.float32 and execution.step != "direct"
        self.copy = torch.zeros_like(self.master, dtype=dtype) if has_copy else None
        buffers = (self.layout, self.master, self.grad)
        self.gradients: Autograd | Direct
        if execution.step == "direct":
            self.gradients = Direct(specs, execution, *buffers)
        else:
            self.gradients = Autograd(specs, execution, *buffers, self.copy)
        self.optimizer = Optimizer(
            specs,
            self.layout,
            self.master,
            self.exp_avg,
            self.exp_avg_sq,
            self.copy,
            get_operations(execution.kernels, self.device),  # type: ignore[arg-type]
        )
        # Half the bytes on the wire to a GPU, which widens them itself.
        wire = torch.int32 if self.device.type == "cuda" else torch.int64
        self._tokens = torch.zeros(batch_shape(specs), dtype=wire, device=self.device)
        self.n_pending = 0
        # Loss, gradient norm and mean square of the micro-batches' gradients of steps not yet read.
        self._ring = torch.zeros(execution.metrics_interval_steps, 3, n_runs, device=self.device)
        self._slot = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._graph = self._captured() if execution.step == "graph" else None

    @property
    def n_runs(self) -> int:
        """Number of batched runs K."""
        return len(self.specs)

    def initialize(self, run: int) -> None:
        """Set a run's weights to their initial values."""
        initialize_(self._row(self.master, run), self.layout, self.specs[run])
        if self.ema is not None:
            self._row(self.ema, run).copy_(self._row(self.master, run))
        self._refresh_copy(run)

    def state(self, run: int) -> dict[str, Any]:
        """Return the state that determines the rest of a run, copied to the CPU."""
        return {
            "step": int(self.steps[run]),
            **{
                name: self._row(getattr(self, name), run).to("cpu", copy=True)
                for name in self._state_names
            },
        }

    def load_state(self, run: int, state: dict[str, Any]) -> None:
        """Restore a run from the result of `state`."""
        self.steps[run] = state["step"]
        for name in self._state_names:
            self._row(getattr(self, name), run).copy_(state[name])
        self._refresh_copy(run)

    def step(self, tokens: NDArray[np.int64] | PinnedBatch) -> None:
        """Take one optimizer step of each run.

        Parameters
        ----------
        tokens : ndarray of int, shape `batch_shape`, or PinnedBatch of them
        """
        if isinstance(tokens, PinnedBatch):
            self._tokens.copy_(tokens.tokens, non_blocking=True)
            tokens.copied.record()
        else:
            self._tokens.copy_(torch.from_numpy(tokens))
        if isinstance(self.gradients, Direct):
            with torch.inference_mode():
                self._take_step()
        elif self._graph is None:
            self._take_step()
        else:
            self._graph.replay()
        self.n_pending += 1

    def read(self) -> Readings:
        """Return and clear the readings of the steps since the last call.

        At most ``metrics_interval_steps`` steps fit between calls.
        """
        n, self.n_pending = self.n_pending, 0
        values = self._ring[:n].to("cpu", copy=True).numpy()
        self._slot.zero_()
        return Readings(
            losses=values[:, 0],
            norms=values[:, 1],
            micro_squares=values[:, 2] if self.n_micro > 1 else None,
        )

    @property
    def n_micro(self) -> int:
        """Number of forward passes in a step; the last may be smaller."""
        batch_seqs = self.specs[0].batch_seqs
        return -(-batch_seqs // (self.execution.micro_batch_seqs or batch_seqs))

    def _take_step(self) -> None:
        """Take a step with the tokens in `_tokens`, without synchronising host and device."""
        loss, square = self.gradients.take(self._tokens.long())
        # Beyond the schedule, an index out of range would end the process's use of the GPU.
        index = self.steps.clamp(max=self.rates.shape[1] - 1).unsqueeze(1)
        rates = self.rates.gather(1, index).squeeze(1)
        self.steps += 1
        norm = self.optimizer.step(self.grad, self.steps, rates)
        if self.ema is not None:
            self._average(self.ema)
        row = torch.stack((loss, norm, square))
        self._ring.index_copy_(0, self._slot, row.unsqueeze(0))
        self._slot += 1

    def _average(self, ema: Tensor) -> None:
        """Update the weight average."""
        decay = average_decay(self.steps.float(), self.specs[0].ema_decay)
        weight = 1 - decay
        ema.lerp_(self.master, weight[0] if self.n_runs == 1 else weight.unsqueeze(1))

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Return the step as one CUDA graph, captured before the runs have their states.

        There is no state to save: the warm-up steps start at step 0 and leave the buffers cleared.
        """
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(GRAPH_WARMUP_STEPS):
                self._take_step()
                self._clear()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._take_step()
        return graph

    def _clear(self) -> None:
        """Set all that a step changes to zero."""
        copies = () if self.copy is None else (self.copy,)
        states = (getattr(self, name) for name in self._state_names)
        for buffer in (self.steps, self._slot, self._ring, self.grad, *copies, *states):
            buffer.zero_()

    def evaluate(self, run: int, sequences: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the mean loss of each sequence, nats per token, summed in fp64.

        Parameters
        ----------
        run : int
            Index of the run among the K.
        sequences : ndarray of int, shape (n, T + 1)

        Returns
        -------
        ndarray, shape (n,)
        """
        n_rows = max(1, EVAL_TOKENS_PER_BATCH[self.device.type] // (sequences.shape[1] - 1))
        means = []
        for start in range(0, len(sequences), n_rows):
            part = torch.from_numpy(sequences[start : start + n_rows]).to(self.device)
            means.append(self.gradients.token_losses(run, part).double().mean(-1).cpu())
        return torch.cat(means).numpy()

    def evaluate_average(
        self, run: int, sequences: NDArray[np.int64]
    ) -> NDArray[np.float64] | None:
        """Return `evaluate` with the weight average; None if the run does not keep one.

        The run's own weights are restored bit for bit.
        """
        if self.ema is None:
            return None
        weights = self._row(self.master, run)
        own = weights.clone()
        weights.copy_(self._row(self.ema, run))
        self._refresh_copy(run)
        try:
            return self.evaluate(run, sequences)
        finally:
            weights.copy_(own)
            self._refresh_copy(run)

    def _row(self, tensor: Tensor, run: int) -> Tensor:
        return tensor if self.n_runs == 1 else tensor[run]

    def _refresh_copy(self, run: int) -> None:
        if self.copy is not None:
            self._row(self.copy, run).copy_(self._row(self.master, run))


def _require_equal(specs: Sequence[RunSpec]) -> None:
    for name in EQUAL_FIELDS:
        found = {getattr(spec, name) for spec in specs}
        if len(found) > 1:
            raise UsageError(
                f"batched runs that differ in {name}",
                f"runs with the same {', '.join(EQUAL_FIELDS)}",
                "Batch only runs that agree in these fields.",
            )


def require_device(execution: ExecutionSpec) -> None:
    """Raise if torch does not find the device.

    Raises
    ------
    UsageError
    """
    if execution.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device = 'cuda', but torch finds no GPU",
            "a device of this machine",
            "Use device = cpu, or run `scalelab doctor` to see what is missing.",
        )


def _require_possible(specs: Sequence[RunSpec], execution: ExecutionSpec) -> None:
    require_device(execution)
    require_divisible_devices(execution.n_devices, execution.tensor_parallel)
    if execution.step not in STEPS:
        raise UsageError(
            f"step = {execution.step!r}", f"one of {', '.join(STEPS)}", "Use step = eager."
        )
    if execution.step == "graph" and execution.device != "cuda":
        raise UsageError(
            f"step = 'graph' on {execution.device}",
            "a CUDA device",
            "Use step = eager or compiled.",
        )
    if execution.step == "graph" and specs[0].shape.n_experts and not _groups_on_device(execution):
        raise UsageError(
            f"step = 'graph' for a mixture of experts with kernels = {execution.kernels}",
            "kernels = triton on a GPU of compute capability 9.0 or 10, where torch's grouped "
            "matmul does not wait for the host",
            "Use step = eager.",
        )
    if specs[0].precision == "fp8" and len(specs) > 1:
        raise UsageError(
            f"{len(specs)} batched runs in fp8",
            "one run in each step, because fp8 products are of single matrices",
            "Use batched_runs = 1.",
        )
    if execution.attention in HALF_ATTENTIONS and specs[0].precision == "fp32":
        raise UsageError(
            f"attention = {execution.attention!r} for a run in fp32",
            "a run in half precision, or another attention",
            "Use attention = sdpa or triton.",
        )
    problem = loss_problem(execution, specs[0])
    if problem is not None:
        raise UsageError(*problem)
    if execution.step == "direct" and not is_direct_possible(specs[0], execution):
        raise UsageError(
            "step = 'direct' for a run that it does not support",
            DIRECT_RUNS,
            "Use step = eager.",
        )


def _groups_on_device(execution: ExecutionSpec) -> bool:
    """Say whether a mixture of experts runs without the host; a capture permits no waiting.

    Other GPUs take a fallback that reads the sizes of the groups on the host
    (aten/src/ATen/native/cuda/GroupedBlas.cpp, ``_grouped_mm_cuda``).
    """
    major, minor = torch.cuda.get_device_capability()
    return execution.kernels == "triton" and ((major, minor) == (9, 0) or major == 10)

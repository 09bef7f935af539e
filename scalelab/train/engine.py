"""The arithmetic of training: K runs of one shape, their buffers, and one optimizer step.

No files, no clocks. Losses and gradient norms stay on the device until they are read, so a step
never waits for the host.
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
from scalelab.sweep.devices import require_divisible_devices
from scalelab.sweep.run_spec import STEPS, ExecutionSpec, RunSpec
from scalelab.theory.schedule import learning_rate_ratio
from scalelab.train.direct import step as direct
from scalelab.train.gradients import Autograd, Direct
from scalelab.train.optimizer import Optimizer
from scalelab.train.parameters import Layout, initialize_, lay_out

EVAL_TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 8192}
"""Tokens in a forward pass of an evaluation: constants, so that every run adds up alike. The fewer
on a CPU stay in its cache."""

GRAPH_WARMUP_STEPS = 2
STATE_NAMES = ("master", "exp_avg", "exp_avg_sq")
EMA_START_STEPS = 10
"""A moving average's decay is at most (1 + step) / (this + step)."""
_COPY_DTYPES = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Readings:
    """What some steps measured.

    Attributes
    ----------
    losses : ndarray of fp32, shape (steps, K)
        Training losses, nats per token.
    norms : ndarray of fp32, shape (steps, K)
        Gradient norms before clipping.
    micro_squares : ndarray of fp32, shape (steps, K), or None
        Mean squared norm of the micro-batches' mean gradients; None without micro-batches.
    """

    losses: NDArray[np.float32]
    norms: NDArray[np.float32]
    micro_squares: NDArray[np.float32] | None


def learning_rates(spec: RunSpec) -> list[float]:
    """Return the learning rate of every step of a run."""
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
    """Return by how much a moving average decays at a step, 1 for the first; less at the start."""
    return ((1 + steps) / (EMA_START_STEPS + steps)).clamp(max=decay)


class Engine:
    """K runs of one shape, sequence length and batch, trained in the same steps.

    Parameters
    ----------
    specs : sequence of RunSpec
        The runs. One run has no pack dimension; several have a leading one.
    execution : ExecutionSpec
        How the steps are executed.

    Raises
    ------
    UsageError
        When the runs cannot share a step, or the execution is not possible here.
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
        # Four allocations: parts of one would share autograd's count of in-place changes.
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
        # Half precision keeps rounded copies of the weights for the products; norms stay fp32.
        dtype = _COPY_DTYPES[first.precision]
        self.copy = None if dtype is None else torch.zeros_like(self.master, dtype=dtype)
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
        self._graph: torch.cuda.CUDAGraph | None = None
        self._tokens = torch.zeros(
            (*lead, first.batch_seqs, first.seq_len + 1), dtype=torch.int64, device=self.device
        )
        self.n_pending = 0
        # Loss, gradient norm and mean square of the micro-batches' gradients of the latest steps.
        self._ring = torch.zeros(execution.metrics_interval_steps, 3, n_runs, device=self.device)
        self._slot = torch.zeros(1, dtype=torch.int64, device=self.device)

    @property
    def n_runs(self) -> int:
        """Number of packed runs K."""
        return len(self.specs)

    def initialize(self, run: int) -> None:
        """Give a run its initial weights."""
        initialize_(self._row(self.master, run), self.layout, self.specs[run])
        if self.ema is not None:
            self._row(self.ema, run).copy_(self._row(self.master, run))
        self._refresh_copy(run)

    def state(self, run: int) -> dict[str, Any]:
        """Return what determines the rest of a run: copies on the CPU."""
        return {
            "step": int(self.steps[run]),
            **{
                name: self._row(getattr(self, name), run).to("cpu", copy=True)
                for name in self._state_names
            },
        }

    def load_state(self, run: int, state: dict[str, Any]) -> None:
        """Put a run where `state` found it."""
        self.steps[run] = state["step"]
        for name in self._state_names:
            self._row(getattr(self, name), run).copy_(state[name])
        self._refresh_copy(run)

    def step(self, tokens: NDArray[np.int64]) -> None:
        """Take one optimizer step of every run.

        Parameters
        ----------
        tokens : ndarray of int, shape (B, T + 1), or (K, B, T + 1) when packed
        """
        self._tokens.copy_(torch.from_numpy(tokens))
        if self.execution.step == "graph":
            if self._graph is None:
                self._capture()
            assert self._graph is not None
            self._graph.replay()
        else:
            self._take_step()
        self.n_pending += 1

    def read(self) -> Readings:
        """Return what the steps since the last call measured, and forget it.

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
        """Forward passes of a step; the last may be smaller."""
        batch_seqs = self.specs[0].batch_seqs
        return -(-batch_seqs // (self.execution.micro_batch_seqs or batch_seqs))

    def _take_step(self) -> None:
        """Take a step with the tokens in place; host and device exchange nothing."""
        loss, square = self.gradients.take(self._tokens)
        rates = self.rates.gather(1, self.steps.unsqueeze(1)).squeeze(1)
        self.steps += 1
        norm = self.optimizer.step(self.grad, self.steps, rates)
        if self.ema is not None:
            self._average(self.ema)
        row = torch.stack((loss, norm, square))
        self._ring.index_copy_(0, self._slot, row.unsqueeze(0))
        self._slot += 1

    def _average(self, ema: Tensor) -> None:
        """Move the averages of the weights on; the first steps forget the start faster."""
        decay = average_decay(self.steps.float(), self.specs[0].ema_decay)
        weight = 1 - decay
        ema.lerp_(self.master, weight[0] if self.n_runs == 1 else weight.unsqueeze(1))

    def _capture(self) -> None:
        """Record the step as one CUDA graph; its first runs, which warm up, leave no trace."""
        saved = [self.state(run) for run in range(self.n_runs)]
        slot = self._slot.clone()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(GRAPH_WARMUP_STEPS):
                self._slot.zero_()
                self._take_step()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._take_step()
        for run, state in enumerate(saved):
            self.load_state(run, state)
        self._slot.copy_(slot)

    def evaluate(self, run: int, sequences: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the mean loss of every sequence, nats per token, summed in fp64.

        Parameters
        ----------
        run : int
            Which of the packed runs.
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
        """Return what `evaluate` does of the average of a run's weights; None where none is kept.

        The run's own weights are put back, bit for bit.
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
    names = (
        "shape",
        "seq_len",
        "batch_seqs",
        "z_loss",
        "ema_decay",
        "optimizer",
        "parametrization",
        "precision",
    )
    for name in names:
        found = {getattr(spec, name) for spec in specs}
        if len(found) > 1:
            raise UsageError(
                f"a pack of runs with different {name}",
                f"runs with equal {', '.join(names)}",
                "Pack only runs that can share a step.",
            )


def require_device(execution: ExecutionSpec) -> None:
    """Raise when torch does not see the device.

    Raises
    ------
    UsageError
    """
    if execution.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device = 'cuda' where torch sees no GPU",
            "a device that this machine has",
            "Use device = cpu, or run `scalelab doctor` to see what is missing.",
        )


def _require_possible(specs: Sequence[RunSpec], execution: ExecutionSpec) -> None:
    require_device(execution)
    require_divisible_devices(execution.n_devices, execution.tensor_parallel)
    if execution.step not in STEPS:
        raise UsageError(f"step = {execution.step!r}", f"one of {', '.join(STEPS)}", "Choose one.")
    if execution.step == "graph" and (execution.device != "cuda" or specs[0].shape.n_experts):
        raise UsageError(
            f"step = 'graph' on {execution.device} with {specs[0].shape.n_experts} experts",
            "a dense model on a CUDA device",
            "Choose step = eager or compiled.",
        )
    if execution.step == "direct" and not direct.is_possible(specs[0], execution):
        raise UsageError(
            "step = 'direct' for such a run",
            "a dense fp32 model without z-loss, on a CPU, with the reference operations",
            "Choose step = eager.",
        )

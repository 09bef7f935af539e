"""The cases of a qualification, as the child process runs them: kernels, whole steps, speed.

A whole step is checked at the run's shape and dtype, with an odd number of sequences and positions.
Its gradients follow the rule of `scalelab_kernels.checks`, pooled over the layers for each kind of
weight: at most twice the error of the plain reference, plus the rounding of the dtype, against the
same model in float64. The losses of `CHECKED_STEPS` steps stay close to the reference's, and a step
that is repeated from the same state has the same bits (except with an attention that never does,
which can only be asked for by name). Speed is measured at the run's own batch.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scalelab_kernels import checks
from scalelab_kernels.operations import REPEATABLE_PATHS
from torch import Tensor

from scalelab.records.qualification import OK, kernel_class, way_of
from scalelab.sweep.execution import AUTO, ExecutionSpec, candidates
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.engine import Engine, batch_shape
from scalelab.train.execution import is_out_of_memory, smaller_micro_batch
from scalelab.train.gradients import Autograd
from scalelab.train.precision import DTYPES

CHECKED_SEQS = 3
CHECKED_STEPS = 3
CHECKED_POSITIONS = {"cuda": 257, "cpu": 9}
"""Most positions of a checked step. Float64 and interpreted kernels are slow."""
KERNEL_SIZES = {
    "cuda": {"n_rows": 1003, "n_positions": 257, "n_weights": 100_003},
    "cpu": {"n_rows": 3, "n_positions": 5, "n_weights": 65},
}
NO_CLIP = 1e30
"""Some ways clip their gradients in place, before they can be compared."""
DRAWS = 3
MANY_VALUES = 50_000_000
"""Weights of all runs above which one draw of tokens is enough: their errors average out."""
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp8": 5e-2}
"""Largest difference of the losses of `CHECKED_STEPS` steps from the reference's, nats. A wrong
optimizer is far above."""
TIMED_STEPS_MAX = 1 << 14
LAPS = 5
LAP_S = 0.02
"""Least duration of a lap. A lap of short steps, as of batched runs, has many of them."""
STEPS_PER_READ = 64


@dataclass(frozen=True, slots=True)
class _Truth:
    """Gradients in float64 and what the plain reference makes of them, for one run's shape."""

    specs: tuple[RunSpec, ...]
    tokens: list[NDArray[np.int64]]
    grads: list[Tensor]
    own_errors: dict[str, float]
    own_losses: NDArray[np.float32]


class Cases:
    """Runs cases in this process, one after the other.

    Keeps the float64 gradients of the last shape, and the engine of the best way so far.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._truths: dict[Any, _Truth] = {}
        self._kept: tuple[Any, Engine] | None = None

    def kernel_names(self, spec: RunSpec, n_runs: int) -> list[tuple[str, str]]:
        """Return operation and size of the kernels that a run uses."""
        return [(check.op, check.size) for check in self._kernel_checks(spec, n_runs)]

    def kernel(self, spec: RunSpec, n_runs: int, index: int) -> dict[str, Any]:
        """Check one of the kernels that `kernel_names` lists."""
        outcome = checks.examine(self._kernel_checks(spec, n_runs)[index])
        status = "wrong" if outcome.problem else OK
        if outcome.problem == checks.NOT_REPEATABLE:
            status = "not repeatable"
        errors = {"errors": outcome.errors, "allowed": outcome.allowed}
        return {"status": status, "reason": outcome.problem, **errors}

    def step(self, spec: RunSpec, n_runs: int, execution: ExecutionSpec) -> dict[str, Any]:
        """Check whole steps by one way against the plain reference."""
        truth = self._truth(spec, n_runs, execution)
        engine = _start(truth.specs, execution)
        saved = [engine.state(run) for run in range(n_runs)]
        squares: dict[str, list[float]] = {}
        for index, tokens in enumerate(truth.tokens):
            _load(engine, saved)
            first = _take(engine, tokens)
            if index == 0 and execution.attention in REPEATABLE_PATHS:
                _load(engine, saved)
                again = _take(engine, tokens)
                if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
                    return {"status": "not repeatable", "reason": "two steps from one state differ"}
            _add_squares(squares, engine, first[0], truth.grads[index])
        errors = _roots(squares)
        eps = torch.finfo(_half_or_single(spec)).eps
        allowed = {name: checks.tolerance(own, eps) for name, own in truth.own_errors.items()}
        figures = {"checks": {name: [errors[name], allowed[name]] for name in errors}}
        for name, error in errors.items():
            if not error <= allowed[name]:  # True for NaN
                reason = (
                    f"the gradient of {name} has a relative error of {error:.3g}; "
                    f"{allowed[name]:.3g} is accepted"
                )
                return {"status": "wrong", "reason": reason, **figures}
        losses = _losses(engine, saved, truth.tokens[0])
        gap = float(np.abs(losses - truth.own_losses).max())
        figures["loss_gap_nats"] = gap  # type: ignore[assignment]
        if not gap <= LOSS_TOLERANCE[spec.precision]:
            reason = (
                f"losses of {CHECKED_STEPS} steps differ by {gap:.3g} nats from the reference's"
            )
            return {"status": "wrong", "reason": reason, **figures}
        return {"status": OK, "reason": "", **figures}

    def speed(
        self,
        spec: RunSpec,
        n_runs: int,
        execution: ExecutionSpec,
        against: ExecutionSpec | None,
    ) -> dict[str, Any]:
        """Time steps at the run's own batch, in turns with the best way so far."""
        self._truths.clear()
        spec = replace(
            spec,
            n_steps=TIMED_STEPS_MAX,
            warmup_steps=0,
            schedule="cosine",
            decay_steps=0,
        )
        specs = tuple(replace(spec, seed=seed) for seed in range(n_runs))
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, spec.shape.vocab_size, batch_shape(specs))
        timed = {}
        if against is not None:
            other = self._engine(specs, against, is_kept=True)
            timed["against"] = other
        elif self._kept is not None:
            self._kept = None
            free_memory()
        try:
            timed["own"] = engine = self._engine(specs, execution, is_kept=False)
        except Exception as error:
            if against is None or not is_out_of_memory(error):
                raise
            # Both do not fit at once: time the new way alone.
            timed.clear()
            del other
            self._kept, against = None, None
            free_memory()
            timed["own"] = engine = self._engine(specs, execution, is_kept=False)
        laps: dict[str, list[float]] = {name: [] for name in timed}
        n_steps = {name: _steps_of_a_lap(each, tokens) for name, each in timed.items()}
        for _ in range(LAPS):
            for name, each in timed.items():
                laps[name].append(_lap_s(each, tokens, n_steps[name]) / n_steps[name])
        found = {name: 1e3 * statistics.median(times) for name, times in laps.items()}
        if against is None or found["own"] < found["against"]:
            self._kept = (_key(specs, execution), engine)
        return {
            "status": OK,
            "reason": "",
            "step_ms": found["own"],
            "laps_ms": [1e3 * lap for lap in laps["own"]],
            "against": None if against is None else way_of(against),
            "against_ms": found.get("against"),
            "micro_batch_seqs": engine.execution.micro_batch_seqs,
        }

    def _kernel_checks(self, spec: RunSpec, n_runs: int) -> list[checks.Check]:
        fields = kernel_class(spec, n_runs)
        dtype = DTYPES[fields.pop("dtype")]
        sizes = checks.Sizes(**fields)
        return list(checks.shape_checks(sizes, self.device, dtype, **KERNEL_SIZES[self.device]))

    def _truth(self, spec: RunSpec, n_runs: int, execution: ExecutionSpec) -> _Truth:
        """Return the gradients in float64, computed once for a shape."""
        key = (spec, n_runs)
        if key not in self._truths:
            self._truths.clear()
            free_memory()
            self._truths[key] = _find_truth(_odd_runs(spec, n_runs, self.device), execution)
        return self._truths[key]

    def _engine(
        self, specs: Sequence[RunSpec], execution: ExecutionSpec, *, is_kept: bool
    ) -> Engine:
        """Return a warm engine with the largest micro-batch that fits, or the kept one."""
        if is_kept and self._kept is not None and self._kept[0] == _key(specs, execution):
            return self._kept[1]
        if is_kept:
            self._kept = None
        tokens = np.zeros(batch_shape(specs), dtype=np.int64)
        execution = replace(execution, metrics_interval_steps=STEPS_PER_READ)
        while True:
            free_memory()
            smaller = smaller_micro_batch(execution, specs[0].batch_seqs)
            try:
                engine = _start(specs, execution)
                _lap_s(engine, tokens, 2)
            except Exception as error:
                if smaller is None or not is_out_of_memory(error):
                    raise
            else:
                return engine
            execution = smaller


def plain_reference(execution: ExecutionSpec, spec: RunSpec) -> ExecutionSpec:
    """Return the way that all others are compared with: eager steps of plain torch."""
    return candidates(replace(execution, step=AUTO, kernels=AUTO, attention=AUTO), spec)[-1]


def free_memory() -> None:
    """Free what earlier cases left on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _odd_runs(spec: RunSpec, n_runs: int, device: str) -> tuple[RunSpec, ...]:
    """Return short runs of the same model with an odd number of sequences and positions."""
    n_positions = max(1, (min(spec.seq_len, CHECKED_POSITIONS[device]) - 1) | 1)
    short = replace(
        spec,
        seq_len=min(n_positions, spec.seq_len),
        batch_seqs=CHECKED_SEQS,
        n_steps=4 * CHECKED_STEPS,
        grad_clip=NO_CLIP,
        warmup_steps=0,
        schedule="cosine",
        decay_steps=0,
    )
    return tuple(replace(short, seed=spec.seed + run) for run in range(n_runs))


def _find_truth(specs: tuple[RunSpec, ...], execution: ExecutionSpec) -> _Truth:
    plain = plain_reference(execution, specs[0])
    engine = _start(specs, plain)
    saved = [engine.state(run) for run in range(len(specs))]
    n_draws = 1 if engine.master.numel() > MANY_VALUES else DRAWS
    dtype = torch.float32 if _half_or_single(specs[0]) != torch.float32 else torch.float64
    tokens, grads = [], []
    squares: dict[str, list[float]] = {}
    for draw in range(n_draws):
        rng = np.random.default_rng(draw)
        batch = rng.integers(0, specs[0].shape.vocab_size, batch_shape(specs))
        _load(engine, saved)
        wide = engine.master.double()
        exact = torch.zeros_like(wide)
        wide_execution = replace(plain, attention="explicit")
        # Products of an fp8 run are exact here, too.
        plain_specs = [replace(spec, precision="fp32") for spec in specs]
        gradients = Autograd(plain_specs, wide_execution, engine.layout, wide, exact, None)
        gradients.take(torch.from_numpy(batch).to(engine.device))
        own, *_ = _take(engine, batch)
        _add_squares(squares, engine, own, exact)
        tokens.append(batch)
        grads.append(exact.to(dtype))
        del gradients, wide, exact
    return _Truth(
        specs=specs,
        tokens=tokens,
        grads=grads,
        own_errors=_roots(squares),
        own_losses=_losses(engine, saved, tokens[0]),
    )


def _start(specs: Sequence[RunSpec], execution: ExecutionSpec) -> Engine:
    engine = Engine(specs, execution)
    for run in range(len(specs)):
        engine.initialize(run)
    return engine


def _load(engine: Engine, saved: Sequence[dict[str, Any]]) -> None:
    for run, state in enumerate(saved):
        engine.load_state(run, state)


def _take(engine: Engine, tokens: NDArray[np.int64]) -> tuple[Tensor, ...]:
    """Take a step; return copies of gradients, weights, losses and norms."""
    engine.step(tokens)
    readings = engine.read()
    values = (torch.from_numpy(np.array(part)) for part in (readings.losses, readings.norms))
    return engine.grad.clone(), engine.master.clone(), *values


def _losses(
    engine: Engine, saved: Sequence[dict[str, Any]], tokens: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the losses of `CHECKED_STEPS` steps on the same tokens, shape (steps, K)."""
    _load(engine, saved)
    losses = []
    for _ in range(CHECKED_STEPS):
        engine.step(tokens)
        losses.append(np.array(engine.read().losses[0]))
    return np.stack(losses)


def _add_squares(
    squares: dict[str, list[float]], engine: Engine, grad: Tensor, exact: Tensor
) -> None:
    """Add the squared error and the squared norm of the gradient of each kind of weight."""
    found, wanted = engine.layout.views(grad), engine.layout.views(exact)
    for name, value in found.items():
        sums = squares.setdefault(name.rpartition(".")[2], [0.0, 0.0])
        is_finite = bool(value.isfinite().all())
        apart = float((value.double() - wanted[name].double()).square().sum())
        sums[0] += apart if is_finite else math.inf
        sums[1] += float(wanted[name].double().square().sum())


def _roots(squares: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: math.sqrt(apart / (size or 1.0)) for name, (apart, size) in squares.items()}


def _half_or_single(spec: RunSpec) -> torch.dtype:
    return DTYPES[kernel_class(spec, 1)["dtype"]]


def _steps_of_a_lap(engine: Engine, tokens: NDArray[np.int64]) -> int:
    alone = _lap_s(engine, tokens, 1)
    return max(1, min(STEPS_PER_READ, math.ceil(LAP_S / max(alone, 1e-6))))


def _lap_s(engine: Engine, tokens: NDArray[np.int64], n_steps: int) -> float:
    """Return the seconds of some steps and of reading their losses, which waits for the device."""
    started = time.perf_counter()
    for _ in range(n_steps):
        engine.step(tokens)
    engine.read()
    return time.perf_counter() - started


def _key(specs: Sequence[RunSpec], execution: ExecutionSpec) -> Any:
    return tuple(specs), tuple(way_of(execution).values())

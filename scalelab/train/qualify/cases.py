"""The cases of a qualification, as the child process runs them: kernels, whole steps, speed.

A whole step is checked at the run's shape and dtype, with an odd number of sequences and positions.
Its gradients follow the rule of `scalelab_kernels.accuracy`, pooled over the layers for each kind
of weight: at most twice the error of the plain reference, plus the rounding of the dtype, against
the same model in float64. The losses of `CHECKED_STEPS` steps stay close to the reference's, and a
step that is repeated from the same state has the same bits (except with an attention that never
does, which can only be asked for by name). Speed is measured at the run's own batch.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scalelab_kernels import accuracy, checks
from scalelab_kernels.operations import REPEATABLE_PATHS

from scalelab.records.qualification import OK, kernel_class, way_of
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.engine import Engine
from scalelab.train.execution import is_out_of_memory, smaller_micro_batch
from scalelab.train.precision import DTYPES
from scalelab.train.qualify.steps import (
    Truth,
    add_squares,
    find_truth,
    gap_reason,
    half_or_single,
    is_same,
    load_states,
    losses_from,
    odd_runs,
    plain_reference,
    roots,
    start_engine,
    take_losses,
    take_step,
    tokens_of,
)

KERNEL_SIZES = {
    "cuda": {"n_rows": 1003, "n_positions": 257, "n_weights": 100_003},
    "cpu": {"n_rows": 3, "n_positions": 5, "n_weights": 65},
}
TIMED_STEPS_MAX = 1 << 14
LAPS, LAPS_MIN, LAPS_S = 5, 2, 3.0
"""Most and fewest laps, and the seconds after which no more than the fewest are made."""
REFERENCE_S = 4.0
"""Seconds after which the reference takes no further step at the run's own batch: on a large model
its attention is slow, and the other ways need the time."""
LAP_S = 0.02
"""Least duration of a lap. A lap of short steps, as of batched runs, has many of them."""
STEPS_PER_READ = 64


class Cases:
    """Runs cases in this process, one after the other.

    Keeps the float64 gradients of the last shape, and the engine of the best way so far.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._known: tuple[Any, Truth] | None = None
        self._losses: dict[tuple[RunSpec, ...], NDArray[np.float32]] = {}
        self._kept: tuple[Any, Engine] | None = None
        self._loss_limit = 0.0

    def kernel_names(self, spec: RunSpec, n_runs: int) -> list[tuple[str, str]]:
        """Return operation and size of the kernels that a run uses."""
        return [(check.op, check.size) for check in self._kernel_checks(spec, n_runs)]

    def kernel(self, spec: RunSpec, n_runs: int, index: int) -> dict[str, Any]:
        """Check one of the kernels that `kernel_names` lists."""
        outcome = accuracy.examine(self._kernel_checks(spec, n_runs)[index])
        status = "wrong" if outcome.problem else OK
        if outcome.problem == accuracy.NOT_REPEATABLE:
            status = "not repeatable"
        errors = {"errors": outcome.errors, "allowed": outcome.allowed}
        return {"status": status, "reason": outcome.problem, **errors}

    def step(self, spec: RunSpec, n_runs: int, execution: ExecutionSpec) -> dict[str, Any]:
        """Check whole steps by one way against the plain reference."""
        truth = self._truth(spec, n_runs, execution)
        engine = start_engine(truth.specs, execution)
        saved = [engine.state(run) for run in range(n_runs)]
        squares: dict[str, list[float]] = {}
        for index, tokens in enumerate(truth.tokens):
            load_states(engine, saved)
            first = take_step(engine, tokens)
            if index == 0 and execution.attention in REPEATABLE_PATHS:
                load_states(engine, saved)
                again = take_step(engine, tokens)
                if not all(map(is_same, first, again)):
                    return {"status": "not repeatable", "reason": "two steps from one state differ"}
            add_squares(squares, engine, first[0], truth.grads[index])
        errors = roots(squares)
        eps = torch.finfo(half_or_single(spec)).eps
        allowed = {name: accuracy.tolerance(own, eps) for name, own in truth.own_errors.items()}
        figures: dict[str, Any] = {
            "checks": {name: [errors[name], allowed[name]] for name in errors}
        }
        for name, error in errors.items():
            if not error <= allowed[name]:  # True for NaN
                reason = (
                    f"the gradient of {name} has a relative error of {error:.3g}; "
                    f"{allowed[name]:.3g} is accepted"
                )
                return {"status": "wrong", "reason": reason, **figures}
        losses = losses_from(engine, saved, truth.tokens[0])
        gap = float(np.abs(losses - truth.own_losses).max())
        figures["loss_gap_nats"] = [gap, truth.loss_limit]
        self._loss_limit = truth.loss_limit
        if not gap <= truth.loss_limit:
            return {"status": "wrong", "reason": gap_reason(gap), **figures}
        return {"status": OK, "reason": "", **figures}

    def speed(
        self,
        spec: RunSpec,
        n_runs: int,
        execution: ExecutionSpec,
        against: ExecutionSpec | None,
    ) -> dict[str, Any]:
        """Time steps at the run's own batch, in turns with the best way so far.

        The losses of the first steps are compared with the reference's: at these sizes Triton may
        compile a kernel in another way than at odd ones.
        """
        spec = replace(
            spec, n_steps=TIMED_STEPS_MAX, warmup_steps=0, schedule="cosine", decay_steps=0
        )
        specs = tuple(replace(spec, seed=seed) for seed in range(n_runs))
        expected = self._reference_losses(specs, execution)
        timed: dict[str, Engine] = {}
        if against is not None:
            timed["against"] = self._kept_engine(specs, against)
        else:
            self._kept = None
        try:
            engine, losses = self._engine(specs, execution)
        except Exception as error:
            if against is None or not is_out_of_memory(error):
                raise
            # Both do not fit at once: time the new way alone.
            timed.clear()
            self._kept, against = None, None
            engine, losses = self._engine(specs, execution)
        gap = float(np.abs(losses[: len(expected)] - expected).max())
        if not gap <= self._loss_limit:
            return {"status": "wrong", "reason": gap_reason(gap)}
        timed["own"] = engine
        tokens = tokens_of(specs)
        laps: dict[str, list[float]] = {name: [] for name in timed}
        n_steps = {name: _steps_of_a_lap(each, tokens) for name, each in timed.items()}
        started = time.perf_counter()
        for lap in range(LAPS):
            if lap >= LAPS_MIN and time.perf_counter() - started > LAPS_S:
                break
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

    def _kernel_checks(self, spec: RunSpec, n_runs: int) -> list[accuracy.Check]:
        fields = kernel_class(spec, n_runs)
        dtype = DTYPES[fields.pop("dtype")]
        sizes = checks.Sizes(**fields)
        return list(checks.shape_checks(sizes, self.device, dtype, **KERNEL_SIZES[self.device]))

    def _truth(self, spec: RunSpec, n_runs: int, execution: ExecutionSpec) -> Truth:
        """Return the gradients in float64, computed once for a shape."""
        key = (spec, n_runs)
        if self._known is None or self._known[0] != key:
            self._known, self._kept = None, None
            free_memory()
            specs = odd_runs(spec, n_runs, self.device)
            self._known = key, find_truth(specs, execution)
        return self._known[1]

    def _reference_losses(
        self, specs: tuple[RunSpec, ...], execution: ExecutionSpec
    ) -> NDArray[np.float32]:
        """Return the reference's losses at the run's own batch, computed once for a shape."""
        if specs not in self._losses:
            plain = plain_reference(execution, specs[0])
            self._losses = {specs: self._engine(specs, plain, enough_s=REFERENCE_S)[1]}
        return self._losses[specs]

    def _kept_engine(self, specs: tuple[RunSpec, ...], execution: ExecutionSpec) -> Engine:
        """Return the engine of the best way so far, which a new child must build again."""
        if self._kept is None or self._kept[0] != _key(specs, execution):
            self._kept = None
            self._kept = _key(specs, execution), self._engine(specs, execution)[0]
        return self._kept[1]

    def _engine(
        self,
        specs: tuple[RunSpec, ...],
        execution: ExecutionSpec,
        enough_s: float = math.inf,
    ) -> tuple[Engine, NDArray[np.float32]]:
        """Return an engine with the largest micro-batch that fits, and its first losses."""
        execution = replace(execution, metrics_interval_steps=STEPS_PER_READ)
        while True:
            free_memory()
            try:
                engine = start_engine(specs, execution)
                return engine, take_losses(engine, tokens_of(specs), enough_s)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                smaller = smaller_micro_batch(execution, specs[0].batch_seqs)
                if self._known is None and smaller is None:
                    raise
            # Outside the handler, whose error holds the tensors of the step.
            if self._known is not None:
                self._known = None
            elif smaller is not None:
                execution = smaller


def free_memory() -> None:
    """Free what earlier cases left on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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

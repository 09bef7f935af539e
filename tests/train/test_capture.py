"""A captured step, emulated on a CPU: it never waits for the host, and has the eager losses."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
import torch
from torch import Tensor

from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import ModelShape
from scalelab.train import engine as engines
from scalelab.train import execution as executions
from scalelab.train import muon
from scalelab.train.calibrate import synthetic_run
from scalelab.train.engine import Engine, batch_shape
from tests.train.capture import Capture, CaptureError, emulate

N_STEPS = 3
DENSE = ModelShape(n_layers=2, d_model=16, n_heads=2, d_head=8, d_ff=24, vocab_size=61)
FULL = replace(DENSE, n_layers=1, n_kv_heads=1, is_tied=True, has_qk_norm=True)
WIDE = replace(FULL, d_model=128, d_head=64, d_ff=64, vocab_size=128)
"""A shape with products in fp8."""
EXPERTS = replace(DENSE, n_layers=1, n_experts=4, n_active_experts=2)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Capture]]:
    with np.errstate(over="ignore", under="ignore"):
        yield emulate(monkeypatch)


def run_of(shape: ModelShape = DENSE, **changes: Any) -> RunSpec:
    plain = synthetic_run(shape, seq_len=8, batch_seqs=4)
    changes = {"n_steps": N_STEPS, "warmup_steps": 1, "precision": "bf16", **changes}
    return replace(plain, **changes)


def train(specs: list[RunSpec], execution: ExecutionSpec, resumes_at: int) -> tuple[Any, Any]:
    """Take the steps from ``resumes_at`` to the end; return the readings and states."""
    engine = Engine(specs, execution)
    rng = np.random.default_rng(0)
    for run in range(len(specs)):
        engine.initialize(run)
        # As after a restart: a run that has taken these steps before.
        engine.load_state(run, {**engine.state(run), "step": resumes_at})
    for _ in range(resumes_at, specs[0].n_steps):
        engine.step(rng.integers(0, 61, batch_shape(specs)))
    read = engine.read()
    return np.stack((read.losses, read.norms)), [engine.state(k) for k in range(len(specs))]


def check(spec: RunSpec, execution: ExecutionSpec, resumes_at: int = 0) -> None:
    """Compare the captured with the eager step, bit by bit."""
    n_runs = execution.batched_runs
    specs = [replace(spec, seed=seed, lr=1e-3 * (seed + 1)) for seed in range(n_runs)]
    found, states = train(specs, replace(execution, step="graph"), resumes_at)
    expected, expected_states = train(specs, execution, resumes_at)
    np.testing.assert_array_equal(found, expected)
    for state, other in zip(states, expected_states, strict=True):
        assert state["step"] == other["step"] == spec.n_steps
        for name, value in state.items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(value, other[name], rtol=0, atol=0)


ONE = {"n_steps": 1, "warmup_steps": 0}
LAST = {"resumes_at": N_STEPS - 1}
REFERENCE_CASES = {
    "plain": (run_of(), {}),
    "resume at the last step": (run_of(), LAST),
    "one step": (run_of(**ONE), {}),
    "all parts of a dense model": (run_of(FULL, z_loss=1e-4, ema_decay=0.9), {}),
    "micro-batches": (run_of(), {"micro_batch_seqs": 3}),
    "muon": (run_of(optimizer="muon"), {}),
    "mup": (run_of(parametrization="mup"), LAST),
    "batched completep with muon": (
        run_of(parametrization="completep", optimizer="muon"),
        {"batched_runs": 2},
    ),
    "batched": (run_of(), {"batched_runs": 2}),
    "batched, one step": (run_of(**ONE), {"batched_runs": 2}),
    "batched muon, micro-batches": (
        run_of(optimizer="muon", ema_decay=0.9),
        {"batched_runs": 2, "micro_batch_seqs": 2, **LAST},
    ),
    "batched mup": (
        run_of(FULL, parametrization="mup", z_loss=1e-4),
        {"batched_runs": 2, "micro_batch_seqs": 3},
    ),
    "fp8, muon, micro-batches": (
        run_of(WIDE, precision="fp8", optimizer="muon", z_loss=1e-4),
        {"micro_batch_seqs": 3},
    ),
}
PAIR = {"batched_runs": 2, "attention": "explicit"}
"""Interpreted attention takes the most time; the first two cases have it."""
TRITON_CASES = {
    "all parts of a dense model": (run_of(FULL, z_loss=1e-4, ema_decay=0.9, n_steps=2), {}),
    "resume at the last step, micro-batches": (
        replace(run_of(), shape=replace(DENSE, n_layers=1)),
        {"micro_batch_seqs": 3, **LAST},
    ),
    "batched muon, one step": (run_of(FULL, optimizer="muon", **ONE), PAIR),
    "batched mup, one step": (run_of(FULL, parametrization="mup", **ONE), PAIR),
    "batched experts": (run_of(EXPERTS, ema_decay=0.9, **ONE), PAIR),
}


@pytest.mark.parametrize("case", REFERENCE_CASES)
def test_a_captured_step_needs_no_host_and_has_the_eager_bits(
    captures: list[Capture], case: str
) -> None:
    spec, settings = REFERENCE_CASES[case]
    settings = dict(settings)
    check(spec, resumes_at=settings.pop("resumes_at", 0), execution=ExecutionSpec(**settings))
    assert len(captures) == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", TRITON_CASES)
def test_a_captured_step_of_kernels_needs_no_host_and_has_the_eager_bits(
    captures: list[Capture], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    # Five interpreted Newton-Schulz steps take half a minute.
    monkeypatch.setattr(muon, "NEWTON_SCHULZ_STEPS", 1)
    spec, settings = TRITON_CASES[case]
    settings = {"kernels": "triton", "attention": "triton", **settings}
    monkeypatch.setattr(engines, "GRAPH_WARMUP_STEPS", 1)
    check(spec, resumes_at=settings.pop("resumes_at", 0), execution=ExecutionSpec(**settings))
    assert len(captures) == 1


def test_a_step_that_waits_for_the_host_is_refused(
    captures: list[Capture], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = (
        lambda engine: engine.steps.tolist(),
        lambda engine: float(engine.steps[0]),
        lambda engine: engine.grad.cpu(),
        lambda engine: engine.grad.nonzero(),
        lambda engine: engine.grad[engine.grad > 0],
        lambda engine: torch.tensor(1.0),
    )
    for wait in waits:
        monkeypatch.setattr(Engine, "_average", lambda self, ema, wait=wait: wait(self))
        with pytest.raises(CaptureError, match="waits"):
            Engine([run_of(ema_decay=0.9)], ExecutionSpec(step="graph"))


def test_experts_of_the_reference_wait_for_the_host(captures: list[Capture]) -> None:
    with pytest.raises(CaptureError, match="waits"):
        Engine([run_of(EXPERTS)], ExecutionSpec(step="graph"))


def test_a_rehearsal_of_a_run_of_one_step_captures_it(captures: list[Capture]) -> None:
    execution = ExecutionSpec(step="graph")
    assert executions.fitting_execution([run_of(n_steps=1, warmup_steps=0)], execution) == execution
    assert len(captures) == 1


def test_a_capture_leaves_no_graph_of_autograd_alive(captures: list[Capture]) -> None:
    # torch warns when a later graph meets the nodes of one from another stream.
    before = weakref.WeakSet(on_a_graph())
    engine = Engine([run_of()], ExecutionSpec(step="graph"))
    engine.step(np.zeros(batch_shape(engine.specs), dtype=np.int64))
    captures.clear()
    engine._graph = None
    # Tests before this one may have left some.
    assert not [tensor for tensor in on_a_graph() if not any(tensor is old for old in before)]


def on_a_graph() -> list[Tensor]:
    """Return the tensors of this process that an operation of autograd made."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
    return [tensor for tensor in tensors if tensor.grad_fn is not None]


def test_a_capture_starts_and_ends_at_step_0_and_copies_no_state(
    captures: list[Capture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "state", lambda self, run: pytest.fail("copied the state"))
    engine = Engine([run_of(ema_decay=0.9)], ExecutionSpec(step="graph"))
    for buffer in (engine.master, engine.exp_avg, engine.exp_avg_sq, engine.ema, engine.copy):
        assert buffer is not None
        assert not buffer.any()
    assert engine.steps.tolist() == engine._slot.tolist() == [0]


def test_gradients_are_copied_in_one_call_for_each_dtype(captures: list[Capture]) -> None:
    Engine([run_of(FULL)], ExecutionSpec(step="graph"))
    (capture,) = captures
    assert capture.names.count("aten::_foreach_copy_") == 2

"""Tests that need a CUDA device: ``pytest -m gpu tests/train``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.corpus.dataset import Dataset
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.bench import bench_train
from scalelab.train.engine import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ON_GPU = ExecutionSpec(device="cuda", attention="sdpa", metrics_interval_steps=8)


def losses(
    specs: list[RunSpec], execution: ExecutionSpec, dataset: Dataset, stop_at: int | None = None
) -> Any:
    """Train 8 steps; if ``stop_at`` is given, save and reload the state there."""

    def batch(step: int) -> Any:
        parts = [dataset.batch(s.seed, step, s.batch_seqs, s.seq_len) for s in specs]
        return parts[0] if len(parts) == 1 else np.stack(parts)

    engine = Engine(specs, execution)
    for run in range(len(specs)):
        engine.initialize(run)
    found = []
    for step in range(8):
        if step == stop_at:
            states = [engine.state(run) for run in range(len(specs))]
            engine = Engine(specs, execution)
            for run, state in enumerate(states):
                engine.load_state(run, state)
        engine.step(batch(step))
        found.append(engine.read().losses[0])
    return np.array(found)


@pytest.fixture
def specs(spec: RunSpec) -> list[RunSpec]:
    return [spec, replace(spec, seed=4, lr=0.003), replace(spec, seed=5)]


@pytest.mark.parametrize("n_runs", [1, 3])
def test_a_captured_step_has_the_eager_losses(
    specs: list[RunSpec], dataset: Dataset, n_runs: int
) -> None:
    eager = losses(specs[:n_runs], ON_GPU, dataset)
    captured = losses(specs[:n_runs], replace(ON_GPU, step="graph"), dataset)
    np.testing.assert_allclose(captured, eager, rtol=1e-5)


@pytest.mark.parametrize("step", ["eager", "graph"])
@pytest.mark.parametrize("n_runs", [1, 3])
def test_resuming_changes_no_bit(
    specs: list[RunSpec], dataset: Dataset, step: str, n_runs: int
) -> None:
    execution = replace(ON_GPU, step=step)
    straight = losses(specs[:n_runs], execution, dataset)
    for stop_at in (1, 3, 7):
        again = losses(specs[:n_runs], execution, dataset, stop_at)
        np.testing.assert_array_equal(again, straight)


def test_the_device_does_not_change_the_run(specs: list[RunSpec], dataset: Dataset) -> None:
    on_cpu = losses(specs[:1], replace(ON_GPU, device="cpu"), dataset)
    np.testing.assert_allclose(losses(specs[:1], ON_GPU, dataset), on_cpu, rtol=1e-4)


@pytest.mark.parametrize("step", ["eager", "graph"])
def test_kernels_and_references_have_equal_losses(
    specs: list[RunSpec], dataset: Dataset, step: str
) -> None:
    plain = losses(specs[:1], ON_GPU, dataset)
    fused = losses(specs[:1], replace(ON_GPU, kernels="triton", step=step), dataset)
    np.testing.assert_allclose(fused, plain, rtol=1e-4)


def test_utilisation_is_a_share(specs: list[RunSpec]) -> None:
    run = replace(specs[0], precision="bf16")
    found = bench_train(run, replace(ON_GPU, step="graph"), seconds=0.1)
    assert 0 < found["mfu"] < 1

"""Runs in fp8, on the CPU, where `torch._scaled_mm` computes the products of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scalelab.corpus.dataset import Dataset
from scalelab.errors import UsageError
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import ModelShape
from scalelab.train import worker
from scalelab.train.engine import Engine
from scalelab.train.precision import require_precision_here

# Every weight of this shape is in fp8.
SHAPE = ModelShape(
    n_layers=1, d_model=128, n_heads=2, d_head=64, d_ff=128, vocab_size=122, n_kv_heads=1
)


@pytest.fixture
def run(spec: RunSpec) -> RunSpec:
    return replace(spec, shape=SHAPE, precision="fp8", lr=0.003, n_steps=12, ema_decay=0.9)


def steps_of(engine: Engine, dataset: Dataset, begin: int, end: int) -> NDArray[np.float32]:
    found = []
    for step in range(begin, end):
        spec = engine.specs[0]
        engine.step(dataset.batch(spec.seed, step, spec.batch_seqs, spec.seq_len))
        found.append(engine.read().losses[:, 0])
    return np.concatenate(found)


def started(spec: RunSpec, execution: ExecutionSpec) -> Engine:
    engine = Engine([spec], execution)
    engine.initialize(0)
    return engine


@pytest.mark.parametrize("fields", [{}, {"optimizer": "muon"}, {"parametrization": "mup"}])
def test_a_run_in_fp8_has_the_losses_of_bf16_to_the_rounding_of_fp8(
    run: RunSpec, execution: ExecutionSpec, dataset: Dataset, fields: dict[str, str]
) -> None:
    run = replace(run, z_loss=1e-4, **fields)  # type: ignore[arg-type]
    losses = {
        precision: steps_of(
            started(replace(run, precision=precision), execution), dataset, 0, run.n_steps
        )
        for precision in ("fp32", "bf16", "fp8")
    }
    assert losses["fp8"][-1] < losses["fp8"][0] - 0.2
    error = {p: np.abs(losses[p] - losses["fp32"]).mean() for p in ("bf16", "fp8")}
    # The second shows that products are in fp8.
    assert error["bf16"] < error["fp8"] < 0.04


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    run: RunSpec, execution: ExecutionSpec, dataset: Dataset
) -> None:
    whole = started(run, execution)
    expected = steps_of(whole, dataset, 0, 6)
    first = started(run, execution)
    steps_of(first, dataset, 0, 3)
    second = Engine([run], execution)
    second.load_state(0, first.state(0))
    assert steps_of(second, dataset, 3, 6).tolist() == expected[3:].tolist()
    for name, value in whole.state(0).items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(second.state(0)[name])), name
    held_out = dataset.batch(9, 0, 4, run.seq_len)
    np.testing.assert_array_equal(whole.evaluate(0, held_out), second.evaluate(0, held_out))


def test_micro_batches_change_the_gradient_less_than_fp8_does(
    run: RunSpec, execution: ExecutionSpec, dataset: Dataset
) -> None:
    """The scales of a smaller part of the batch are other powers of two, which round alike."""
    tokens = torch.from_numpy(dataset.batch(1, 0, run.batch_seqs, run.seq_len))

    def gradient(precision: str, micro_batch_seqs: int = 0) -> torch.Tensor:
        how = replace(execution, micro_batch_seqs=micro_batch_seqs)
        engine = started(replace(run, precision=precision), how)
        engine.gradients.take(tokens)
        return engine.grad

    whole = gradient("fp8")
    of_fp8 = (whole - gradient("fp32")).norm()
    assert 0 < (gradient("fp8", 4) - whole).norm() < 0.2 * of_fp8


def test_batched_runs_in_fp8_are_an_error(run: RunSpec, execution: ExecutionSpec) -> None:
    with pytest.raises(UsageError, match="2 batched runs in fp8"):
        Engine([run, replace(run, seed=9)], execution)


def test_an_attempt_on_a_cpu_fails_with_the_reason(
    make_run: Callable[..., RunDir], dataset: Dataset, execution: ExecutionSpec
) -> None:
    run = make_run(shape=SHAPE, precision="fp8")
    assert worker.run_batched([run.path], dataset.folder, execution) == ("failed",)
    (attempt,) = run.attempts()
    assert "precision = fp8 on cpu" in attempt.read_note()["ended"]["reason"]


@pytest.mark.parametrize(
    ("capability", "is_able"), [((8, 0), False), ((8, 9), True), ((9, 0), True)]
)
def test_the_worker_asks_the_device(
    run: RunSpec, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], is_able: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    if is_able:
        require_precision_here(run, "cuda")
    else:
        with pytest.raises(UsageError, match=r"fp8 on 'NVIDIA X'.*8\.9"):
            require_precision_here(run, "cuda")

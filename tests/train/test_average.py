"""The weight average: its loss is recorded in addition to the loss of the run's own weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.corpus.dataset import Dataset
from scalelab.errors import SpecError, UsageError
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.engine import EMA_START_STEPS, Engine
from tests.train.outcome import curve, result

DECAY = 0.8


def trained(specs: list[RunSpec], dataset: Dataset, execution: ExecutionSpec) -> Any:
    """Return an engine after 12 steps, and the weights of each run after each step."""
    engine = Engine(specs, execution)
    for run in range(len(specs)):
        engine.initialize(run)
    weights = [engine.master.clone()]
    for step in range(12):
        batches = [dataset.batch(s.seed, step, s.batch_seqs, s.seq_len) for s in specs]
        engine.step(batches[0] if len(specs) == 1 else np.stack(batches))
        weights.append(engine.master.clone())
    return engine, weights


@pytest.mark.parametrize("step", ["eager", "direct"])
@pytest.mark.parametrize("n_runs", [1, 3])
def test_the_average_is_the_recurrence_over_the_weights_of_all_steps(
    spec: RunSpec, dataset: Dataset, step: str, n_runs: int
) -> None:
    specs = [replace(spec, seed=seed, ema_decay=DECAY) for seed in range(n_runs)]
    engine, weights = trained(specs, dataset, ExecutionSpec(step=step, metrics_interval_steps=12))
    expected = weights[0].double()
    for number, found in enumerate(weights[1:], 1):
        decay = min(DECAY, (1 + number) / (EMA_START_STEPS + number))
        expected = decay * expected + (1 - decay) * found.double()
    torch.testing.assert_close(engine.ema.double(), expected, rtol=1e-5, atol=1e-7)


def test_evaluating_the_average_does_not_change_the_weights(
    spec: RunSpec, dataset: Dataset, execution: ExecutionSpec
) -> None:
    spec = replace(spec, ema_decay=DECAY, precision="bf16")
    engine, _ = trained([spec], dataset, replace(execution, metrics_interval_steps=12))
    sequences = dataset.eval_sequences(spec.seq_len)
    own = engine.evaluate(0, sequences)
    average = engine.evaluate_average(0, sequences)
    assert not np.array_equal(average, own)
    assert np.array_equal(engine.evaluate(0, sequences), own)
    # With the average as the run's own weights, the losses are the same.
    other = Engine([spec], execution)
    other.load_state(0, {**engine.state(0), "master": engine.ema})
    assert np.array_equal(other.evaluate(0, sequences), average)


def test_the_record_holds_both_losses_and_resume_changes_no_bit(
    make_run: Callable[..., RunDir], attempt_at: Callable[..., str]
) -> None:
    plain = make_run("plain")
    straight, stopped = (make_run(group, ema_decay=DECAY) for group in ("straight", "stopped"))
    assert attempt_at(plain) == attempt_at(straight) == "done"
    assert plain.run_id != straight.run_id
    assert result(plain).ema_loss_nats is None
    assert result(straight).loss_nats == result(plain).loss_nats
    assert result(straight).ema_loss_nats not in (None, result(straight).loss_nats)
    assert attempt_at(stopped, stop_at=13) == "preempted"
    assert attempt_at(stopped) == "done"
    assert curve(stopped) == curve(straight)
    assert result(stopped).ema_loss_nats == result(straight).ema_loss_nats


def test_runs_with_and_without_an_average_are_not_batched(
    spec: RunSpec, execution: ExecutionSpec
) -> None:
    with pytest.raises(UsageError, match="ema_decay"):
        Engine([spec, replace(spec, ema_decay=DECAY)], execution)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_an_invalid_decay_is_an_error(spec: RunSpec, decay: float) -> None:
    with pytest.raises(SpecError, match="ema_decay"):
        replace(spec, ema_decay=decay)

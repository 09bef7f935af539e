"""Different executions of a step give the same results."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scalelab_kernels.reference import rope_tables

from scalelab.corpus.dataset import Dataset
from scalelab.errors import UsageError
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import PRECISIONS, RunSpec
from scalelab.train import engine as engines
from scalelab.train import model
from scalelab.train.engine import Engine, Readings, learning_rates
from scalelab.train.gradients import Autograd


def train(engine: Engine, dataset: Dataset, steps: range) -> Readings:
    spec = engine.specs[0]
    for step in steps:
        engine.step(dataset.batch(spec.seed, step, spec.batch_seqs, spec.seq_len))
    return engine.read()


def fresh(spec: RunSpec, execution: ExecutionSpec) -> Engine:
    engine = Engine([spec], execution)
    engine.initialize(0)
    return engine


@pytest.mark.parametrize("micro", [1, 2, 3, 4])
def test_accumulated_micro_batches_equal_one_batch(
    spec: RunSpec, execution: ExecutionSpec, dataset: Dataset, micro: int
) -> None:
    whole = train(fresh(spec, execution), dataset, range(4))
    parts = train(fresh(spec, replace(execution, micro_batch_seqs=micro)), dataset, range(4))
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-5)
    np.testing.assert_allclose(parts.norms, whole.norms, rtol=1e-4)
    assert whole.micro_squares is None
    assert parts.micro_squares is not None
    assert (parts.micro_squares > whole.norms**2).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"is_tied": True},
        {"has_qk_norm": False},
        {"n_kv_heads": 2},
        {"n_experts": 3, "n_active_experts": 1},
        {"n_experts": 3, "n_active_experts": 1, "d_shared_expert": 8},
    ],
)
def test_all_kinds_of_models_learn(
    spec: RunSpec, execution: ExecutionSpec, dataset: Dataset, fields: dict[str, Any]
) -> None:
    run = replace(spec, shape=replace(spec.shape, **fields), lr=0.02)
    engine = fresh(run, replace(execution, metrics_interval_steps=30))
    losses = train(engine, dataset, range(30)).losses[:, 0]
    assert losses[0] == pytest.approx(np.log(61), abs=0.8)
    assert losses[-1] < np.log(61) - 0.2


def test_both_attention_paths_agree(
    spec: RunSpec, execution: ExecutionSpec, dataset: Dataset
) -> None:
    found = [
        train(fresh(spec, replace(execution, attention=path)), dataset, range(4)).losses
        for path in ("explicit", "sdpa")
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_half_precision_products_are_close_to_fp32(
    spec: RunSpec, execution: ExecutionSpec, dataset: Dataset
) -> None:
    """Products of 8 bits; later steps differ more, because Adam's first ones follow signs."""
    found = [
        train(fresh(replace(spec, precision=kind), execution), dataset, range(2)).losses
        for kind in PRECISIONS
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=2**-8)
    assert (found[0] != found[1]).any()


def test_vocabulary_padding_is_neither_a_target_nor_trained(
    spec: RunSpec, execution: ExecutionSpec, dataset: Dataset
) -> None:
    engine = fresh(spec, execution)
    train(engine, dataset, range(4))
    for name in ("head", "embedding"):
        assert engine.gradients.leaves[name].shape == (64, 16)
        assert not engine.gradients.leaves[name][61:].any()


def test_the_evaluation_is_the_mean_over_each_sequence(
    spec: RunSpec, execution: ExecutionSpec, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fresh(spec, execution)
    sequences = dataset.eval_sequences(spec.seq_len)[:20]
    found = engine.evaluate(0, sequences)
    with torch.no_grad():
        each = engine.gradients.model.token_losses(torch.from_numpy(sequences)).double()
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, each.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found.mean(), np.log(61), atol=0.8)


def test_the_learning_rates_end_as_in_the_spec(spec: RunSpec) -> None:
    rates = learning_rates(spec)
    assert len(rates) == spec.n_steps
    assert max(rates) == pytest.approx(spec.lr)
    assert rates[-1] == pytest.approx(spec.lr * spec.lr_end_ratio)
    assert rates[0] == pytest.approx(spec.lr / spec.warmup_steps)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "graph"},
        {"step": "nonsense"},
        {"kernels": "nonsense"},
        {"attention": "nonsense"},
        *([] if torch.cuda.is_available() else [{"device": "cuda"}]),
    ],
)
def test_an_impossible_execution_is_an_error(
    spec: RunSpec, execution: ExecutionSpec, change: dict[str, str]
) -> None:
    with pytest.raises(UsageError):
        Engine([spec], replace(execution, **change))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("default")
def test_compiled_steps_agree_with_eager_ones_and_resume_to_the_same_bits(
    spec: RunSpec, execution: ExecutionSpec, dataset: Dataset
) -> None:
    spec = replace(spec, shape=replace(spec.shape, n_layers=1))
    eager = train(fresh(spec, execution), dataset, range(4))
    compiled = replace(execution, step="compiled")
    straight = fresh(spec, compiled)
    found = train(straight, dataset, range(4))
    np.testing.assert_allclose(found.losses, eager.losses, rtol=1e-5)
    states, losses = {}, {}
    for step in range(4, spec.n_steps):
        states[step] = straight.state(0)
        losses[step] = train(straight, dataset, range(step, step + 1)).losses
    end = straight.state(0)
    resumed = Engine([spec], compiled)
    for step in random.Random(5).sample(sorted(states), 20):
        resumed.load_state(0, states[step])
        for later in range(step, spec.n_steps):
            found = train(resumed, dataset, range(later, later + 1))
            np.testing.assert_array_equal(found.losses, losses[later])
        assert torch.equal(resumed.master, straight.master)
        assert torch.equal(resumed.state(0)["exp_avg_sq"], end["exp_avg_sq"])


@pytest.mark.parametrize("n_experts", [0, 4])
def test_each_residual_addition_is_part_of_a_norm(
    spec: RunSpec, execution: ExecutionSpec, n_experts: int
) -> None:
    shape = replace(spec.shape, n_experts=n_experts, n_active_experts=n_experts // 2)
    gradients = fresh(replace(spec, shape=shape), execution).gradients
    assert isinstance(gradients, Autograd)
    called: list[str] = []

    def counted(name: str) -> Any:
        operation = getattr(gradients.ops, name)

        def call(*arguments: Any) -> Any:
            called.append(name)
            return operation(*arguments)

        return call

    names = ("rms_norm", "add_rms_norm")
    gradients.model.ops = replace(gradients.ops, **{name: counted(name) for name in names})
    gradients.model.hidden(torch.zeros(1, spec.seq_len, dtype=torch.int64))
    assert called == ["rms_norm", *["add_rms_norm"] * 2 * shape.n_layers]


def test_an_evaluation_builds_the_rope_tables_once(
    spec: RunSpec, execution: ExecutionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(n_positions: int, head_dim: int, **settings: Any) -> Any:
        made.append(n_positions)
        return rope_tables(n_positions, head_dim, **settings)

    engine = fresh(spec, execution)
    monkeypatch.setattr(model, "rope_tables", counted)
    monkeypatch.setitem(engines.EVAL_TOKENS_PER_BATCH, "cpu", 40)
    # A length that no other test uses: the decoders of a process share their tables.
    engine.evaluate(0, np.zeros((6, 38), dtype=np.int64))
    assert made == [37]


@pytest.mark.parametrize(
    ("kernels", "capability", "is_possible"),
    [
        ("triton", (9, 0), True),
        ("triton", (10, 0), True),
        ("triton", (8, 0), False),
        ("triton", (12, 0), False),
        ("reference", (9, 0), False),
    ],
)
def test_experts_take_a_graph_where_their_products_do_not_wait_for_the_host(
    spec: RunSpec,
    monkeypatch: pytest.MonkeyPatch,
    kernels: str,
    capability: tuple[int, int],
    is_possible: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    run = replace(spec, shape=replace(spec.shape, n_experts=4, n_active_experts=2))
    way = ExecutionSpec(device="cuda", step="graph", kernels=kernels, attention="sdpa")
    if is_possible:
        engines._require_possible([run], way)
        return
    with pytest.raises(UsageError, match="grouped matmul does not wait"):
        engines._require_possible([run], way)


@pytest.mark.parametrize("attention", engines.HALF_ATTENTIONS)
def test_attention_without_fp32_kernels_is_refused_for_fp32(spec: RunSpec, attention: str) -> None:
    with pytest.raises(UsageError, match="half precision"):
        Engine([spec], ExecutionSpec(attention=attention))


def test_steps_beyond_the_schedule_have_its_last_learning_rate(
    spec: RunSpec, execution: ExecutionSpec, dataset: Dataset
) -> None:
    short = replace(spec, n_steps=1, warmup_steps=0, schedule="wsd", decay_steps=0)
    found = train(fresh(short, execution), dataset, range(3))
    longer = train(fresh(replace(short, n_steps=3), execution), dataset, range(3))
    np.testing.assert_array_equal(found.losses, longer.losses)

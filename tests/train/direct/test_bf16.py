"""The written-out step in bf16: fp32 weights and stream, rounded factors of products."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.corpus.dataset import Dataset
from scalelab.corpus.tokenizer_names import END_TOKEN
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import ModelShape
from scalelab.train.direct import attention as direct_attention
from scalelab.train.direct.calls import Calls
from scalelab.train.engine import Engine
from tests.train.direct.test_step import (
    SHAPES,
    THREE_LAYERS,
    batch,
    exact_gradients,
    with_random_gains,
)

WIDE = ModelShape(n_layers=2, d_model=64, n_heads=2, d_head=32, d_ff=176, vocab_size=61)


@pytest.fixture
def direct(execution: ExecutionSpec) -> ExecutionSpec:
    return replace(execution, step="direct")


@pytest.fixture
def half(spec: RunSpec) -> RunSpec:
    return replace(spec, precision="bf16")


def assert_close(engine: Engine, exact: dict[str, torch.Tensor]) -> None:
    """Autograd's gradients in bf16 are 2 to 5 % off here, those of QK-norm's gains up to 27 %."""
    own = engine.layout.views(engine.grad)
    errors = {name: float((own[name] - each).norm()) for name, each in exact.items()}
    sizes = {name: float(each.norm()) for name, each in exact.items()}
    assert np.linalg.norm(list(errors.values())) < 0.05 * np.linalg.norm(list(sizes.values()))
    for name, error in errors.items():
        assert error <= (0.15 if name.endswith(("q_norm", "k_norm")) else 0.07) * sizes[name], name


def losses(spec: RunSpec, way: ExecutionSpec, dataset: Dataset, n_steps: int) -> np.ndarray:
    engine = with_random_gains([spec], replace(way, metrics_interval_steps=n_steps))
    for step in range(n_steps):
        engine.step(batch(dataset, [spec], step))
    return engine.read().losses[:, 0]


@pytest.mark.parametrize("fields", SHAPES)
@pytest.mark.parametrize(("seq_len", "block"), [(24, 64), (23, 7), (1, 64)])
def test_gradients_equal_those_of_autograd_to_the_rounding_of_bf16(
    half: RunSpec,
    dataset: Dataset,
    execution: ExecutionSpec,
    direct: ExecutionSpec,
    fields: dict[str, Any],
    seq_len: int,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_attention, "QUERY_BLOCKS", {torch.bfloat16: block})
    run = replace(half, shape=replace(half.shape, **fields), seq_len=seq_len)
    tokens = torch.from_numpy(batch(dataset, [run]))
    found = with_random_gains([run], direct)
    plain = with_random_gains([replace(run, precision="fp32")], execution)
    loss, _ = found.gradients.take(tokens)
    torch.testing.assert_close(loss, plain.gradients.take(tokens)[0], rtol=2e-3, atol=0)
    assert_close(found, exact_gradients(plain, tokens))


@pytest.mark.parametrize(
    "changes",
    [
        {"z_loss": 0.05, "logit_softcap": 0.7, "is_document_masked": True},
        {"parametrization": "completep", "shape": THREE_LAYERS},
    ],
)
def test_settings_of_loss_and_parametrization_are_those_of_autograd(
    half: RunSpec,
    dataset: Dataset,
    execution: ExecutionSpec,
    direct: ExecutionSpec,
    changes: dict[str, Any],
) -> None:
    run = replace(half, **changes)
    tokens = torch.from_numpy(batch(dataset, [run]))
    tokens[:, 5::9] = END_TOKEN
    found = with_random_gains([run], direct)
    plain = with_random_gains([replace(run, precision="fp32")], execution)
    for engine in (found, plain):
        engine.layout.views(engine.master)["embedding"].mul_(20.0)
    loss, _ = found.gradients.take(tokens)
    torch.testing.assert_close(loss, plain.gradients.take(tokens)[0], rtol=2e-3, atol=0)
    assert_close(found, exact_gradients(plain, tokens))


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon"}, {"parametrization": "mup"}])
def test_losses_of_thirty_steps_are_close_to_those_in_fp32(
    half: RunSpec, dataset: Dataset, direct: ExecutionSpec, changes: dict[str, Any]
) -> None:
    run = replace(half, lr=1e-3, **changes)
    own = losses(run, direct, dataset, 30)
    exact = losses(replace(run, precision="fp32"), direct, dataset, 30)
    np.testing.assert_allclose(own, exact, rtol=5e-3)
    assert (own != exact).any()
    np.testing.assert_array_equal(own, losses(run, direct, dataset, 30))


@pytest.mark.parametrize("shape", [None, WIDE], ids=["narrow", "wide"])
def test_a_batched_run_has_the_bits_of_a_separate_one(
    half: RunSpec, dataset: Dataset, direct: ExecutionSpec, shape: ModelShape | None
) -> None:
    first = replace(half, shape=shape or half.shape)
    specs = [first, replace(first, seed=4, lr=0.003), replace(first, seed=8, lr=0.03)]
    batched, alone = with_random_gains(specs, direct), with_random_gains(specs[:1], direct)
    for step in range(4):
        batched.step(batch(dataset, specs, step))
        alone.step(batch(dataset, specs[:1], step))
    np.testing.assert_array_equal(batched.read().losses[:, 0], alone.read().losses[:, 0])
    state, expected = batched.state(0), alone.state(0)
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


def test_the_rounding_of_fp32_products_ends_with_a_step_that_fails(
    half: RunSpec, dataset: Dataset, direct: ExecutionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    seen = []

    def fail(self: Calls) -> None:
        seen.append(setting.fp32_precision)
        raise RuntimeError("in the step")

    engine = with_random_gains([half], direct)
    engine.step(batch(dataset, [half]))
    assert setting.fp32_precision == before
    monkeypatch.setattr(Calls, "execute", fail)
    with pytest.raises(RuntimeError, match="in the step"):
        engine.step(batch(dataset, [half]))
    with_fp32 = Engine([replace(half, precision="fp32")], direct)
    with pytest.raises(RuntimeError, match="in the step"):
        with_fp32.step(batch(dataset, [half]))
    assert seen == ["bf16", before]
    assert setting.fp32_precision == before


def test_muon_rounds_its_updates_as_in_an_eager_step(
    half: RunSpec, execution: ExecutionSpec, direct: ExecutionSpec
) -> None:
    """The direct step has no rounded copy of the weights, which other steps have in bf16."""
    run = replace(half, optimizer="muon")
    weights = []
    for way in (direct, execution):
        engine = with_random_gains([run], way)
        engine.grad.copy_(engine.master.sin())
        engine.optimizer.step(engine.grad, torch.ones(1, dtype=torch.int64), torch.tensor([0.1]))
        weights.append(engine.master)
    assert torch.equal(*weights)

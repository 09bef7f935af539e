"""Hand-written gradients equal those of autograd for all shapes, lengths and batched runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scalelab_kernels.reference import rope_tables

from scalelab.corpus.dataset import Dataset
from scalelab.corpus.tokenizer_names import END_TOKEN
from scalelab.errors import UsageError
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import ModelShape
from scalelab.train.direct import attention as direct_attention
from scalelab.train.engine import Engine
from scalelab.train.model import Decoder

SHAPES: list[dict[str, Any]] = [
    {},
    {"n_kv_heads": 2},
    {"n_heads": 6, "d_head": 4, "n_kv_heads": 3},
    {"is_tied": True},
    {"has_qk_norm": False},
    {"n_layers": 1, "n_heads": 1, "d_head": 10, "n_kv_heads": 1},
]

THREE_LAYERS = ModelShape(n_layers=3, d_model=16, n_heads=2, d_head=8, d_ff=40, vocab_size=61)
"""Neither width nor depth is that of the base shape."""


@pytest.fixture
def direct(execution: ExecutionSpec) -> ExecutionSpec:
    return replace(execution, step="direct")


def with_random_gains(specs: list[RunSpec], execution: ExecutionSpec) -> Engine:
    """Return an engine with norm gains other than 1, so that an error in their gradients shows."""
    engine = Engine(specs, execution)
    generator = torch.Generator().manual_seed(1)
    for run in range(len(specs)):
        engine.initialize(run)
        row = engine.master if len(specs) == 1 else engine.master[run]
        for name, weight in engine.layout.views(row).items():
            if name.endswith("norm"):
                weight.add_(0.4 * torch.randn(weight.shape, generator=generator))
    return engine


def batch(dataset: Dataset, specs: list[RunSpec], step: int = 0) -> np.ndarray[Any, Any]:
    parts = [dataset.batch(s.seed, step, s.batch_seqs, s.seq_len) for s in specs]
    return parts[0] if len(parts) == 1 else np.stack(parts)


@pytest.mark.parametrize("fields", SHAPES)
@pytest.mark.parametrize(("seq_len", "block"), [(24, 64), (23, 7), (24, 8), (1, 64)])
def test_gradients_equal_those_of_autograd(
    spec: RunSpec,
    execution: ExecutionSpec,
    dataset: Dataset,
    direct: ExecutionSpec,
    fields: dict[str, Any],
    seq_len: int,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_attention, "QUERY_BLOCKS", {torch.float32: block})
    run = replace(spec, shape=replace(spec.shape, **fields), seq_len=seq_len)
    tokens = torch.from_numpy(batch(dataset, [run]))
    found, plain = (with_random_gains([run], way) for way in (direct, execution))
    loss, _ = found.gradients.take(tokens)
    plain_loss, _ = plain.gradients.take(tokens)
    torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=0)
    own = found.layout.views(found.grad)
    for name, exact in exact_gradients(plain, tokens).items():
        # Sums of hundreds of rounded terms; a missing term changes them by 1 % or more.
        error = float((own[name] - exact).abs().max())
        assert error <= 1e-4 * float(exact.abs().max()) + 1e-9, name
        assert exact.any() or seq_len == 1, name


@pytest.mark.parametrize(
    "settings",
    [
        {"z_loss": 0.05},
        {"logit_softcap": 0.7},
        {"is_document_masked": True},
        {"z_loss": 0.05, "logit_softcap": 0.7, "is_document_masked": True},
    ],
)
@pytest.mark.parametrize("fields", [{"n_kv_heads": 1}, {"is_tied": True, "n_kv_heads": 2}])
def test_losses_of_all_settings_have_the_gradients_of_autograd(
    spec: RunSpec,
    execution: ExecutionSpec,
    dataset: Dataset,
    direct: ExecutionSpec,
    settings: dict[str, Any],
    fields: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_attention, "QUERY_BLOCKS", {torch.float32: 7})
    run = replace(spec, shape=replace(spec.shape, **fields), **settings)
    tokens = torch.from_numpy(batch(dataset, [run]))
    tokens[:, 5::9] = END_TOKEN
    found, plain = (with_random_gains([run], way) for way in (direct, execution))
    for engine in (found, plain):
        engine.layout.views(engine.master)["embedding"].mul_(20.0)
    loss, _ = found.gradients.take(tokens)
    torch.testing.assert_close(loss, plain.gradients.take(tokens)[0], rtol=1e-6, atol=0)
    each = (engine.gradients.token_losses(0, tokens) for engine in (found, plain))
    torch.testing.assert_close(*each, rtol=1e-5, atol=1e-5)
    own = found.layout.views(found.grad)
    for name, exact in exact_gradients(plain, tokens).items():
        error = float((own[name] - exact).abs().max())
        assert error <= 1e-4 * float(exact.abs().max()) + 1e-9, name
    default = with_random_gains([replace(run, **dict.fromkeys(settings, 0))], direct)
    default.layout.views(default.master)["embedding"].mul_(20.0)
    assert abs(float(default.gradients.take(tokens)[0] - loss)) > 1e-3


def exact_gradients(engine: Engine, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradients of the mean loss, all in float64."""
    model = engine.gradients.model
    leaves = {n: leaf.detach().double().requires_grad_() for n, leaf in model.weights.items()}
    exact = Decoder(
        model.shape,
        leaves,
        tokens.shape[1] - 1,
        model.ops,
        model.attend,
        model.factors,
        model.router_weights,
        softcap=model.softcap,
        is_document_masked=model.is_document_masked,
    )
    exact.cos, exact.sin = rope_tables(tokens.shape[1] - 1, model.shape.d_head, dtype=torch.float64)
    loss, _ = exact.loss_sums(tokens, engine.specs[0].z_loss)
    mean = loss / engine.specs[0].tokens_per_step
    grads = torch.autograd.grad(mean, list(leaves.values()), allow_unused=True)
    return dict(zip(leaves, grads, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"z_loss": 1e-2, "logit_softcap": 1.5, "is_document_masked": True},
        {"parametrization": "mup"},
        {"parametrization": "completep", "shape": THREE_LAYERS},
        {"optimizer": "muon"},
    ],
)
@pytest.mark.parametrize("micro", [0, 2, 4])
def test_steps_equal_those_of_autograd(
    spec: RunSpec,
    execution: ExecutionSpec,
    dataset: Dataset,
    direct: ExecutionSpec,
    changes: dict[str, Any],
    micro: int,
) -> None:
    """A batch of 6 as micro-batches of 4 and 2, as three of 2, and as one."""
    run = replace(spec, **changes)
    readings = []
    for way in (direct, execution):
        engine = Engine([run], replace(way, micro_batch_seqs=micro))
        engine.initialize(0)
        for step in range(4):
            engine.step(batch(dataset, [run], step))
        readings.append(engine.read())
        found = engine.evaluate(0, dataset.eval_sequences(run.seq_len)[:33])
        readings[-1] = (readings[-1], found)
    (own, own_eval), (expected, expected_eval) = readings
    np.testing.assert_allclose(own.losses, expected.losses, rtol=1e-5)
    np.testing.assert_allclose(own.norms, expected.norms, rtol=1e-4)
    np.testing.assert_allclose(own_eval, expected_eval, rtol=1e-4)
    assert (own.micro_squares is None) == (micro == 0)
    if micro:
        np.testing.assert_allclose(own.micro_squares, expected.micro_squares, rtol=1e-4)


def test_a_batched_run_has_the_bits_of_a_separate_one(
    spec: RunSpec, dataset: Dataset, direct: ExecutionSpec
) -> None:
    specs = [spec, replace(spec, seed=4, lr=0.003, beta2=0.99), replace(spec, seed=8, lr=0.03)]
    batched = with_random_gains(specs, direct)
    alone = with_random_gains(specs[:1], direct)
    for step in range(8):
        batched.step(batch(dataset, specs, step))
        alone.step(batch(dataset, specs[:1], step))
        both = batched.read(), alone.read()
        np.testing.assert_array_equal(both[0].losses[:, 0], both[1].losses[:, 0])
        np.testing.assert_array_equal(both[0].norms[:, 0], both[1].norms[:, 0])
    state, expected = batched.state(0), alone.state(0)
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


def test_large_logits_have_finite_losses(
    spec: RunSpec, execution: ExecutionSpec, dataset: Dataset, direct: ExecutionSpec
) -> None:
    """The target's probability underflows; the loss does not."""
    found = []
    for way in (direct, execution):
        engine = with_random_gains([spec], way)
        engine.layout.views(engine.master)["head"].mul_(200.0)
        loss, _ = engine.gradients.take(torch.from_numpy(batch(dataset, [spec])))
        found.append(float(loss))
    assert found[0] > 150
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "way"),
    [
        ({"precision": "fp8"}, {}),
        ({}, {"attention": "sdpa"}),
    ],
)
def test_an_unsupported_run_is_an_error(
    spec: RunSpec, direct: ExecutionSpec, changes: dict[str, Any], way: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="direct"):
        Engine([replace(spec, **changes)], replace(direct, **way))

"""muP and CompleteP: coordinate checks, rules of the updates, equality at the base shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.corpus.dataset import Dataset
from scalelab.errors import SpecError
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import BASE_DEPTH, BASE_HEAD, BASE_WIDTH, ModelShape
from scalelab.train.engine import Engine
from scalelab.train.model import embed
from scalelab.train.parameters import lay_out
from scalelab.train.parametrization import UpdateFactors, update_factors

WIDTHS = (32, 128, 512)
DEPTHS = (2, 4, 8)


def of_shape(spec: RunSpec, d_model: int, n_layers: int = BASE_DEPTH, **fields: Any) -> RunSpec:
    shape = ModelShape(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=d_model // BASE_HEAD,
        d_head=BASE_HEAD,
        d_ff=2 * d_model,
        vocab_size=61,
    )
    return replace(spec, shape=shape, **({"lr": 0.01, "warmup_steps": 0, "init_std": 1.0} | fields))


def sizes(spec: RunSpec, dataset: Dataset, execution: ExecutionSpec) -> dict[str, float]:
    """Return root mean squares: of the stream after training, of its change, of the logits'."""
    engine = Engine([spec], execution)
    engine.initialize(0)
    tokens = dataset.batch(spec.seed, 0, spec.batch_seqs, spec.seq_len)
    inputs = torch.from_numpy(tokens[:, :-1])
    model = engine.gradients.model

    @torch.no_grad()
    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        stream, output = embed(inputs, model.weights["embedding"]), None
        for layer in range(spec.shape.n_layers):
            output, stream, _ = model.run_block(output, stream, layer, None)
        return stream + output, model.hidden(inputs)[0] @ model.weights["head"][:61].T

    def size(x: torch.Tensor) -> float:
        return float(x.square().mean().sqrt())

    before = outputs()
    for _ in range(3):
        engine.step(tokens)
    after = outputs()
    changes = [size(new - old) for new, old in zip(after, before, strict=True)]
    return {"stream": size(after[0]), "stream_change": changes[0], "logits_change": changes[1]}


def slopes(axis: tuple[int, ...], found: list[dict[str, float]]) -> dict[str, float]:
    """Return d log(size) / d log(axis) of each size."""
    rows = {name: [one[name] for one in found] for name in found[0]}
    return {name: float(np.polyfit(np.log(axis), np.log(row), 1)[0]) for name, row in rows.items()}


@pytest.fixture
def over_width(spec: RunSpec, dataset: Dataset, execution: ExecutionSpec) -> Any:
    def measure(**fields: Any) -> dict[str, float]:
        runs = [of_shape(spec, d_model, **fields) for d_model in WIDTHS]
        return slopes(WIDTHS, [sizes(run, dataset, execution) for run in runs])

    return measure


@pytest.fixture
def over_depth(spec: RunSpec, dataset: Dataset, execution: ExecutionSpec) -> Any:
    def measure(**fields: Any) -> dict[str, float]:
        runs = [of_shape(spec, BASE_WIDTH, n_layers, **fields) for n_layers in DEPTHS]
        return slopes(DEPTHS, [sizes(run, dataset, execution) for run in runs])

    return measure


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_under_mup_activations_and_their_changes_do_not_grow_with_width(
    over_width: Any, optimizer: str
) -> None:
    """The coordinate check of arXiv:2203.03466, appendix D.1, over a factor 16.

    The part of the logits' change that comes from the random start even shrinks.
    """
    found = over_width(parametrization="mup", optimizer=optimizer)
    assert max(found.values()) < 0.1
    assert min(found.values()) > -0.3
    standard = over_width(optimizer=optimizer)
    assert min(standard["stream_change"], standard["logits_change"]) > 0.3


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_under_completep_activations_and_their_changes_do_not_grow_with_depth(
    over_depth: Any, optimizer: str
) -> None:
    found = over_depth(parametrization="completep", optimizer=optimizer)
    assert max(found.values()) < 0.1
    assert min(found.values()) > -0.2
    assert over_depth(parametrization="mup", optimizer=optimizer)["stream_change"] > 0.3


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["mup", "completep"])
def test_at_the_base_shape_all_parametrizations_are_equal(
    spec: RunSpec, dataset: Dataset, execution: ExecutionSpec, kind: str, optimizer: str
) -> None:
    runs = [
        of_shape(spec, BASE_WIDTH, parametrization=name, optimizer=optimizer)
        for name in (kind, "standard")
    ]
    found = [[*sizes(run, dataset, execution).values()] for run in runs]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_completep_scales_rate_decay_and_epsilon_as_its_table_says(spec: RunSpec) -> None:
    """Table 1 and equation 40 of arXiv:2505.01618, at 4 times the width and 3 times the depth."""
    run = of_shape(spec, 4 * BASE_WIDTH, 3 * BASE_DEPTH, parametrization="completep")
    entries = {entry.name: entry for entry in lay_out(run.shape).entries}
    expected = {
        "layers.0.qkv": UpdateFactors(rate=1 / 4, decay=4, epsilon=1 / 12),
        "layers.5.down": UpdateFactors(rate=1 / 4, decay=4, epsilon=1 / 12),
        "layers.0.ff_norm": UpdateFactors(epsilon=1 / 12),
        "embedding": UpdateFactors(epsilon=1 / 4),
        "head": UpdateFactors(epsilon=1 / 4),
        "final_norm": UpdateFactors(epsilon=1 / 4),
    }
    for name, factors in expected.items():
        assert update_factors(run, entries[name]) == factors, name
    muon = replace(run, optimizer="muon")
    assert update_factors(muon, entries["layers.0.out"]).rate == 1 / 2
    assert update_factors(muon, entries["layers.0.out"]).decay == 2
    mup = replace(run, parametrization="mup")
    assert update_factors(mup, entries["layers.0.out"]) == UpdateFactors(rate=1 / 4)


def test_the_factors_of_weight_decay_and_epsilon_reach_the_weights(
    spec: RunSpec, execution: ExecutionSpec
) -> None:
    """One step without gradient decays; one with a tiny gradient shows epsilon."""
    fields = {"parametrization": "completep", "weight_decay": 0.5, "epsilon": 1.0}
    run = of_shape(spec, 4 * BASE_WIDTH, 3 * BASE_DEPTH, **fields)
    engine = Engine([run], execution)
    engine.initialize(0)
    before = engine.master.clone()
    grad = torch.full_like(engine.grad, 1e-6)
    engine.optimizer.step(grad, torch.tensor([1]), torch.tensor([0.1], dtype=torch.float64))
    for entry in engine.layout.entries:
        factors = update_factors(run, entry)
        old, new = (entry.view(flat).double() for flat in (before, engine.master))
        decay = 0.1 * factors.rate * 0.5 * factors.decay if entry.is_decayed else 0.0
        change = 0.1 * factors.rate * 1e-6 / (1e-6 + factors.epsilon)
        expected = old * (1 - decay) - change
        torch.testing.assert_close(new, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["mup", "completep"])
def test_a_mixture_of_experts_is_refused(spec: RunSpec, kind: str) -> None:
    experts = replace(spec.shape, n_experts=4, n_active_experts=2)
    with pytest.raises(SpecError) as caught:
        replace(spec, shape=experts, parametrization=kind)
    assert kind in caught.value.given
    assert "standard" in caught.value.do

"""AdamW and Muon, compared with those of torch, weight by weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scalelab.corpus.dataset import Dataset
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.engine import Engine, learning_rates
from scalelab.train.optimizer import row_norms


def reference_losses(spec: RunSpec, engine: Engine, dataset: Dataset, n: int) -> list[float]:
    """Train the engine's model with `torch.optim` and separate weights, split as Muon needs."""
    plain = {name: leaf.detach().clone() for name, leaf in engine.gradients.leaves.items()}
    entries = {entry.name: entry for entry in engine.layout.entries}
    hidden, decayed, spared = [], [], []
    for name, weight in plain.items():
        if spec.optimizer == "muon" and entries[name].start < engine.layout.n_muon:
            parts = [p.clone() for p in weight.split(entries[name].split_rows)]
            plain[name] = parts  # type: ignore[assignment]
            hidden += parts
        elif entries[name].is_decayed:
            decayed.append(weight)
        else:
            spared.append(weight)
    leaves = [*hidden, *decayed, *spared]
    for leaf in leaves:
        leaf.requires_grad_()
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": spec.weight_decay},
                {"params": spared, "weight_decay": 0.0},
            ],
            betas=(spec.beta1, spec.beta2),
            eps=spec.epsilon,
        )
    ]
    if hidden:
        optimizers.append(
            torch.optim.Muon(hidden, weight_decay=spec.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    losses = []
    for step, rate in enumerate(learning_rates(spec)[:n]):
        engine.gradients.model.weights = {
            name: torch.cat(weight) if isinstance(weight, list) else weight
            for name, weight in plain.items()
        }
        tokens = dataset.batch(spec.seed, step, spec.batch_seqs, spec.seq_len)
        _, objective = engine.gradients.model.loss_sums(torch.from_numpy(tokens), spec.z_loss)
        loss = objective / spec.tokens_per_step
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(leaves, spec.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_losses_equal_those_of_torchs_optimizer(
    spec: RunSpec,
    execution: ExecutionSpec,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
) -> None:
    """Torch's Muon orthogonalizes in bf16; the test makes it use fp32 to compare the rest."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    spec = replace(spec, optimizer=optimizer, grad_clip=0.7, beta2=0.97, weight_decay=0.3)
    engine = Engine([spec], execution)
    engine.initialize(0)
    found = []
    for step in range(20):
        engine.step(dataset.batch(spec.seed, step, spec.batch_seqs, spec.seq_len))
        found.append(float(engine.read().losses[0, 0]))
    again = Engine([spec], execution)
    again.initialize(0)
    expected = reference_losses(spec, again, dataset, 20)
    assert found == pytest.approx(expected, rel=2e-5)
    assert found[-1] < found[0] - 0.3


def test_batched_muon_runs_equal_separate_ones(
    spec: RunSpec, execution: ExecutionSpec, dataset: Dataset
) -> None:
    specs = [
        replace(spec, optimizer="muon", seed=1),
        replace(spec, optimizer="muon", seed=2, lr=0.03),
    ]
    both = Engine(specs, execution)
    alone = [Engine([one], execution) for one in specs]
    for index, engine in enumerate(alone):
        both.initialize(index)
        engine.initialize(0)
    for step in range(4):
        tokens = [dataset.batch(s.seed, step, s.batch_seqs, s.seq_len) for s in specs]
        both.step(np.stack(tokens))
        for engine, batch in zip(alone, tokens, strict=True):
            engine.step(batch)
    found = both.read()
    for index, engine in enumerate(alone):
        expected = engine.read()
        np.testing.assert_allclose(found.losses[:, index], expected.losses[:, 0], rtol=2e-4)
        np.testing.assert_allclose(found.norms[:, index], expected.norms[:, 0], rtol=2e-3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("fields", [{"optimizer": "muon"}, {"parametrization": "mup"}])
def test_a_gradient_that_is_not_finite_does_not_change_the_run(
    spec: RunSpec, execution: ExecutionSpec, fields: dict[str, str], value: float
) -> None:
    spec = replace(spec, **fields)  # type: ignore[arg-type]
    engine = Engine([spec, spec], execution)
    engine.initialize(0)
    engine.initialize(1)
    before = engine.master.clone()
    grad = torch.randn_like(engine.grad)
    grad[1, 5] = value
    norm = engine.optimizer.step(grad, torch.tensor([1, 1]), torch.full((2,), 0.1).double())
    assert torch.isfinite(norm).tolist() == [True, False]
    assert torch.equal(engine.master[1], before[1])
    assert not engine.exp_avg[1].any()
    assert (engine.master[0] != before[0]).float().mean() > 0.9
    assert torch.isfinite(engine.master[0]).all()


def test_norms_of_rows() -> None:
    rows = torch.randn(3, 4096)
    torch.testing.assert_close(row_norms(rows), rows.norm(dim=1))
    torch.testing.assert_close(row_norms(rows[1]), rows[1:2].norm(dim=1))

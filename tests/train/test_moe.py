"""Mixture of experts, compared with its definition for one token at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scalelab_kernels.operations import get_operations
from torch.nn import functional

from scalelab.corpus.dataset import Dataset
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params
from scalelab.train import moe
from scalelab.train.engine import Engine

N_EXPERTS, N_ACTIVE, D, F = 5, 2, 12, 9
OPS = get_operations("reference", "cpu")


def weights(*lead: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(11)
    return (
        torch.randn(*lead, N_EXPERTS, D, dtype=torch.float64),
        torch.randn(*lead, N_EXPERTS, 2 * F, D, dtype=torch.float64),
        torch.randn(*lead, N_EXPERTS, D, F, dtype=torch.float64),
    )


def one_token(
    x: torch.Tensor, router: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """The definition: p = softmax(router x); sum over the k best of p_i / sum p times expert i."""
    probabilities = torch.softmax((router @ x).float(), 0)
    best = probabilities.argsort(descending=True)[:N_ACTIVE]
    out = torch.zeros_like(x)
    for i in best:
        gate, up = (gate_up[i] @ x).chunk(2)
        share = (probabilities[i] / probabilities[best].sum()).double()
        out += share * (down[i] @ (functional.silu(gate) * up))
    return out


def test_each_token_passes_through_its_best_experts() -> None:
    router, gate_up, down = weights()
    x = torch.randn(3, 7, D, dtype=torch.float64)
    found, _ = moe.feed_forward(x, router, gate_up, down, N_ACTIVE, OPS)
    expected = torch.stack([one_token(row, router, gate_up, down) for row in x.view(-1, D)])
    torch.testing.assert_close(found.view(-1, D), expected)


def test_batched_runs_use_their_own_experts() -> None:
    router, gate_up, down = weights(3)
    x = torch.randn(3, 2, 6, D, dtype=torch.float64)
    found, balance = moe.feed_forward(x, router, gate_up, down, N_ACTIVE, OPS)
    for run in range(3):
        alone, alone_balance = moe.feed_forward(
            x[run], router[run], gate_up[run], down[run], N_ACTIVE, OPS
        )
        torch.testing.assert_close(found[run], alone)
        torch.testing.assert_close(balance[run], alone_balance)


def test_the_balance_loss_is_one_when_balanced_and_larger_when_not() -> None:
    even = torch.full((1, 40, N_EXPERTS), 1 / N_EXPERTS)
    assert float(moe.balance_loss(torch.full((1, N_EXPERTS), 16), even)) == pytest.approx(1.0)
    skewed = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1]).expand(1, 40, -1)
    counts = torch.tensor([[48, 8, 8, 8, 8]])
    assert float(moe.balance_loss(counts, skewed)) == pytest.approx(5 * (0.36 + 4 * 0.01))


@pytest.fixture
def moe_spec(spec: RunSpec) -> RunSpec:
    return replace(spec, shape=replace(spec.shape, n_experts=4, n_active_experts=2), lr=0.02)


def test_a_mixture_learns_and_all_experts_are_used(
    moe_spec: RunSpec, execution: ExecutionSpec, dataset: Dataset
) -> None:
    engine = Engine([moe_spec], execution)
    engine.initialize(0)
    before = {name: leaf.detach().clone() for name, leaf in engine.gradients.leaves.items()}
    losses = []
    for step in range(moe_spec.n_steps):
        engine.step(dataset.batch(1, step, moe_spec.batch_seqs, moe_spec.seq_len))
        losses.append(float(engine.read().losses[0, 0]))
    assert losses[-1] < losses[0] - 0.5
    for layer in range(moe_spec.shape.n_layers):
        name = f"layers.{layer}.down"
        moved = (engine.gradients.leaves[name].detach() - before[name]).flatten(1).abs().amax(1)
        assert (moved > 1e-3).all()


def test_active_and_total_parameters_are_counted_separately(moe_spec: RunSpec) -> None:
    counts = count_params(moe_spec.shape).by_convention()
    expert = 3 * 16 * 40
    assert counts["chinchilla"] - counts["active"] == 2 * (4 - 2) * expert

"""Mixture of experts, compared with its definition for one token at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scalelab_kernels.operations import get_operations
from torch import nn
from torch.nn import functional

from scalelab.corpus.dataset import Dataset
from scalelab.errors import SpecError
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params
from scalelab.theory.shape import ModelShape
from scalelab.train import moe
from scalelab.train.engine import Engine

N_EXPERTS, N_ACTIVE, D, F = 5, 2, 12, 9
OPS = get_operations("reference", "cpu")
BALANCED = moe.RouterWeights(balance=1.0, z=0.0)


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
    found, _ = moe.feed_forward(x, router, gate_up, down, N_ACTIVE, OPS, BALANCED)
    expected = torch.stack([one_token(row, router, gate_up, down) for row in x.view(-1, D)])
    torch.testing.assert_close(found.view(-1, D), expected)


def test_batched_runs_use_their_own_experts() -> None:
    router, gate_up, down = weights(3)
    x = torch.randn(3, 2, 6, D, dtype=torch.float64)
    found, balance = moe.feed_forward(x, router, gate_up, down, N_ACTIVE, OPS, BALANCED)
    for run in range(3):
        alone, alone_balance = moe.feed_forward(
            x[run], router[run], gate_up[run], down[run], N_ACTIVE, OPS, BALANCED
        )
        torch.testing.assert_close(found[run], alone)
        torch.testing.assert_close(balance[run], alone_balance)


def test_the_balance_loss_is_one_when_balanced_and_larger_when_not() -> None:
    even = torch.full((1, 40, N_EXPERTS), 1 / N_EXPERTS)
    assert float(moe.balance_loss(torch.full((1, N_EXPERTS), 16), even)) == pytest.approx(1.0)
    skewed = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1]).expand(1, 40, -1)
    counts = torch.tensor([[48, 8, 8, 8, 8]])
    assert float(moe.balance_loss(counts, skewed)) == pytest.approx(5 * (0.36 + 4 * 0.01))


def test_the_router_z_loss_is_the_mean_squared_log_normaliser_and_so_is_its_gradient() -> None:
    """d/dz of mean(logsumexp(z)^2) is 2 logsumexp(z) softmax(z) / T: arXiv:2202.08906, eq. 5."""
    router, gate_up, down = weights()
    x = torch.randn(3, 7, D, dtype=torch.float64)
    router.requires_grad_()
    _, with_z = moe.feed_forward(
        x, router, gate_up, down, N_ACTIVE, OPS, moe.RouterWeights(balance=0.0, z=0.25)
    )
    rows = x.view(-1, D)
    logits = rows @ router.detach().T
    log_sums = logits.exp().sum(-1).log()
    assert with_z.item() == pytest.approx(0.25 * float(log_sums.square().mean()), rel=1e-5)
    (found,) = torch.autograd.grad(with_z, router)
    by_logits = 2 * log_sums.unsqueeze(-1) * torch.softmax(logits, -1) / len(rows)
    torch.testing.assert_close(found, 0.25 * by_logits.T @ rows, rtol=1e-5, atol=1e-6)


class PlainMixture(nn.Module):
    """The block in plain torch modules: a router, a list of experts and a shared expert."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.router = nn.Linear(shape.d_model, shape.n_experts, bias=False)
        self.experts = nn.ModuleList(
            PlainExpert(shape.d_model, shape.d_ff) for _ in range(shape.n_experts)
        )
        self.shared = PlainExpert(shape.d_model, shape.d_shared_expert)
        self.n_active = shape.n_active_experts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = torch.softmax(self.router(x), -1)
        best, chosen = shares.topk(self.n_active)
        gates = torch.zeros_like(shares).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        routed = torch.stack([expert(x) for expert in self.experts], -1) * gates.unsqueeze(-2)
        return routed.sum(-1) + self.shared(x)


class PlainExpert(nn.Module):
    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(d_model, width, bias=False) for _ in range(2))
        self.down = nn.Linear(width, d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def test_a_block_with_a_shared_expert_equals_plain_torch_modules(
    moe_spec: RunSpec, execution: ExecutionSpec
) -> None:
    """Outputs and the gradients of all weights, with the weights of a run."""
    run = replace(moe_spec, shape=replace(moe_spec.shape, d_shared_expert=24))
    engine = Engine([run], execution)
    engine.initialize(0)
    model, plain = engine.gradients.model, PlainMixture(run.shape)
    w = {n.removeprefix("layers.0."): p for n, p in model.weights.items() if "layers.0." in n}
    experts = [(w["gate_up"][i], w["down"][i]) for i in range(run.shape.n_experts)]
    with torch.no_grad():
        plain.router.weight.copy_(w["router"])
        for module, (gate_up, down) in zip(
            (*plain.experts, plain.shared),
            (*experts, (w["shared_gate_up"], w["shared_down"])),
            strict=True,
        ):
            for part, value in zip((module.gate, module.up), gate_up.chunk(2), strict=True):
                part.weight.copy_(value)
            module.down.weight.copy_(down)
    x = torch.randn(2, 9, run.shape.d_model)
    found, _ = moe.feed_forward(
        x,
        w["router"],
        w["gate_up"],
        w["down"],
        run.shape.n_active_experts,
        OPS,
        BALANCED,
        shared=model._shared_expert("layers.0."),
    )
    expected = plain(x)
    torch.testing.assert_close(found, expected)
    seed = torch.randn_like(found)
    names = ("router", "gate_up", "down", "shared_gate_up", "shared_down")
    own = torch.autograd.grad(found, [w[name] for name in names], seed)
    expected.backward(seed)

    def both(expert: PlainExpert) -> torch.Tensor:
        return torch.cat([expert.gate.weight.grad, expert.up.weight.grad])

    theirs = (
        plain.router.weight.grad,
        torch.stack([both(expert) for expert in plain.experts]),
        torch.stack([expert.down.weight.grad for expert in plain.experts]),
        both(plain.shared),
        plain.shared.down.weight.grad,
    )
    for name, mine, other in zip(names, own, theirs, strict=True):
        torch.testing.assert_close(mine, other, msg=name)


def test_each_weight_of_a_router_loss_changes_the_training(
    moe_spec: RunSpec, execution: ExecutionSpec, dataset: Dataset
) -> None:
    """And not the reported loss of the first step, which is the cross-entropy alone."""
    changes = ({}, {"balance_weight": 0.5}, {"router_z_weight": 0.5})
    found = []
    for change in changes:
        engine = Engine([replace(moe_spec, **change)], execution)
        engine.initialize(0)
        for step in range(2):
            engine.step(dataset.batch(1, step, moe_spec.batch_seqs, moe_spec.seq_len))
        readings = engine.read()
        found.append((float(readings.losses[0, 0]), float(readings.losses[1, 0])))
    first, second = zip(*found, strict=True)
    assert len(set(first)) == 1
    assert len(set(second)) == len(changes)


@pytest.mark.parametrize("name", ["balance_weight", "router_z_weight"])
def test_a_dense_model_has_no_router_losses(spec: RunSpec, name: str) -> None:
    with pytest.raises(SpecError, match=f"{name} = 0.5"):
        replace(spec, **{name: 0.5})


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


def test_a_resumed_mixture_with_sdpa_has_the_same_bits(moe_spec: RunSpec, dataset: Dataset) -> None:
    engine = Engine([moe_spec], ExecutionSpec(step="eager", attention="sdpa"))
    engine.initialize(0)
    for step in range(6):
        if step == 3:
            state = engine.state(0)
        engine.step(dataset.batch(1, step, moe_spec.batch_seqs, moe_spec.seq_len))
        engine.read()
    resumed = Engine([moe_spec], ExecutionSpec(step="eager", attention="sdpa"))
    resumed.load_state(0, state)
    for step in range(3, 6):
        resumed.step(dataset.batch(1, step, moe_spec.batch_seqs, moe_spec.seq_len))
        resumed.read()
    assert torch.equal(resumed.master, engine.master)


def test_active_and_total_parameters_are_counted_separately(moe_spec: RunSpec) -> None:
    counts = count_params(moe_spec.shape).by_convention()
    expert = 3 * 16 * 40
    assert counts["chinchilla"] - counts["active"] == 2 * (4 - 2) * expert

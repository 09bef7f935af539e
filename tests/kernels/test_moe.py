from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab_kernels import moe, reference_moe

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_route(n_tokens, n_choices, n_experts):
    # Distinct experts for each token; some experts get no token.
    scores = torch.rand(n_tokens, n_experts) * torch.linspace(0.3, 1, n_experts)
    return reference_moe.route(scores.topk(n_choices, 1).indices, n_experts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n_tokens", "n_choices", "n_experts", "d"), [(1, 1, 1, 1), (9, 2, 5, 33), (7, 3, 3, 16)]
)
def test_permute_and_unpermute(check_op, n_tokens, n_choices, n_experts, d, dtype):
    routing = make_route(n_tokens, n_choices, n_experts)
    check_op(moe.permute, reference_moe.permute, [torch.randn(n_tokens, d), routing], dtype)
    inputs = [torch.randn(n_tokens * n_choices, d), torch.rand(n_tokens, n_choices), routing]
    check_op(moe.unpermute, reference_moe.unpermute, inputs, dtype)


@settings(max_examples=10, deadline=None)
@given(
    n_tokens=st.integers(1, 20),
    n_experts=st.integers(1, 8),
    d=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(check_op, n_tokens, n_experts, d, seed):
    torch.manual_seed(seed)
    n_choices = min(n_experts, 2)
    routing = make_route(n_tokens, n_choices, n_experts)
    inputs = [torch.randn(n_tokens * n_choices, d), torch.rand(n_tokens, n_choices), routing]
    check_op(moe.unpermute, reference_moe.unpermute, inputs, torch.float32)


def layer(module, x, w_in, w_out, weights, routing):
    rows = module.permute(x, routing)
    rows = torch.relu(module.grouped_linear(rows, w_in, routing))
    return module.unpermute(module.grouped_linear(rows, w_out, routing), weights, routing)


def test_a_layer_applies_each_token_s_experts(check_op):
    n_tokens, n_choices, n_experts, d, hidden = 11, 2, 4, 8, 16
    routing = make_route(n_tokens, n_choices, n_experts)
    inputs = [
        torch.randn(n_tokens, d),
        torch.randn(n_experts, hidden, d),
        torch.randn(n_experts, d, hidden),
        torch.rand(n_tokens, n_choices),
        routing,
    ]

    def one_by_one(x, w_in, w_out, weights, routing):
        copies = routing.order.argsort()
        expert_of_row = torch.searchsorted(routing.ends, torch.arange(len(copies)), right=True)
        experts = expert_of_row[routing.slot]
        result = []
        for token in range(n_tokens):
            chosen = [
                weights[token, c] * (w_out[e] @ torch.relu(w_in[e] @ x[token]))
                for c, e in enumerate(experts[token])
            ]
            result.append(torch.stack(chosen).sum(0))
        return torch.stack(result)

    for module in (reference_moe, moe):
        check_op(
            lambda *arguments, m=module: layer(m, *arguments), one_by_one, inputs, torch.float32
        )


def test_route_is_a_permutation_sorted_by_expert_and_stable():
    experts = torch.tensor([[2, 0], [0, 2], [2, 3]])
    routing = reference_moe.route(experts, 5)
    assert routing.order.tolist() == [1, 2, 0, 3, 4, 5]
    assert routing.ends.tolist() == [2, 2, 5, 6, 6]
    assert torch.equal(routing.order[routing.slot.flatten()], torch.arange(6))


def test_batched_runs_do_not_mix():
    experts, x = torch.randint(0, 3, (2, 5, 2)), torch.randn(2, 5, 4)
    numbered = experts + 3 * torch.arange(2)[:, None, None]
    together = moe.permute(x.view(10, 4), reference_moe.route(numbered.view(10, 2), 6))
    alone = [moe.permute(x[k], reference_moe.route(experts[k], 3)) for k in range(2)]
    assert torch.equal(together, torch.cat(alone))


def test_two_runs_are_bitwise_equal():
    routing = make_route(13, 2, 4)
    leaves = [torch.randn(26, 24).bfloat16().requires_grad_(), torch.rand(13, 2).requires_grad_()]

    def once():
        out = moe.unpermute(*leaves, routing)
        return [out, *torch.autograd.grad(out.float().square().sum(), leaves)]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def test_registered_as_torch_expects():
    routing = make_route(3, 2, 4)
    x, y = torch.randn(3, 5, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    weights = torch.rand(3, 2, requires_grad=True)
    ops = torch.ops.scalelab
    torch.library.opcheck(ops.moe_permute.default, (x, routing.order, routing.slot))
    torch.library.opcheck(ops.moe_unpermute.default, (y, weights, routing.order, routing.slot))
    x, y, weights = (t.detach() for t in (x, y, weights))
    torch.library.opcheck(ops.moe_spread.default, (x, routing.order, weights, 2))
    torch.library.opcheck(ops.moe_gather.default, (y, routing.slot, None))
    torch.library.opcheck(ops.moe_dot.default, (y, x, routing.order, 2))

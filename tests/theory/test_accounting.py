"""Parameter and FLOP counts against hand counts, published counts and brute force."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.theory.accounting import (
    FLOP_CONVENTIONS,
    PARAM_CONVENTIONS,
    count_params,
    executed_flops_per_token,
    tokens_at_6nd,
    train_flops,
    train_flops_6nd,
    train_flops_per_token,
)
from scalelab.theory.shape import ModelShape

GOLDEN = tomllib.loads((Path(__file__).parents[1] / "golden" / "accounting.toml").read_text())

shapes = st.builds(
    lambda layers, heads, groups, d_head, d_model, d_ff, vocab, tied, norm, experts, active, also: (
        ModelShape(
            n_layers=layers,
            d_model=d_model,
            n_heads=heads * groups,
            n_kv_heads=heads,
            d_head=2 * d_head,
            d_ff=d_ff,
            vocab_size=vocab,
            is_tied=tied,
            has_qk_norm=norm,
            n_experts=experts,
            n_active_experts=min(active, experts),
            d_shared_expert=also if experts else 0,
        )
    ),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(3, 70),
    st.integers(1, 90),
    st.integers(2, 500),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 1, 3, 8]),
    st.integers(1, 2),
    st.sampled_from([0, 0, 7]),
)


def weight_shapes(shape: ModelShape) -> dict[str, list[tuple[int, ...]]]:
    """List every weight of the model by part, from the architecture and nothing else."""
    d, hidden = shape.d_model, shape.d_ff
    expert = [(d, hidden), (d, hidden), (hidden, d)]
    layer = {
        "attention": [
            (d, shape.n_heads * shape.d_head),
            (d, shape.kv_heads * shape.d_head),
            (d, shape.kv_heads * shape.d_head),
            (shape.n_heads * shape.d_head, d),
        ],
        "experts": expert * max(shape.n_experts, 1),
        "used": expert * max(shape.n_active_experts, 1),
        "router": [(d, shape.n_experts)] if shape.n_experts else [],
        "shared": [(d, shape.d_shared_expert)] * 2 + [(shape.d_shared_expert, d)],
        "norms": [(d,), (d,)] + ([(shape.d_head,), (shape.d_head,)] if shape.has_qk_norm else []),
    }
    parts = {name: found * shape.n_layers for name, found in layer.items()}
    parts["norms"] = [*parts["norms"], (d,)]
    parts["embedding"] = [(shape.vocab_size, d)]
    parts["head"] = [] if shape.is_tied else [(d, shape.vocab_size)]
    return parts


def size(found: list[tuple[int, ...]]) -> int:
    return sum(int(np.prod(entry)) for entry in found)


@given(shapes)
@settings(max_examples=60, deadline=None)
def test_every_convention_is_the_sum_of_its_weights(shape):
    parts = {name: size(found) for name, found in weight_shapes(shape).items()}
    all_but_used = [name for name in parts if name != "used"]
    counts = count_params(shape).by_convention()
    always = parts["router"] + parts["shared"]
    blocks = parts["attention"] + parts["experts"] + always + parts["norms"]
    head = parts["head"] or parts["embedding"]
    assert counts["chinchilla"] == sum(parts[name] for name in all_but_used)
    assert counts["kaplan"] == blocks
    assert counts["matmul"] == parts["attention"] + parts["used"] + always + head
    assert counts["active"] == counts["chinchilla"] - parts["experts"] + parts["used"]
    assert set(counts) == set(PARAM_CONVENTIONS)


@given(shapes, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_exact_flops_count_every_product_and_every_key_looked_at(shape, seq_len):
    parts = {name: size(found) for name, found in weight_shapes(shape).items()}
    products = parts["attention"] + parts["used"] + parts["router"] + parts["shared"]
    products += parts["head"] or parts["embedding"]
    # Query t multiplies with t keys and t values, each d_head long, in every head: by brute force.
    looked_at = sum(
        2 * 2 * shape.d_head
        for _ in range(shape.n_layers)
        for _ in range(shape.n_heads)
        for query in range(1, seq_len + 1)
        for _ in range(query)
    )
    forward = 2 * products * seq_len + looked_at
    assert train_flops(shape, seq_len, seq_len)["exact"] == pytest.approx(3 * forward, rel=1e-12)


@given(shapes, st.integers(1, 64))
@settings(max_examples=40, deadline=None)
def test_conventions_differ_as_they_say(shape, seq_len):
    counts = count_params(shape).by_convention()
    flops = train_flops_per_token(shape, seq_len)
    assert flops["6nd"] == 6 * counts["active"]
    attention = 12 * shape.n_layers * shape.n_heads * shape.d_head * seq_len
    assert flops["palm"] == 6 * counts["active"] + attention
    plain = executed_flops_per_token(shape, seq_len, skips_masked=True, recomputes_blocks=False)
    assert plain >= flops["exact"] * (1 - 1e-12)
    assert plain < executed_flops_per_token(
        shape, seq_len, skips_masked=True, recomputes_blocks=True
    )
    assert set(flops) | {"executed", "reported"} == set(FLOP_CONVENTIONS)


def test_llama_7b_has_the_parameters_that_were_released():
    golden = GOLDEN["llama_7b"]
    shape = ModelShape(
        n_layers=golden["n_layers"],
        d_model=golden["d_model"],
        n_heads=golden["n_heads"],
        d_head=golden["d_model"] // golden["n_heads"],
        d_ff=golden["d_ff"],
        vocab_size=golden["vocab_size"],
        has_qk_norm=False,
    )
    assert count_params(shape).total == golden["total"]


def test_the_blocks_of_gpt3_are_kaplans_twelve_layer_d_squared():
    golden = GOLDEN["gpt3_175b"]
    d = golden["d_model"]
    # A GELU block has 8 d^2 in its feed-forward part; a SwiGLU of width 8 d / 3 has as many.
    shape = ModelShape(
        n_layers=golden["n_layers"],
        d_model=d,
        n_heads=96,
        d_head=128,
        d_ff=8 * d // 3,
        vocab_size=50257,
        has_qk_norm=False,
    )
    counts = count_params(shape)
    assert counts.attention + counts.feed_forward == golden["blocks_of_a_gelu_model"]


@given(st.floats(1e3, 1e12), st.floats(1e3, 1e14))
def test_tokens_at_a_budget_cost_that_budget(n_params, n_tokens):
    flops = train_flops_6nd(n_params, n_tokens)
    assert tokens_at_6nd(flops, n_params) == pytest.approx(n_tokens, rel=1e-12)


def test_the_head_is_counted_unpadded_and_run_padded():
    shape = ModelShape(n_layers=1, d_model=8, n_heads=1, d_head=8, d_ff=16, vocab_size=65)
    assert count_params(shape).head == 65 * 8
    assert shape.padded_vocab == 128
    by_hand = 6 * (4 * 64 + 3 * 8 * 16) + 3 * 4 * 8 * 5 + 6 * 128 * 8
    executed = executed_flops_per_token(shape, 5, skips_masked=False, recomputes_blocks=False)
    assert executed == by_hand

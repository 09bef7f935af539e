"""The flat layout has each weight once, and its counts equal those of the accounting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.sweep.plan import make_plan
from scalelab.sweep.planned_run import DataFacts
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.theory.accounting import count_params
from scalelab.theory.shape import ModelShape
from scalelab.train.parameters import initial_std, initialize_, lay_out


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    kv_heads = draw(st.integers(1, 3))
    n_experts = draw(st.sampled_from([0, 0, 2, 5]))
    return ModelShape(
        n_layers=draw(st.integers(1, 5)),
        d_model=draw(st.integers(1, 70)),
        n_heads=kv_heads * draw(st.integers(1, 3)),
        d_head=2 * draw(st.integers(1, 9)),
        d_ff=draw(st.integers(1, 90)),
        vocab_size=draw(st.integers(1, 400)),
        n_kv_heads=kv_heads,
        is_tied=draw(st.booleans()),
        has_qk_norm=draw(st.booleans()),
        n_experts=n_experts,
        n_active_experts=draw(st.integers(1, n_experts)) if n_experts else 0,
        d_shared_expert=draw(st.integers(0, 40)) if n_experts else 0,
    )


@given(shape=shapes())
@settings(max_examples=60, deadline=None)
def test_the_layout_counts_the_parameters_of_the_accounting(shape: ModelShape) -> None:
    counts = [entry.n_counted for entry in lay_out(shape).entries]
    assert sum(counts) == count_params(shape).total


@given(shape=shapes())
@settings(max_examples=30, deadline=None)
def test_weights_do_not_overlap_and_decayed_ones_come_first(shape: ModelShape) -> None:
    layout = lay_out(shape)
    flat = torch.zeros(2, layout.n_values)
    for view in layout.views(flat).values():
        view += 1
    assert flat.max() == 1
    for entry in layout.entries:
        assert (entry.start + entry.n_values <= layout.n_decay) == entry.is_decayed
        assert entry.is_decayed == (entry.kind not in ("embedding", "norm"))


def test_the_billion_parameter_shape_builds_on_the_meta_device() -> None:
    # 40 layers of 4 d^2 (attention) + 3 d d_ff (SwiGLU), an untied head, and the gains.
    d, d_ff, vocab = 2048, 5504, 32_000
    shape = ModelShape(n_layers=40, d_model=d, n_heads=16, d_head=128, d_ff=d_ff, vocab_size=vocab)
    expected = 40 * (4 * d * d + 3 * d * d_ff + 2 * d + 2 * 128) + 2 * vocab * d + d
    layout = lay_out(shape)
    views = layout.views(torch.empty(layout.n_values, device="meta"))
    assert sum(view.numel() for view in views.values()) == expected
    assert sum(entry.n_counted for entry in layout.entries) == expected


def test_initial_values_depend_only_on_seed_and_name(spec: RunSpec) -> None:
    deeper = replace(spec, shape=replace(spec.shape, n_layers=3))
    filled = []
    for run in (spec, deeper, replace(spec, seed=4)):
        layout = lay_out(run.shape)
        flat = torch.full((layout.n_values,), torch.nan)
        initialize_(flat, layout, run)
        filled.append(layout.views(flat))
    torch.testing.assert_close(filled[0]["layers.1.qkv"], filled[1]["layers.1.qkv"])
    assert not torch.equal(filled[0]["layers.1.qkv"], filled[0]["layers.0.qkv"])
    assert not torch.equal(filled[0]["layers.1.qkv"], filled[2]["layers.1.qkv"])


def test_initial_values_have_the_documented_deviation(spec: RunSpec) -> None:
    wide = replace(spec, shape=replace(spec.shape, d_model=128, d_ff=320, vocab_size=300))
    layout = lay_out(wide.shape)
    flat = torch.empty(layout.n_values)
    initialize_(flat, layout, wide)
    for entry in layout.entries:
        view = entry.view(flat)
        if entry.kind == "norm":
            assert (view == 1).all()
            continue
        counted = view.reshape(-1)[: entry.n_counted]
        assert float(counted.std()) == pytest.approx(initial_std(entry, wide), rel=0.1)
        assert not view.reshape(-1)[entry.n_counted :].any()


@pytest.mark.parametrize(
    "model",
    [
        {"is_tied": True, "heads_per_kv_head": 2, "d_head": 8},
        {"n_kv_heads": 1, "has_qk_norm": False, "ff_multiple": 4},
        {"preset": "gpt2", "d_head": 16, "aspect": "16"},
        {"shape_list": "1L-16d-2h-1kv,2L-48d", "is_tied": True},
    ],
)
def test_a_plan_counts_the_weights_of_the_models_that_are_trained(model: dict[str, object]) -> None:
    sizes = {} if "shape_list" in model else {"n_params": "50K,200K"}
    content = {"kind": "grid", **sizes, "n_tokens": "1M", "model": model}
    facts = DataFacts(
        fingerprint="f",
        eval_fingerprint="e",
        tokenizer="bytes",
        vocab_size=256,
        n_train_tokens=10**7,
        n_eval_tokens=10**5,
    )
    plan = make_plan(sweep_from_mapping(content, source="a test"), facts, precision="fp32")
    assert len({row.n_params for row in plan.rows}) == 2
    for row in plan.rows:
        # The vocabulary is a multiple of 64, so no weight is padding.
        layout = lay_out(row.spec.shape)
        weights = layout.views(torch.empty(layout.n_values))
        assert sum(view.numel() for view in weights.values()) == row.n_params

"""``[model]``: presets, shared key heads, depths and explicit shapes, as a sweep plans them."""

import pytest

from scalelab.errors import DataError, UsageError
from scalelab.sweep.presets import PRESETS
from scalelab.sweep.shape_rule import ALIGNED, FINE, ShapeRule
from scalelab.sweep.shapes import listed_shapes, shape_table
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.theory.accounting import count_params


def sweep_of(model, **content):
    axes = {"kind": "grid", "n_tokens": "1M"}
    axes |= {} if "shape_list" in model else {"n_params": "100K..10M:4"}
    return sweep_from_mapping({**axes, **content, "model": model}, source="a test")


def rule_of(**model):
    return sweep_of(model).model.rule(FINE)


PUBLISHED = {
    # Layers and heads by width: Touvron et al. 2023, table 2; Radford et al. 2019, table 2;
    # depths 4, 12, 20 and 32 of nanochat; OLMo 2 7B and 13B.
    "llama": {4096: (32, 32), 5120: (40, 40), 6656: (60, 52), 8192: (80, 64)},
    "gpt2": {768: (12, 12), 1024: (24, 16), 1280: (36, 20), 1600: (48, 25)},
    "nanochat": {256: (4, 2), 768: (12, 6), 1280: (20, 10), 2048: (32, 16)},
    "olmo2": {4096: (32, 32), 5120: (40, 40)},
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_depths_and_heads(name):
    rule = sweep_of({"preset": name}).model.rule(ALIGNED)
    shapes = shape_table(PRESETS[name].vocabulary, rule).shapes
    for d_model, published in PUBLISHED[name].items():
        assert published in {(s.n_layers, s.n_heads) for s in shapes if s.d_model == d_model}
    assert {shape.d_head for shape in shapes} == {PRESETS[name].values["d_head"]}
    assert all(shape.is_tied == (name == "gpt2") for shape in shapes)
    assert all(shape.has_qk_norm == (name in ("nanochat", "olmo2")) for shape in shapes)


def test_the_parameters_of_a_preset_are_near_the_published_ones():
    # 6.7B and 65.2B (LLaMA, table 2); 124M and 1.56B (GPT-2, as released, with 1,024 positions).
    for name, d_model, n_layers, published in (
        ("llama", 4096, 32, 6.74e9),
        ("llama", 8192, 80, 65.2e9),
        ("gpt2", 768, 12, 124.4e6 - 1024 * 768),
        ("gpt2", 1600, 48, 1.5576e9 - 1024 * 1600),
    ):
        rule = sweep_of({"preset": name}).model.rule(ALIGNED)
        total = count_params(rule.shape(d_model, n_layers, PRESETS[name].vocabulary)).total
        assert total == pytest.approx(published, rel=0.01)


def test_keys_of_a_sweep_override_its_preset():
    rule = rule_of(preset="gpt2", d_head=16, is_tied=False, aspect="power", n_kv_heads=1)
    assert (rule.d_head, rule.is_tied, rule.aspect, rule.has_qk_norm) == (16, False, (), False)
    assert rule.shape(64, 2, 256).n_kv_heads == 1
    # What results counts, not the preset: both sweeps have the same runs.
    same = {"d_head": 128, "aspect": 64}
    assert sweep_of({"preset": "nanochat"}).science() == sweep_of(same).science()


def test_the_ratio_of_key_heads_survives_over_all_sizes():
    for table in (FINE, ALIGNED):
        shapes = shape_table(256, ShapeRule(table=table, heads_per_kv_head=4)).shapes
        assert len(shapes) > 100
        assert {shape.n_heads / shape.kv_heads for shape in shapes} == {4}
    exact = shape_table(256, ShapeRule(n_kv_heads=2)).shapes
    assert {shape.kv_heads for shape in exact} == {2}
    assert len({shape.n_heads for shape in exact}) > 5


def test_an_aspect_is_a_number_or_a_function_of_the_width():
    fixed = shape_table(256, rule_of(aspect="32", d_head=32)).shapes
    assert {shape.d_model / shape.n_layers for shape in fixed if shape.d_model < 1000} == {32}
    rule = rule_of(aspect={"64": 16, "1024": 64})
    assert rule == rule_of(aspect="1024:64,64:16")
    assert [rule.aspect_at(width) for width in (16, 64, 256, 1024, 4096)] == pytest.approx(
        [16, 16, 32, 64, 64]
    )


def test_explicit_shapes_are_the_sizes_of_a_plan(tmp_path, plan_of):
    path = tmp_path / "shapes.csv"
    path.write_text("d_model,n_layers,n_heads,n_kv_heads,d_ff\n96,3,,,256\n64,2,4,2,\n")
    tables = [
        {"n_layers": 3, "d_model": 96, "d_ff": 256},
        {"n_layers": 2, "d_model": 64, "n_heads": 4, "n_kv_heads": 2},
    ]
    plans = [
        plan_of(kind="isoflop", budgets="1e12,1e13", model={"shape_list": value, "is_tied": True})
        for value in (str(path), tables)
    ]
    assert plans[0] == plans[1]
    labels = [row.spec.shape.label() for row in plans[0].rows]
    assert labels == ["2L-64d-4h-2kv-tied", "3L-96d-3h-tied"] * 2
    assert [row.spec.shape.d_ff for row in plans[0].rows[:2]] == [176, 256]
    for row in plans[0].rows:
        assert row.flops == pytest.approx(row.budget_flops, rel=0.01)
    # In a grid, they take the place of --n-params.
    grid = plan_of(kind="grid", n_tokens="1M,2M", model={"shape_list": "2L-64d-4h,3L-96d"})
    assert (grid.name, len(grid.rows)) == ("grid-2x2", 4)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"d_head": 7}, "--d-head"),
        ({"n_kv_heads": 2, "heads_per_kv_head": 2}, "heads_per_kv_head = 2"),
        ({"aspect": 64, "shape_list": "2L-64d"}, "--shape-list"),
        ({"aspect": "wide"}, "aspect 'wide' (--aspect)"),
        ({"aspect": "64:16,32"}, "aspect '32'"),
        ({"preset": "gtp2"}, "--preset"),
        ({"is_tied": 2}, "is_tied"),
        ({"d_head": True}, "d_head = True"),
        ({"shape_list": "2L-64d-5h"}, "2L-64d-5h: d_model = 64, not divisible by 10"),
        ({"shape_list": "2L-64d-8h-3kv"}, "n_heads = 8, not divisible by 3"),
        ({"shape_list": "2L-64d-8h", "heads_per_kv_head": 3}, "n_heads = 8, not divisible by 3"),
        ({"shape_list": "2L-64d-64h"}, "d_model = 64, not divisible by 128 (2 x n_heads)"),
        ({"shape_list": [{"n_layers": 2, "d_model": 64, "d_head": 7}]}, "divisible by 7 (d_head)"),
        ({"shape_list": [{"n_layers": 2, "d_model": 63, "d_head": 7}]}, "d_head = 7"),
        ({"shape_list": "2L-64d,2L-64d"}, "entry 2 of shape_list, equal to entry 1"),
        ({"shape_list": "2L-64d-0h"}, "entry 1 of shape_list: n_heads = 0"),
        ({"shape_list": "64d"}, "entry 1 of shape_list: '64d'"),
        ({"shape_list": []}, "shape_list without a shape"),
        ({"shape_list": [{"n_layers": 2}]}, "entry 1 of shape_list: no d_model"),
        ({"shape_list": [{"n_layers": 2, "d_modle": 64}]}, "unknown key d_modle"),
        ({"shape_list": [{"n_layers": 2.5, "d_model": 64}]}, "n_layers = 2.5"),
        ({"shape_list": [{"n_layers": True, "d_model": 64}]}, "n_layers = True"),
    ],
)
def test_impossible_models_are_refused_with_the_key_or_flag(model, words):
    with pytest.raises(UsageError) as caught:
        sweep_of(model)
    assert words in caught.value.given
    assert caught.value.allowed
    assert caught.value.do


def test_a_csv_of_shapes_that_cannot_be_used_names_the_file_and_the_column(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        sweep_of({"shape_list": str(tmp_path / "no.csv")})
    path = tmp_path / "shapes.csv"
    path.write_text("n_layers,heads\n2,2\n")
    with pytest.raises(UsageError, match="without the column d_model") as caught:
        sweep_of({"shape_list": str(path)})
    assert "It has n_layers, heads" in caught.value.do
    path.write_text("n_layers,d_model,n_head\n2,64,2\n")
    with pytest.raises(UsageError, match="Did you mean n_heads"):
        sweep_of({"shape_list": str(path)})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"n_params": "1M"}, "--n-params"),
        ({"kind": "isoflop", "budgets": "1e13", "n_tokens": (), "sizes": 3}, "--sizes"),
    ],
)
def test_explicit_shapes_and_other_sizes_are_refused(content, words):
    with pytest.raises(UsageError, match=words):
        sweep_of({"shape_list": "2L-64d"}, **content)


def test_too_few_coarse_shapes_say_how_to_get_more(plan_of):
    for budget in ("1e12", "1e16"):
        with pytest.raises(UsageError, match="a smaller --d-head than 128"):
            plan_of(kind="isoflop", budgets=budget, model={"preset": "llama"})
    with pytest.raises(UsageError, match=r"--budgets 1e15\.\.1e16"):
        plan_of(kind="isoflop", budgets="1e12", model={"preset": "llama"})


def test_a_listed_shape_takes_what_it_leaves_out_from_the_rule():
    rule = rule_of(shape_list="2L-64d,2L-64d-2h", d_head=16, ff_multiple=4, heads_per_kv_head=2)
    first, second = rule.shape_list
    shape = rule.complete(first, 256)
    assert (shape.n_heads, shape.d_head, shape.kv_heads, shape.d_ff) == (4, 16, 2, 256)
    assert rule.complete(second, 256).d_head == 32
    assert len(listed_shapes(256, rule)) == 2

"""Mixtures of experts in a sweep: axes, sizes, identity, cost, and what is refused."""

import dataclasses

import pytest

from scalelab.errors import UsageError
from scalelab.sweep.run_spec import BALANCE_WEIGHT
from scalelab.sweep.spec import SweepSpec, sweep_from_mapping
from scalelab.sweep.speeds import speed_from_calibration
from scalelab.theory.accounting import count_params
from tests.sweep.test_cost import calibration, point

GRID = {"kind": "grid", "n_params": "300K,3M", "n_tokens": "3M,10M"}
AXES = {"expansion": "1,4,8", "granularity": [1, 2, 4]}


def spec_of(model=None, train=None, **content) -> SweepSpec:
    tables = {"model": model or {}, "train": train or {}}
    return sweep_from_mapping({**GRID, **tables, **content}, source="a test")


def shapes_of(plan) -> list:
    return list(dict.fromkeys(row.spec.shape for row in plan.rows))


def test_each_combination_of_the_axes_is_planned_once(plan_of):
    """Dense models have no granularity: 1 + 2 x 3 mixtures, two sizes, two lengths."""
    plan = plan_of(**GRID, model=AXES)
    assert len(plan.rows) == (1 + 2 * 3) * 2 * 2
    assert plan.name == "grid-2x2x7"
    found = {(s.n_experts, s.n_active_experts) for s in shapes_of(plan)}
    assert found == {(0, 0), (4, 1), (8, 1), (8, 2), (16, 2), (16, 4), (32, 4)}


def test_expansion_changes_the_total_and_granularity_only_the_routers(plan_of):
    shapes = shapes_of(
        plan_of(kind="grid", n_tokens="3M", model={**AXES, "shape_list": "4L-128d,6L-256d"})
    )
    for dense, *mixtures in (shapes[::2], shapes[1::2]):
        own = count_params(dense)
        for shape in mixtures:
            counts = count_params(shape)
            width = shape.n_active_experts * shape.d_ff
            layer = 3 * shape.n_layers * shape.d_model
            routers = shape.n_layers * shape.d_model * shape.n_experts
            # The dense width is rounded up to whole steps of the experts' width.
            assert 0 <= width - dense.d_ff < 8 * shape.n_active_experts
            assert counts.of_active().total == own.total + routers + layer * (width - dense.d_ff)
            expansion = shape.n_experts // shape.n_active_experts
            assert counts.total == counts.of_active().total + (expansion - 1) * layer * width
            assert shape.d_ff % 8 == 0


def test_active_experts_are_an_axis_and_shared_experts_have_the_routed_width(plan_of):
    model = {"n_experts": 16, "n_active_experts": "2,4", "granularity": 4, "n_shared_experts": 2}
    plan = plan_of(**GRID, model=model)
    for shape in shapes_of(plan):
        assert shape.n_experts == 16
        assert shape.d_shared_expert == 2 * shape.d_ff
    assert {s.n_active_experts for s in shapes_of(plan)} == {2, 4}
    assert plan.rules["shapes"] == (
        "fine; 2 of 16 experts of granularity 4 and 2 shared, 4 of 16 experts of granularity 4 and "
        "2 shared"
    )


@pytest.mark.parametrize(("size_by", "other"), [("active", "total"), ("total", "active")])
def test_the_size_of_a_mixture_is_active_or_total_as_asked(plan_of, size_by, other):
    plan = plan_of(**GRID, model={"n_experts": 8, "size_by": size_by})
    for row, target in zip(plan.rows[::2], (3e5, 3e6), strict=True):
        sizes = {"active": row.n_params_active, "total": row.n_params}
        assert sizes[size_by] == pytest.approx(target, rel=0.15)
        assert abs(sizes[other] / target - 1) > 0.3
        assert row.n_params == count_params(row.spec.shape).total
        assert row.tokens_per_param == row.spec.n_tokens / row.n_params_active


def test_an_isoflop_budget_counts_active_flops(plan_of):
    """The sizes at a budget, by active parameters, are those of dense models but for the router."""
    content = {"kind": "isoflop", "budgets": "1e14", "sizes": 5}
    dense, mixture = (plan_of(**content, model=model).rows for model in ({}, {"n_experts": 8}))
    for one, other in zip(dense, mixture, strict=True):
        assert other.flops == pytest.approx(1e14, rel=0.01)
        assert other.n_params_active == pytest.approx(one.n_params, rel=0.1)
        assert other.n_params > 1.5 * other.n_params_active


def test_rules_count_the_active_parameters(plan_of):
    """The learning rate and batch of a mixture are those of the dense model of its FLOPs."""
    for rules in ({"lr_rule": "steplaw", "batch_rule": "steplaw"}, {"lr_rule": "kaplan"}):
        plan = plan_of(**{**GRID, "n_tokens": "30M"}, model={"n_experts": "1,64"}, train=rules)
        half = len(plan.rows) // 2
        for dense, mixture in zip(plan.rows[:half], plan.rows[half:], strict=True):
            assert mixture.n_params > 10 * dense.n_params
            assert mixture.spec.lr == pytest.approx(dense.spec.lr, rel=0.1)
            assert mixture.spec.batch_seqs == dense.spec.batch_seqs


def test_router_weights_are_those_of_the_mixtures_only(plan_of):
    train = {"balance_weight": 0.02, "router_z_weight": 1e-3}
    for row in plan_of(**GRID, model={"n_experts": "1,4"}, train=train).rows:
        has_router = row.spec.shape.n_experts > 0
        assert row.spec.balance_weight == (0.02 if has_router else BALANCE_WEIGHT)
        assert row.spec.router_z_weight == (1e-3 if has_router else 0.0)


def test_a_saved_sweep_without_experts_has_the_same_content_as_before():
    assert "model" not in spec_of().science()
    assert not {"balance_weight", "router_z_weight"} & set(spec_of().science()["train"])
    one, other = spec_of({"n_experts": 4}), spec_of({"n_experts": "1,4"})
    contents = [sweep.science()["model"] for sweep in (one, other)]
    assert contents[0]["experts"]["n_experts"] == 4
    assert contents[1]["rules"][0] == {}
    assert contents[1]["rules"][1] == contents[0]
    again = sweep_from_mapping(other.model_dump(), source="a saved sweep")
    assert again.science() == other.science()


def test_a_timed_dense_step_is_not_that_of_a_mixture(plan_of):
    """Its model has the same width, depth and batch, and other products."""
    dense, mixture = (
        row.spec
        for row in plan_of(
            kind="grid", n_params="190K", n_tokens="1M", model={"n_experts": "1,4"}
        ).rows
    )
    assert dense.shape.d_model == mixture.shape.d_model
    timed = [
        point(
            spec.shape.d_model,
            rate,
            n_layers=spec.shape.n_layers,
            seq_len=spec.seq_len,
            batch_seqs=spec.batch_seqs,
            experts=list(spec.shape.experts),
        )
        for spec, rate in ((dense, 4e9), (mixture, 1e9))
    ]
    speed = speed_from_calibration(calibration(exact=timed), 1)
    assert (speed.at(dense)[0], speed.at(mixture)[0]) == (4e9, 1e9)


LISTED = [{"n_layers": 2, "d_model": 48, "d_ff": 100}]


@pytest.mark.parametrize(
    ("model", "train", "given"),
    [
        ({"n_experts": 4, "n_active_experts": 5}, {}, "n_active_experts = 5 with n_experts = 4"),
        ({"n_experts": 4, "granularity": 8}, {}, "with n_experts = 4 and granularity = 8"),
        ({"n_active_experts": 2}, {}, "n_active_experts (--n-active-experts) without experts"),
        ({"n_experts": 1, "granularity": 2}, {}, "granularity (--granularity) without experts"),
        ({"n_shared_experts": 1}, {}, "n_shared_experts (--n-shared-experts) without experts"),
        ({"size_by": "total"}, {}, "size_by (--size-by) without experts"),
        ({"n_experts": 4, "expansion": 2}, {}, "n_experts (--n-experts) with expansion"),
        ({"n_experts": [4, 0]}, {}, "n_experts = 0 (--n-experts)"),
        ({"n_experts": 1_000_000}, {}, "n_experts = 1000000"),
        ({"expansion": 4, "granularity": 3, "shape_list": LISTED}, {}, "d_ff = 100 in 3 parts"),
        ({}, {"router_z_weight": 0.1}, "router_z_weight (--router-z-weight) without experts"),
        ({}, {"balance_weight": 0.1}, "balance_weight (--balance-weight) without experts"),
    ],
)
def test_what_gives_no_mixture_is_refused_with_what_to_do(model, train, given):
    content = {"n_params": []} if "shape_list" in model else {}
    with pytest.raises(UsageError) as caught:
        spec_of(model, train, **content)
    assert given in caught.value.given
    assert "--" in caught.value.do


def test_a_granularity_that_divides_the_listed_width_is_taken(plan_of):
    model = {"expansion": 4, "granularity": 4, "shape_list": LISTED}
    (shape,) = shapes_of(plan_of(kind="grid", n_tokens="1M", model=model))
    assert (shape.d_ff, shape.n_experts, shape.n_active_experts) == (25, 16, 4)


def test_only_a_grid_or_a_ladder_has_several_mixtures():
    several = {"n_experts": "1,4"}
    assert spec_of(several, kind="ladder").shape_rules()[1].experts is not None
    with pytest.raises(UsageError, match="isoflop sweep with several mixtures"):
        spec_of(several, kind="isoflop", budgets="1e14", n_params=[], n_tokens=[])


def test_aligned_experts_have_widths_that_tensor_cores_divide(plan_of):
    model = {"shapes": "aligned", "expansion": 8, "granularity": 4}
    for row in plan_of(**{**GRID, "n_params": "10M,100M"}, model=model).rows:
        assert row.spec.shape.d_ff % 64 == 0
        assert dataclasses.replace(row.spec.shape).granularity == pytest.approx(4, rel=0.35)

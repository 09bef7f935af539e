"""Plans: equal FLOPs, bracketed sizes, no mid-schedule, repeats said and refused."""

import dataclasses
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.errors import UsageError
from scalelab.sweep.plan import longest_first, make_plan
from scalelab.sweep.planned_run import DataFacts
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.theory.accounting import count_params, train_flops

FACTS = DataFacts(
    fingerprint="f",
    eval_fingerprint="e",
    tokenizer="bpe:32000",
    vocab_size=32000,
    n_train_tokens=10**12,
    n_eval_tokens=262_144,
)


@given(
    low=st.floats(16, 22),
    decades=st.floats(0.5, 2),
    sizes=st.integers(2, 9),
    seq_len=st.sampled_from([256, 1024, 2048]),
)
@settings(max_examples=30, deadline=None)
def test_every_run_of_a_valley_costs_its_budget_exactly(low, decades, sizes, seq_len):
    content = {
        "kind": "isoflop",
        "budgets": [10**low, 10 ** (low + decades)],
        "sizes": sizes,
        "train": {"seq_len": seq_len},
    }
    plan = make_plan(sweep_from_mapping(content, source="a test"), FACTS, precision="bf16")
    assert len(plan.rows) == 2 * sizes
    for row in plan.rows:
        exact = train_flops(row.spec.shape, seq_len, row.spec.n_tokens)["exact"]
        assert row.flops == exact
        # Tokens come in whole steps.
        assert abs(row.flops / row.budget_flops - 1) <= 0.5 / row.spec.n_steps + 1e-9
        assert row.n_params == count_params(row.spec.shape).total
        assert row.spec.warmup_steps < row.spec.n_steps
    for budget in sweep_budgets(plan):
        ratios = [row.tokens_per_param for row in plan.rows if row.budget_flops == budget]
        assert ratios == sorted(ratios, reverse=True)
        assert ratios[0] > 20 > ratios[-1]


def sweep_budgets(plan):
    return dict.fromkeys(row.budget_flops for row in plan.rows)


def test_where_the_ladder_ends_the_sizes_keep_to_it(plan_of):
    plan = plan_of(kind="isoflop", budgets="1e10,1e11", sizes=3, train={"batch_seqs": 1})
    assert min(row.n_params for row in plan.rows) == 11_584


def test_a_grid_is_every_size_with_every_length(plan_of):
    plan = plan_of(kind="grid", n_params="50K..400K:4", n_tokens="1M,2M,4M")
    assert len(plan.rows) == 12
    assert {row.budget_flops for row in plan.rows} == {None}
    for row in plan.rows:
        assert min(abs(row.spec.n_tokens / d - 1) for d in (1e6, 2e6, 4e6)) < 0.01


def test_seeds_multiply_the_runs_and_change_only_the_seed(plan_of):
    plan = plan_of(kind="isoflop", budgets="1e12", sizes=2, train={"seeds": [3, 5]})
    assert [row.spec.seed for row in plan.rows] == [3, 5, 3, 5]
    assert dataclasses.replace(plan.rows[0].spec, seed=5) == plan.rows[1].spec


def test_the_plan_does_not_depend_on_its_name_or_launcher(plan_of):
    one = plan_of(kind="isoflop", budgets="1e12", name="a", launcher={"name": "slurm"})
    two = plan_of(kind="isoflop", budgets="1e12", name="b")
    assert one.rows == two.rows


def test_repeats_are_said_and_beyond_four_epochs_refused(plan_of, facts):
    small = dataclasses.replace(facts, n_train_tokens=1_000_000)
    twice = plan_of(small, kind="grid", n_params="50K", n_tokens="2M")
    assert "1 run repeats text, up to 2.0 epochs" in " ".join(twice.warnings())
    twice.refuse_repeats(allow_repeats=False)
    often = plan_of(small, kind="grid", n_params="50K", n_tokens="5M")
    with pytest.raises(UsageError, match="allow-repeats"):
        often.refuse_repeats(allow_repeats=False)
    often.refuse_repeats(allow_repeats=True)
    assert "refuses" not in " ".join(twice.warnings())
    assert "refuses more than 4 without --allow-repeats" in " ".join(often.warnings())


@pytest.mark.parametrize("kind", ["grid", "ladder"])
def test_lengths_within_a_step_are_one_run(plan_of, kind):
    train = {"seq_len": 32, "batch_seqs": 4, "seeds": [1, 2]}
    train |= {"schedule": "wsd"} if kind == "ladder" else {}
    plan = plan_of(kind=kind, n_params="12K,50K", n_tokens="20000,20030,40000", train=train)
    assert [row.spec.n_steps for row in plan.rows] == [156, 156, 312, 312] * 2
    assert len({row.spec.run_id for row in plan.rows}) == len(plan.rows)
    assert "2 rows left out: in whole steps, equal to another row of the same size." in " ".join(
        plan.warnings()
    )


def test_budgets_of_the_same_run_are_refused(plan_of):
    train = {"seq_len": 32, "batch_seqs": 4}
    with pytest.raises(UsageError, match=r"budgets 1B and 1.001B, both .* 11.6K .* 164 steps"):
        plan_of(kind="isoflop", budgets="1e9,1.001e9", sizes=2, train=train)


def test_a_branch_may_be_a_few_steps_long(plan_of):
    train = {"seq_len": 32, "batch_seqs": 4, "schedule": "wsd"}
    plan = plan_of(kind="ladder", n_params="12K", n_tokens="128,256,20K", train=train)
    assert [(row.spec.n_steps, row.spec.warmup_steps) for row in plan.rows] == [
        *((1, 1), (2, 1), (156, 1))
    ]


@pytest.mark.parametrize("part", ["n_train_tokens", "n_eval_tokens"])
def test_sequences_longer_than_the_text_are_refused(plan_of, facts, part):
    short = dataclasses.replace(facts, **{part: 2000})
    content = {"kind": "grid", "n_params": "12K", "n_tokens": "100K"}
    plan_of(short, **content, train={"seq_len": 1999})
    with pytest.raises(UsageError, match="at most 1,999 tokens"):
        plan_of(short, **content, train={"seq_len": 2000})


def test_a_text_too_small_for_its_held_out_part_is_said(plan_of, facts):
    small = dataclasses.replace(facts, n_train_tokens=9000, n_eval_tokens=9001)
    plan = plan_of(small, kind="grid", n_params="12K", n_tokens="8K")
    assert "too small to hold out 9K tokens" in " ".join(plan.warnings())


def test_few_steps_are_said(plan_of):
    plan = plan_of(kind="grid", n_params="50K", n_tokens="100K", train={"batch_seqs": 16})
    assert plan.rows[0].spec.n_steps == 24
    assert "1 run with fewer than 300 steps (minimum 24)" in " ".join(plan.warnings())


def test_a_budget_below_the_smallest_model_is_called_too_small(plan_of):
    with pytest.raises(UsageError, match="optimum has") as caught:
        plan_of(kind="isoflop", budgets="1e3")
    assert "--budgets 1e12..1e13" in caught.value.do


def test_a_budget_below_one_step_is_refused(plan_of):
    with pytest.raises(UsageError, match="less than a step"):
        plan_of(kind="isoflop", budgets="1e8", sizes=2, train={"batch_seqs": 64})


def test_the_batch_by_rule_leaves_enough_steps(plan_of):
    plan = plan_of(kind="grid", n_params="50K,400K", n_tokens="1M,100M")
    for row in plan.rows:
        assert row.spec.batch_seqs & (row.spec.batch_seqs - 1) == 0
        assert row.spec.n_steps >= 300


def test_too_many_runs_are_refused_before_they_are_made(plan_of):
    with pytest.raises(UsageError, match="100,000"):
        plan_of(
            kind="grid",
            n_params=[1e6 + i for i in range(400)],
            n_tokens=[1e6 + i for i in range(400)],
        )


def test_ten_thousand_runs_are_planned_in_less_than_five_seconds(facts):
    content = {
        "kind": "grid",
        "n_params": [3e6 * 1.12**i for i in range(100)],
        "n_tokens": [1e8 * 1.05**i for i in range(100)],
    }
    sweep = sweep_from_mapping(content, source="a test")
    started = time.process_time()
    plan = make_plan(sweep, facts, precision="fp32")
    assert len(plan.rows) == 10_000
    assert len({row.spec.run_id for row in plan.rows}) == 10_000
    assert time.process_time() - started < 5


def test_longest_runs_come_first(plan_of):
    plan = plan_of(kind="grid", n_params="50K,400K", n_tokens="1M,10M")
    flops = [row.flops for row in longest_first(plan.rows)]
    assert flops == sorted(flops, reverse=True)


GRID = {"kind": "grid", "n_params": "20K,300K", "n_tokens": "400K"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["mup", "completep"])
def test_a_parametrization_has_one_learning_rate_for_all_sizes(plan_of, kind, optimizer):
    train = {"batch_seqs": 8, "parametrization": kind, "optimizer": optimizer}
    plan = plan_of(**GRID, train=train)
    assert {row.spec.parametrization for row in plan.rows} == {kind}
    assert len({row.spec.shape.d_model for row in plan.rows}) == 2
    assert {row.spec.lr for row in plan.rows} == {round(0.02 * 0.5**0.75, 5)}
    assert plan.rules["parametrization"] == kind
    assert "at d_model = 64" in plan.rules["lr"]
    standard = plan_of(**GRID, train={"batch_seqs": 8})
    assert len({row.spec.lr for row in standard.rows}) == 2


def test_a_rule_that_adapts_the_rate_to_the_size_is_refused_beside_a_parametrization(plan_of):
    train = {"parametrization": "mup", "lr_rule": "deepseek"}
    with pytest.raises(UsageError, match="both adapt") as caught:
        plan_of(**GRID, train=train)
    assert "--lr" in caught.value.do
    plan = plan_of(**GRID, train=train | {"lr": 0.01})
    assert {row.spec.lr for row in plan.rows} == {0.01}

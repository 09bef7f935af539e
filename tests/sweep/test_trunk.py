"""Branches of one trunk: which they are, what they share, and what a ladder costs."""

from dataclasses import replace

import pytest

from scalelab.errors import UsageError
from scalelab.sweep.cost import plan_cost
from scalelab.sweep.plan import make_plan
from scalelab.sweep.planned_run import DataFacts
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.sweep.speeds import unmeasured_cpu_speed
from scalelab.sweep.trunk import branch_step, predecessors, shared_steps, trunk_id
from scalelab.theory.shape import ModelShape

DATA = DataFacts(
    fingerprint="text",
    eval_fingerprint="held out",
    tokenizer="bytes",
    vocab_size=256,
    n_train_tokens=100_000_000,
    n_eval_tokens=4_096,
)
LADDER = {
    "kind": "ladder",
    "n_params": "40K,80K",
    "n_tokens": "1M,2M,4M,8M,16M",
    "train": {"seq_len": 64, "batch_seqs": 8, "schedule": "wsd", "seeds": (0, 1)},
}


@pytest.fixture
def spec() -> RunSpec:
    return RunSpec(
        shape=ModelShape(n_layers=1, d_model=16, n_heads=2, d_head=8, d_ff=40, vocab_size=61),
        seq_len=24,
        batch_seqs=6,
        n_steps=30,
        lr=0.01,
        warmup_steps=3,
        data_fingerprint="text",
        eval_fingerprint="held out",
        tokenizer="bytes",
        seed=3,
        schedule="wsd",
        decay_steps=5,
    )


def ladder(**changes):
    return make_plan(
        sweep_from_mapping({**LADDER, **changes}, source="a test"), DATA, precision="fp32"
    )


def test_only_length_and_decay_are_left_out_of_a_trunks_identity(spec) -> None:
    assert trunk_id(spec) == trunk_id(replace(spec, n_steps=90, decay_steps=9))
    for change in ({"lr": 0.02}, {"seed": 8}, {"warmup_steps": 2}, {"weight_decay": 0.2}):
        assert trunk_id(spec) != trunk_id(replace(spec, **change))
    assert branch_step(spec) == 25
    assert branch_step(replace(spec, schedule="cosine", decay_steps=0)) is None


def test_a_branch_follows_the_longest_that_leaves_before_it(spec) -> None:
    short, middle, long = (replace(spec, n_steps=n, decay_steps=n // 6) for n in (30, 60, 90))
    other = replace(long, seed=9)
    found = predecessors([long, other, short, middle, short])
    assert found == {middle.run_id: short, long.run_id: middle}
    shared = shared_steps([long, other, short, middle])
    assert [shared[s.run_id] for s in (short, middle, long, other)] == [0, 25, 50, 0]


def test_a_ladder_is_one_trunk_a_size_and_seed_at_the_rates_of_the_mean_length() -> None:
    plan = ladder()
    specs = [row.spec for row in plan.rows]
    assert len({trunk_id(spec) for spec in specs}) == 4
    assert len(predecessors(specs)) == 16
    grid = make_plan(
        sweep_from_mapping({**LADDER, "kind": "grid", "n_tokens": "4M"}, source="a test"),
        DATA,
        precision="fp32",
    )
    assert {s.lr for s in specs} == {row.spec.lr for row in grid.rows}
    assert "geometric mean" in plan.rules["lr"]
    for spec in specs:
        assert spec.decay_steps == round(0.1 * spec.n_steps)
        assert spec.n_tokens == pytest.approx(spec.n_tokens, rel=1e-3)
    assert {s.warmup_steps for s in specs} == {min(s.n_steps for s in specs) // 10}


def test_a_ladder_of_doublings_costs_less_than_two_thirds_of_its_runs() -> None:
    plan = ladder()
    assert plan.executed_flops <= 0.65 * plan.total_flops
    alone = sum(row.flops for row in plan.rows)
    assert plan.total_flops == alone
    one = ladder(n_params="40K", train={**LADDER["train"], "seeds": (0,)})
    speed = unmeasured_cpu_speed(1)
    together = plan_cost(one, speed)
    apart = sum(plan_cost(replace(one, rows=(row,)), speed).wall_s for row in one.rows)
    assert together.wall_s <= 0.65 * apart
    many = plan_cost(one, unmeasured_cpu_speed(8))
    longest = plan_cost(replace(one, rows=one.rows[-1:]), speed)
    assert many.wall_s == pytest.approx(longest.wall_s)


def test_a_ladder_needs_a_rate_that_can_be_left() -> None:
    with pytest.raises(UsageError, match="constant learning rate"):
        ladder(train={"seq_len": 64, "schedule": "cosine"})
    with pytest.raises(UsageError, match="Remove --budgets"):
        ladder(budgets="1e12")

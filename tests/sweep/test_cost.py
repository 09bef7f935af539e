"""Costs: runs are scheduled as by the launcher, speeds interpolated between measurements."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.errors import DataError
from scalelab.sweep.cost import RUN_OVERHEAD_S, makespan, plan_cost
from scalelab.sweep.execution import step_kind
from scalelab.sweep.speeds import compared_speeds, speed_from_calibration, unmeasured_cpu_speed


def point(d_model, flops_per_s, **changes):
    return {
        "d_model": d_model,
        "n_layers": 4,
        "seq_len": 128,
        "batch_seqs": 16,
        "flops_per_s": flops_per_s,
        "tokens_per_s": flops_per_s / 3e5,
        "eval_tokens_per_s": 4 * flops_per_s / 3e5,
        **changes,
    }


def calibration(**changes):
    content = {"device": "a cpu", "points": [point(32, 2e10), point(128, 8e10)], "exact": []}
    return {**content, **changes}


def test_between_widths_the_speed_is_geometric_and_beyond_them_flat(plan_of):
    speed = speed_from_calibration(calibration(), 2)
    rows = plan_of(kind="grid", n_params="13K,190K,3M", n_tokens="1M").rows
    narrow, middle, wide = (speed.at(row.spec)[0] for row in rows)
    assert narrow == 2e10
    assert rows[1].spec.shape.d_model == 64
    assert middle == pytest.approx(4e10)
    assert wide == 8e10


def test_the_plans_own_step_is_used_where_it_was_measured(plan_of):
    plan = plan_of(kind="grid", n_params="140K", n_tokens="1M")
    spec = plan.rows[0].spec
    own = point(
        spec.shape.d_model,
        1e9,
        n_layers=spec.shape.n_layers,
        seq_len=spec.seq_len,
        batch_seqs=spec.batch_seqs,
    )
    speed = speed_from_calibration(calibration(exact=[own]), 2)
    row = plan.rows[0]
    # Evaluation: four times as many tokens a second as training, over the held-out tokens.
    tokens_per_s = 1e9 / (row.flops / spec.n_tokens)
    evaluation = plan.data.n_eval_tokens / (4 * 1e9 / 3e5)
    forward_share = (row.flops / spec.n_tokens) / 3e5
    expected = spec.n_tokens / tokens_per_s + evaluation * forward_share + RUN_OVERHEAD_S
    assert plan_cost(plan, speed).run_seconds == (pytest.approx(expected),)


@pytest.mark.parametrize(
    "train", [{"is_document_masked": True}, {"z_loss": 1e-4}, {"optimizer": "muon"}]
)
def test_a_step_of_another_kind_is_not_taken_for_the_plans_own(plan_of, train):
    plain, other = (
        plan_of(kind="grid", n_params="140K", n_tokens="1M", train=each).rows[0].spec
        for each in ({}, train)
    )
    same = {name: getattr(plain, name) for name in ("seq_len", "batch_seqs")}
    own = point(plain.shape.d_model, 1e9, n_layers=plain.shape.n_layers, **same)
    speed = speed_from_calibration(calibration(exact=[own]), 2)
    assert speed.at(plain)[0] == 1e9
    assert speed.at(other)[0] > 1e9
    speed = speed_from_calibration(calibration(exact=[own | {"kind": step_kind(other)}]), 2)
    assert speed.at(other)[0] == 1e9


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.integers(1, 8))
def test_the_makespan_lies_between_its_bounds(seconds, n_workers):
    span = makespan(sorted(seconds, reverse=True), n_workers)
    assert span >= max(max(seconds), sum(seconds) / n_workers) - 1e-9
    assert span <= sum(seconds) / n_workers + max(seconds) + 1e-9
    assert makespan(seconds, 1) == pytest.approx(sum(seconds))


def test_finished_runs_cost_nothing(plan_of):
    plan = plan_of(kind="isoflop", budgets="1e12", sizes=3)
    speed = unmeasured_cpu_speed(2)
    everything = plan_cost(plan, speed)
    done = frozenset(row.spec.run_id for row in plan.rows[:2])
    rest = plan_cost(plan, speed, skip=done)
    assert rest.run_seconds[:2] == (0.0, 0.0)
    assert rest.run_seconds[2] == everything.run_seconds[2]
    assert not speed.is_measured


def test_named_devices_state_their_utilisation(plan_of):
    plan = plan_of(kind="isoflop", budgets="1e19", sizes=3, train={"seq_len": 1024})
    for speed in compared_speeds():
        assert "assumes 40 % of peak" in speed.note
        cost = plan_cost(plan, speed)
        assert cost.kwh == pytest.approx(cost.worker_hours * speed.watts_per_worker / 1000)
        assert cost.usd == pytest.approx(cost.worker_hours * speed.usd_per_worker_hour)


@pytest.mark.parametrize(
    "content", [{}, calibration(points=[]), calibration(points=[{"d_model": 3}]), {"device": "x"}]
)
def test_what_is_no_calibration_is_refused(content):
    with pytest.raises(DataError, match="calibration without"):
        speed_from_calibration(content, 2)

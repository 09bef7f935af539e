"""Runs to add: their cost is exact, and refits with them are as narrow as was said."""

import json
from dataclasses import replace

import numpy as np
import pytest

from scalelab import api
from scalelab.cli.main import main
from scalelab.forecast.headline import NextCommand, headline
from scalelab.forecast.missing_sizes import DRIFTS, OUTSIDE
from scalelab.forecast.more_runs import (
    BUDGETS,
    MOST_SHARE,
    SIZES,
    budgets_to_add,
    plans,
    to_plan,
)
from scalelab.records.sweep_dir import Results
from scalelab.store.table_read import TableRead
from scalelab.units import format_flops, format_quantity

NOISE = 0.005


def loss(N, D):
    return 1.69 + 406.0 * N**-0.34 + 411.0 * D**-0.28


def fitted(N, D, losses):
    frame = {"n_params": N, "n_tokens": D, "loss_nats": losses}
    return api.fit(frame, bootstrap=20, predict="C=1e21")


def runs(seed):
    rng = np.random.default_rng(seed)
    flops = np.repeat(np.geomspace(1e18, 1e20, 5), 7)
    N = 0.09 * flops**0.49 * np.tile(np.geomspace(1 / 5, 5, 7), 5)
    D = flops / 6 / N
    return N, D, loss(N, D) * np.exp(NOISE * rng.standard_normal(len(N)))


@pytest.fixture(scope="module")
def report():
    return fitted(*runs(0))


def test_cost_sizes_and_order_are_those_of_the_runs(report):
    found = headline(report, None, report.forecasts[0]).to_add
    assert [round(each.budget / 1e20) for each in found] == list(BUDGETS)
    for each in found:
        N, D = np.array(each.n_params), np.array(each.n_tokens)
        np.testing.assert_allclose(6 * N * D, each.budget)
        np.testing.assert_allclose(N / N[2], SIZES)
        assert each.flops == pytest.approx(len(SIZES) * each.budget)
        assert each.share == pytest.approx(each.flops / (6 * runs(0)[0] * runs(0)[1]).sum())
        assert each.after < each.now
    gains = [each.after for each in found]
    assert gains == sorted(gains, reverse=True)


def test_no_budget_is_as_large_as_the_question(report):
    near = api.fit(runs_frame(), bootstrap=20, predict="C=3e20")
    found = headline(near, None, near.forecasts[0]).to_add
    assert [each.budget <= MOST_SHARE * 3e20 for each in found] == [True, True]
    inside = api.fit(runs_frame(), bootstrap=20, predict="C=1e19")
    assert len(headline(inside, None, inside.forecasts[0]).to_add) == 1


def runs_frame():
    return dict(zip(("n_params", "n_tokens", "loss_nats"), runs(0), strict=True))


def test_the_law_as_forecaster_has_none():
    law = api.fit(runs_frame(), bootstrap=20, forecaster="law")
    assert headline(law).to_add == ()


def test_a_question_of_given_n_and_d_has_some(report):
    free = api.fit(runs_frame(), bootstrap=20, predict="N=1e9,D=2e10").forecasts[0]
    assert budgets_to_add(report.averaged, report.observations, report.isoflop, free)[0].after > 0


def test_a_decision_has_those_for_its_best(report):
    found = api.decide(report, {"flops": 1e21})
    assert found.to_add
    assert [each["half_width_after"] for each in found.to_dict()["runs_to_add"]] == [
        each.after for each in found.to_add
    ]
    best = found.best
    own = api.decide(report, candidates=f"{best.n_params:.4g}:{best.n_tokens:.4g}").to_add
    assert [each.budget for each in own] == [each.budget for each in found.to_add]
    within = api.decide(report, candidates=f"{best.n_params / 100:.4g}:{best.n_tokens / 100:.4g}")
    assert within.to_add == ()


def test_json_has_the_runs(report):
    found = headline(report).to_dict()["runs_to_add"][0]
    assert found["command"][:3] == ["scalelab", "sweep", "isoflop"]
    assert found["half_width_after"] < found["half_width_now"]


@pytest.fixture(scope="module")
def narrow(narrow_runs):
    rows = replace(narrow_runs(), source="sweep narrow")
    table = TableRead(observations=rows, lines=np.arange(len(rows)) + 1)
    return api.fit(table, bootstrap=20)


def test_the_sizes_that_budgets_lack_come_first_with_their_reason(narrow):
    found = headline(narrow).to_add
    lacking = [each for each in found if each.is_repair]
    assert found[: len(lacking)] == tuple(lacking)
    assert [f"{each.budget:.3g}" for each in lacking] == ["1e+19", "3.16e+19", "1e+20"]
    assert [each.reason for each in lacking] == [DRIFTS, OUTSIDE, OUTSIDE]
    best = {1e19: 227e6, 1e20: 643e6}  # of the law that made the losses
    for each in lacking:
        rows = narrow.observations.n_params[narrow.observations.budget == each.budget]
        assert each.n_params[-1] < rows.min()
        assert each.n_params[0] < best.get(each.budget, 382e6) / 2
        assert each.after < each.now
    # no second advice for the same budget
    budgets = [each.budget for each in found]
    assert len(set(budgets)) == len(budgets)


def test_with_the_sizes_that_it_lacks_a_budget_has_its_minimum_inside(narrow):
    rows = narrow.observations
    added = [each for each in headline(narrow).to_add if each.is_repair]
    N = np.concatenate([rows.n_params, *(each.n_params for each in added)])
    C = np.concatenate([rows.flops, *([each.budget] * len(each.n_params) for each in added)])
    losses = np.concatenate([rows.loss_nats, loss(N, C / 6 / N)[len(rows) :]])
    frame = {"n_params": N, "n_tokens": C / 6 / N, "loss_nats": losses, "flops": C, "budget": C}
    after = api.fit(frame, bootstrap=20)
    assert len(after.isoflop.interior) == 5
    assert "drifting_grid" not in [each.code for each in after.warnings]
    assert not any(each.is_repair for each in headline(after).to_add)


def test_the_command_of_runs_to_add_plans_these_runs(narrow, tmp_path, capsys):
    given = NextCommand(runs=("--results", str(tmp_path)), stored=lambda name: ("--tied",))
    added = headline(narrow, given).to_add
    words = added[1].command
    assert words[words.index("--budgets") + 1] == "3.16e19"
    assert words[-7:-1] == ("--name", "narrow", "--extend", "--tied", "--results", str(tmp_path))
    sizes = words[words.index("--n-params") + 1]
    assert sizes == ",".join(format_quantity(each) for each in added[1].n_params)
    assert main([*words[1:], "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["rows"]
    sizes = [each["n_params"] for each in planned]
    # real shapes are near the sizes that were asked for
    np.testing.assert_allclose(sizes, added[1].n_params, rtol=0.1)


def test_a_short_budget_is_that_of_the_sweep_which_it_extends(tmp_path, capsys):
    near = ("--seq-len", "64", "--name", "s", "--results", str(tmp_path), "--plan-only", "--json")
    assert (
        main(["sweep", "isoflop", "--budgets", "3.162277660168379e12", "--sizes", "3", *near]) == 0
    )
    again = ("--budgets", "3.16e12", "--n-params", "300K,600K", "--extend", *near)
    assert main(["sweep", "isoflop", *again]) == 0
    capsys.readouterr()
    plan = Results(tmp_path).load_plan("s")
    assert len(plan.run_ids) == 5
    assert set(plan.budgets.values()) == {3.162277660168379e12}


def test_the_plans_have_totals_and_the_narrowest_row_too(narrow, report):
    added = headline(narrow, NextCommand(stored=lambda name: None)).to_add
    (first, rows), (second, last) = plans(added)
    lacking = [each for each in added if each.is_repair]
    assert list(rows) == lacking
    runs, flops = sum(len(each.n_params) for each in lacking), sum(each.flops for each in lacking)
    assert (
        f"These commands plan the first 3 rows: {runs} runs, {format_flops(flops)} FLOP in all"
        in first
    )
    whole = [each.after_all for each in added]
    assert whole[0] == added[0].after
    assert whole == sorted(whole, reverse=True)
    assert whole[2] < min(each.after for each in lacking)
    assert f"; with all of them ± {100 * whole[2]:.2g} %." in first
    assert "Add the other options of your sweep" in first
    assert last == (min(added, key=lambda each: each.after),)
    assert "narrows the answer most" in second
    known = headline(narrow, NextCommand(stored=lambda name: ())).to_add
    assert "Add the other options" not in plans(known)[0][0]
    cheap = headline(report).to_add
    assert [rows for _, rows in plans(cheap)] == [cheap[:1], cheap[-1:]]
    assert len(plans(cheap[:1])) == 1


def test_the_runs_of_a_table_belong_to_no_sweep(narrow):
    table = replace(narrow.observations, source="runs.csv")
    (first, *_) = budgets_to_add(None, table, narrow.isoflop, None)
    assert "--name" not in first.command
    assert (first.now, first.after) == (None, None)


def test_what_to_plan_is_what_comes_first(report, narrow):
    assert [each.reason for each in to_plan(headline(narrow).to_add)] == [DRIFTS, OUTSIDE, OUTSIDE]
    whole = headline(report).to_add
    assert to_plan(whole) == whole[:1]


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 2])
def test_refits_are_as_narrow_as_expected(which):
    ratios = []
    for seed in range(2):
        N, D, losses = runs(seed)
        before = fitted(N, D, losses)
        asked = before.forecasts[0]
        added = budgets_to_add(before.averaged, before.observations, before.isoflop, asked)[which]
        n, d = np.array(added.n_params), np.array(added.n_tokens)
        noise = NOISE * np.random.default_rng(100 + seed).standard_normal(len(n))
        after = fitted(
            np.append(N, n), np.append(D, d), np.append(losses, loss(n, d) * np.exp(noise))
        ).forecasts[0]
        ratios.append(float(np.log(after.high / after.low)) / 2 / added.after)
    assert 0.7 < np.median(ratios) < 1.4

"""Runs to add: their cost is exact, and refits with them are as narrow as was said."""

import numpy as np
import pytest

from scalelab import api
from scalelab.forecast.headline import headline
from scalelab.forecast.more_runs import BUDGETS, MOST_SHARE, SIZES, budgets_to_add

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
    assert budgets_to_add(report.averaged, report.observations, free)[0].after > 0


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


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 2])
def test_refits_are_as_narrow_as_expected(which):
    ratios = []
    for seed in range(2):
        N, D, losses = runs(seed)
        before = fitted(N, D, losses)
        asked = before.forecasts[0]
        added = budgets_to_add(before.averaged, before.observations, asked)[which]
        n, d = np.array(added.n_params), np.array(added.n_tokens)
        noise = NOISE * np.random.default_rng(100 + seed).standard_normal(len(n))
        after = fitted(
            np.append(N, n), np.append(D, d), np.append(losses, loss(n, d) * np.exp(noise))
        ).forecasts[0]
        ratios.append(float(np.log(after.high / after.low)) / 2 / added.after)
    assert 0.7 < np.median(ratios) < 1.4

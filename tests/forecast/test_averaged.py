"""The averaged forecaster: its arithmetic, its answers, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import norm

from scalelab import api
from scalelab.api.data import read_runs
from scalelab.errors import NotIdentifiedError, UsageError
from scalelab.forecast.averaged import fit_average
from scalelab.forecast.averaged_optimum import compute_optimal_size, optima
from scalelab.forecast.bent import Broken
from scalelab.forecast.describing import describing_forms
from scalelab.forecast.mixture import Mixture
from scalelab.forecast.points import Points
from scalelab.forecast.spectrum import Grid, distances, log_evidence, matern
from scalelab.forecast.whitened import PAIRS, systems
from scalelab.records.types import Observations
from scalelab.units import parse_quantity


def loss(N, D):
    return 1.69 + 406 * N**-0.34 + 411 * D**-0.28


def optimal_n(flops):
    G = (0.34 * 406 / (0.28 * 411)) ** (1 / 0.62)
    return G * (flops / 6) ** (0.28 / 0.62)


def runs(seed=0, noise=0.005, budgets=(1e18, 1e19, 1e20), sizes=7):
    rng = np.random.default_rng(seed)
    flops = np.repeat(budgets, sizes)
    N = optimal_n(flops) * np.tile(np.geomspace(1 / 5, 5, sizes), len(budgets))
    D = flops / 6 / N
    losses = loss(N, D) * np.exp(noise * rng.standard_normal(len(N)))
    return Observations(n_params=N, n_tokens=D, loss_nats=losses, flops=flops)


@pytest.fixture(scope="module")
def fitted():
    return fit_average(runs())


@pytest.mark.parametrize("n_left", [12, 18])
def test_modes_searched_from_those_of_more_rows_are_the_same(fitted, n_left):
    rows = runs().take(np.arange(n_left))
    points = Points(
        columns={"n_params": rows.n_params, "n_tokens": rows.n_tokens},
        reference_flops=float(rows.flops.max()),
    )
    y = np.log(rows.loss_nats / np.median(rows.loss_nats))
    searched, near = describing_forms(points, y), describing_forms(points, y, fitted.forms)
    asked = {form.prior.law for form in fitted.forms} - {Broken}  # which asks for 18 rows
    assert asked <= {form.prior.law for form in searched[0]}
    for (one, _), (two, _) in zip(searched[1], near[1], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)
    np.testing.assert_allclose(searched[2], near[2], rtol=0.05)


def test_quantiles_of_a_mixture_of_one_are_those_of_a_gaussian():
    one = Mixture(
        weights=np.ones(1),
        means=np.full((1, 2), 0.7),
        variances=np.full((1, 2), 0.04),
        noise=np.full((1, 2), 0.05),
    )
    np.testing.assert_allclose(one.quantile(0.9), norm(0.7, 0.2).ppf(0.9), rtol=1e-9)
    np.testing.assert_allclose(one.quantile(0.1, is_new_run=True), norm(0.7, 0.3).ppf(0.1))
    np.testing.assert_allclose(one.probability_below(np.full(2, 0.7)), 0.5)


def test_crps_is_that_of_samples():
    mixture = Mixture(
        weights=np.array([0.3, 0.7]),
        means=np.array([[0.0], [1.0]]),
        variances=np.array([[0.01], [0.04]]),
        noise=np.zeros((2, 1)),
    )
    rng = np.random.default_rng(0)
    part = rng.random(20_000) < 0.3
    x = np.where(part, rng.normal(0, 0.1, 20_000), rng.normal(1, 0.2, 20_000))
    expected = np.abs(x - 0.4).mean() - np.abs(x - rng.permutation(x)).mean() / 2
    assert mixture.crps(np.array([0.4]))[0] == pytest.approx(expected, abs=0.01)


def test_the_evidence_is_that_of_the_dense_covariance():
    rng = np.random.default_rng(0)
    N, D = np.exp(rng.uniform(15, 20, (2, 12)))
    points = Points(
        columns={"n_params": N, "n_tokens": D}, reference_flops=float((6 * N * D).max())
    )
    widened = rng.uniform(1, 3, 12)
    clusters = np.repeat(np.arange(4), 3)
    slope, y = rng.standard_normal((12, 3)), rng.standard_normal(12)
    system = list(systems(points, widened, clusters))[4]
    assert system.share > 0
    turned = system.turn.T @ slope
    found = log_evidence(system.turn.T @ y, turned, Grid.of(system, PAIRS))
    for (misfit, noise), value in list(zip(PAIRS, found, strict=True))[::7]:
        growth = points.noise_growth ** (system.growth / 0.15)
        dense = misfit**2 * matern(distances(points.features), system.length) + slope @ slope.T
        dense += noise**2 * np.diag(growth**2 * widened)
        same = clusters[:, None] == clusters
        dense += noise**2 * system.share * np.outer(growth, growth) * same
        factor = cho_factor(dense)
        expected = -0.5 * y @ cho_solve(factor, y) - np.log(np.diag(factor[0])).sum()
        assert value == pytest.approx(expected, rel=1e-6)


def test_the_forecast_is_near_the_truth_and_its_interval_contains_it(fitted):
    flops = 1e21
    N = optimal_n(flops)
    at = {"n_params": np.array([N]), "n_tokens": np.array([flops / 6 / N])}
    found = fitted.predict(at, 0.9)
    truth = loss(N, flops / 6 / N)
    assert found.low[0] < found.value[0] < found.high[0]
    assert found.pred_low[0] <= found.low[0] <= truth <= found.high[0] <= found.pred_high[0]
    assert abs(found.value[0] / truth - 1) < 0.01


def test_the_optimal_size_is_near_the_truth_and_its_interval_contains_it(fitted):
    found = optima(fitted, np.array([1e20]))
    low, high = found.n_limits(0.9)[:, 0]
    assert found.is_inside.all()
    assert low <= found.n_params[0] <= high
    assert low <= optimal_n(1e20) <= high
    assert found.n_params[0] == pytest.approx(compute_optimal_size(fitted, 1e20), rel=1e-12)


def test_the_order_of_the_rows_changes_nothing():
    rows = runs()
    order = np.random.default_rng(1).permutation(len(rows))
    at = {"n_params": np.array([1e9]), "n_tokens": np.array([3e10])}
    first, second = (fit_average(each).predict(at, 0.9) for each in (rows, rows.take(order)))
    assert first.value[0] == pytest.approx(second.value[0], rel=1e-4)


def test_an_outlier_moves_the_forecast_less_than_its_share():
    rows = runs()
    losses = rows.loss_nats.copy()
    losses[-1] *= 1.15
    spoiled = Observations(
        n_params=rows.n_params, n_tokens=rows.n_tokens, loss_nats=losses, flops=rows.flops
    )
    at = {"n_params": np.array([optimal_n(1e21)])}
    at["n_tokens"] = 1e21 / 6 / at["n_params"]
    clean, moved = (fit_average(each).predict(at, 0.9).value[0] for each in (rows, spoiled))
    assert abs(moved / clean - 1) < 0.02


def test_errors_on_the_runs_left_out_widen_the_intervals():
    rows = runs(noise=0.002)
    bent = rows.loss_nats * (1 + 0.08 * np.log(rows.flops / 1e18) * (rows.flops > 5e19))
    bent_rows = Observations(
        n_params=rows.n_params, n_tokens=rows.n_tokens, loss_nats=bent, flops=rows.flops
    )
    bent_fit, fit = fit_average(bent_rows), fit_average(rows)
    assert bent_fit.scale_weights @ bent_fit.scales > 1.1 * (fit.scale_weights @ fit.scales)


def test_diverged_runs_do_not_move_the_forecast():
    rows = runs(budgets=(1e18, 3e18, 1e19, 3e19, 1e20))
    losses = rows.loss_nats.copy()
    losses[[4, 12, 20]] *= 3.5
    at = {"n_params": np.array([optimal_n(1e21)])}
    at["n_tokens"] = 1e21 / 6 / at["n_params"]
    spoiled = replace(rows, loss_nats=losses)
    clean, moved = (fit_average(each).predict(at, 0.9) for each in (rows, spoiled))
    assert abs(moved.value[0] / clean.value[0] - 1) < 0.01
    assert moved.high[0] / moved.low[0] < 2 * clean.high[0] / clean.low[0]


def test_noise_that_a_budget_shares_widens_the_interval():
    rows = runs(noise=0.001, budgets=tuple(np.geomspace(1e18, 1e20, 5)), sizes=9)
    budget_noise = 0.006 * np.random.default_rng(3).standard_normal(5)
    shared = replace(rows, loss_nats=rows.loss_nats * np.exp(np.repeat(budget_noise, 9)))
    at = {"n_params": np.array([optimal_n(1e21)])}
    at["n_tokens"] = 1e21 / 6 / at["n_params"]
    fit = fit_average(shared)
    weight = sum(each.weight for each in fit.components if each.system.share > 0)
    assert weight > 0.9
    found = fit.predict(at, 0.9)
    assert found.low[0] <= loss(at["n_params"], at["n_tokens"])[0] <= found.high[0]


def test_a_form_that_rises_beyond_the_rows_is_left_out():
    rows = runs()
    points = Points(
        columns={"n_params": rows.n_params, "n_tokens": rows.n_tokens}, reference_flops=1e20
    )
    rising = np.log(rows.loss_nats * (rows.n_tokens / 1e9) ** 0.3)
    forms, _, _ = describing_forms(points, rising - np.median(rising))
    assert {form.prior.law.name for form in forms} == {"farseer"}


def test_fit_answers_with_it_where_one_law_is_not_identified():
    line = runs(sizes=1, budgets=(1e18, 3e18, 1e19, 3e19, 1e20))
    frame = {"n_params": line.n_params, "n_tokens": line.n_tokens, "loss_nats": line.loss_nats}
    import pandas as pd

    table = pd.DataFrame(frame)
    N = optimal_n(3e20) / 5  # the line of these runs
    on_it, off_it = f"N={N:.6g},D={3e20 / 6 / N:.6g}", f"N={20 * N:.6g},D={3e20 / 120 / N:.6g}"
    report = api.fit(table, predict=on_it, bootstrap=100)
    assert report.law_status == "not_identified"
    assert (report.status, report.exit_code) == ("ok", 0)
    (found,) = report.forecasts
    assert found.forecaster == "averaged"
    assert found.low <= loss(N, 3e20 / 6 / N) <= found.high
    assert report.law_forecasts == (None,)
    assert report.frontier == ()
    both = api.fit(table, predict=[on_it, off_it, "C=1e21"], fitted=report, bootstrap=100)
    assert both.forecasts == report.forecasts
    assert [each.asked for each in both.refusals] == [off_it, "C=1e21"]
    assert all("add runs off" in each.do for each in both.refusals)
    assert (both.status, both.exit_code) == ("not_identified", 4)
    # The runs that the refusal proposes make the question answerable.
    proposed = dict(
        part.split("=")
        for part in both.refusals[0].do.split("example ")[1].split(" and ")[0].split(",")
    )
    new_n, new_d = (parse_quantity(proposed[name].rstrip("."), what=name) for name in "ND")
    added = pd.concat(
        [
            table,
            pd.DataFrame([{"n_params": new_n, "n_tokens": new_d, "loss_nats": loss(new_n, new_d)}]),
        ]
    )
    assert api.fit(added, predict=off_it, bootstrap=50).exit_code == 0


def test_a_loss_that_nobody_can_know_is_refused():
    report = api.fit(
        {
            "n_params": [1e7, 1e7, 1e7, 4e7],
            "n_tokens": [1e8, 2e8, 4e8, 8e8],
            "loss_nats": [4.0, 3.8, 3.65, 3.2],
        },
        predict="N=1e13,D=1e8",
        bootstrap=50,
    )
    (refusal,) = report.refusals
    assert "too wide" in refusal.given
    assert "add runs nearer to it, for example N=" in refusal.do
    with pytest.raises(NotIdentifiedError, match="too wide"):
        api.predict(report, "N=1e13,D=1e8")


@pytest.mark.parametrize("asked", ["lr=1e-3", "N=1e9,lr=1e-3"])
def test_other_columns_are_refused(asked):
    rows = runs()
    frame = {
        "n_params": rows.n_params,
        "n_tokens": rows.n_tokens,
        "loss_nats": rows.loss_nats,
    }
    with pytest.raises(UsageError):
        api.fit(frame, predict=asked, forecaster="averaged", bootstrap=50)


def test_an_unknown_forecaster_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="averaged"):
        api.fit({"n_params": [1.0]}, forecaster="average")


def test_a_minimum_far_from_the_runs_does_not_widen_the_optimum():
    found = fit_average(read_runs("public:chinchilla").observations)
    low, high = optima(found, np.array([1e22])).n_limits(0.9)
    assert low[0] < 7e9 < high[0]
    assert high[0] < 10 * low[0], "some drawn misfits fall again at 50 times the optimum"


TINY_RUNS = """
    50368 18432 3.5855904 8e+09
    77680 26624 3.4992983 1.6e+10
    27792 30720 3.4988132 8e+09
    110880 36864 3.3888350 3.2e+10
    12640 59392 3.4721475 8e+09
    27792 61440 3.2511182 1.6e+10
    50368 75776 3.2156413 3.2e+10
    12640 116736 3.2741566 1.6e+10
    27792 122880 2.9782906 3.2e+10
    3376 157696 2.7171917 8e+09
    12640 233472 2.8907423 3.2e+10
    3376 315392 2.4785643 1.6e+10
"""
"""N without embeddings, D, loss and budget of tiny models. Without the largest runs, a fit of
Farseer has slopes of 1e9."""


def test_a_form_that_double_precision_cannot_follow_is_left_out():
    lines = TINY_RUNS.strip().splitlines()
    N, D, L, B = np.array([line.split() for line in lines], dtype=float).T
    found = fit_average(
        Observations(n_params=N, n_tokens=D, loss_nats=L, flops=6 * N * D, budget=B)
    )
    assert np.isfinite(found.log_evidence)

"""What answers: which forecaster, its frontier and draws, and intervals without jumps."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab import api
from scalelab.cli.output import as_plain
from scalelab.errors import UsageError
from scalelab.forecast.averaged import fit_average
from scalelab.forecast.averaged_optimum import compute_optimal_size, frontier_points, optima
from scalelab.forecast.bands import bands_between
from scalelab.forecast.forecaster import is_averaged
from scalelab.forecast.headline import distance
from scalelab.forecast.line import line_of
from scalelab.forecast.paths import N_DRAWS, paths_of
from scalelab.forecast.points import Points
from scalelab.forecast.published import verdicts
from scalelab.theory.laws import LAWS, Chinchilla, law_named
from scalelab.theory.laws.rates import LearningRate
from scalelab.units import parse_quantity

LARGEST = 1e20


@pytest.fixture(scope="module")
def rows(isoflop_runs):
    return isoflop_runs(budgets=(1e18, 1e19, LARGEST), sizes=5)


@pytest.fixture(scope="module")
def table(rows):
    return {name: getattr(rows, name) for name in ("n_params", "n_tokens", "loss_nats")}


@pytest.fixture(scope="module")
def report(table):
    return api.fit(table, bootstrap=100, predict=["C=1e21", "N=1e9", "D=3e10", "N=1e9,D=3e10"])


@pytest.fixture(scope="module")
def law_report(table):
    return api.fit(table, bootstrap=100, predict=["C=1e21"], forecaster="law")


def test_the_averaged_forecaster_answers_for_the_forms_whose_columns_it_knows():
    answered = {law.name for law in LAWS if is_averaged(None, law)}
    named = {"chinchilla", "tied", "gamma", "farseer", "kaplan", "overtraining", "data_constrained"}
    assert answered == named
    assert not is_averaged("law", Chinchilla)
    with pytest.raises(UsageError, match="form precision_w of"):
        is_averaged("averaged", law_named("precision_w"))
    assert not is_averaged(None, LearningRate)  # it predicts another target


def test_published_models_are_compared_with_the_optimum_of_the_average(report):
    found = verdicts(report.averaged)
    assert [row["model"] for row in found] == [row["model"] for row in verdicts(report.fit.law)]
    for row in found[::12]:
        optimal = compute_optimal_size(report.averaged, row["flops"])
        assert row["optimal_n_params"] == pytest.approx(optimal, rel=1e-9)
        assert row["ratio"] == pytest.approx(row["n_params"] / optimal)
        # At 1 - saved of its compute, the optimum has the loss of the model.
        enough = (1 - row["saved"]) * row["flops"]
        N = compute_optimal_size(report.averaged, enough)
        at = {"n_params": np.array([N]), "n_tokens": np.array([enough / 6 / N])}
        own = {"n_params": np.array([row["n_params"]]), "n_tokens": np.array([row["n_tokens"]])}
        paths = paths_of(report.averaged)
        assert paths.mean(at)[0] == pytest.approx(paths.mean(own)[0], abs=0.002)


def test_the_distance_of_a_forecast_and_of_the_headline_are_one(report):
    asked = report.forecasts[0]
    assert asked.extrapolation == pytest.approx(10.0)
    assert asked.distance == "Extrapolation: 10x the FLOPs of the largest run."
    assert distance(report.observations, asked.flops) == "10x your largest run"


def test_one_place_decides_and_every_answer_follows_it(report, law_report, table):
    assert (report.forecaster.name, law_report.forecaster.name) == ("averaged", "law")
    for each in (report, law_report):
        name = each.forecaster.name
        assert {forecast.forecaster for forecast in each.forecasts} == {name}
        assert api.predict(each, "C=1e21")["forecaster"].tolist() == [name]
        assert api.predict(each, "C=1e21")["loss_nats"][0] == each.forecasts[0].loss_nats
        decision = api.decide(each, {"flops": 1e21})
        assert decision.to_dict()["forecaster"] == name
        assert decision.best.loss_nats == pytest.approx(each.forecasts[0].loss_nats, rel=1e-6)
        assert decision.best.n_params == pytest.approx(each.forecasts[0].n_params.value, rel=1e-3)
        bands = bands_between(each, 1e21, 1.001e21, points=2)
        assert bands.loss[0] == pytest.approx(each.forecasts[0].loss_nats, rel=1e-6)
    law = report.law_forecasts[0]
    assert law.loss_nats == law_report.forecasts[0].loss_nats
    beside = api.decide(report, {"flops": 1e21}).best.law_loss_nats
    assert beside == pytest.approx(law.loss_nats, rel=1e-3)
    held = api.fit(table, bootstrap=20, holdout="n_params > 3e8")
    by_law = api.fit(table, bootstrap=20, holdout="n_params > 3e8", forecaster="law")
    assert held.holdout.mean_relative_error != by_law.holdout.mean_relative_error


def test_intervals_contain_their_value_and_a_new_run_lies_in_the_wider_one(report):
    for each in (*report.forecasts, *report.law_forecasts):
        assert each.pred_low <= each.low <= each.loss_nats <= each.high <= each.pred_high
        for size in (each.n_params, each.n_tokens):
            assert size.low <= size.value <= size.high
    for name, interval in {**report.params, **report.derived}.items():
        assert interval.low <= interval.value <= interval.high, name


def test_the_interval_of_d_is_that_of_n_at_one_compute(report):
    at_c, at_n, at_d, _ = report.forecasts
    n, d = at_c.n_params, at_c.n_tokens
    assert d.value == pytest.approx(1e21 / 6 / n.value)
    assert (d.low, d.high) == (
        pytest.approx(1e21 / 6 / n.high),
        pytest.approx(1e21 / 6 / n.low),
    )
    assert at_n.n_params.low == at_n.n_params.high == 1e9
    assert at_d.n_tokens.low == at_d.n_tokens.high == 3e10
    # Where N is given, D varies more than N does at a given compute: C varies with it.
    assert at_n.n_tokens.high / at_n.n_tokens.low > n.high / n.low
    for point in report.frontier:
        assert point.a.value + point.b.value == pytest.approx(1)
        assert point.a.low + point.b.high == pytest.approx(1)


def test_drawn_functions_have_the_mean_and_covariance_of_the_forecaster(rows):
    found = fit_average(rows)
    C = np.array([3e18, 1e19, 1e20, 1e21])
    at = {"n_params": np.sqrt(C / 600), "n_tokens": C / 6 / np.sqrt(C / 600)}
    mixture = found.at(at)
    mean = mixture.weights @ mixture.means
    variance = mixture.weights @ (mixture.variances + mixture.means**2) - mean**2
    paths = paths_of(found)
    np.testing.assert_allclose(paths.mean(at), mean, rtol=0, atol=1e-8)
    drawn = paths.draws(at)
    assert drawn.shape == (N_DRAWS, 4)
    error = np.sqrt(variance / N_DRAWS)
    assert (np.abs(drawn.mean(axis=0) - mean) < 4 * error).all()
    np.testing.assert_allclose(drawn.std(axis=0), np.sqrt(variance), rtol=0.25)
    exact = found.draws(at, 4000, np.random.default_rng(0))
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.corrcoef(exact.T), atol=0.15)
    assert paths_of(found) is paths


def test_exponents_are_slopes_of_the_frontier(rows):
    found = fit_average(rows)
    (point,) = frontier_points(found, [1e20])
    ends = optima(found, np.array([1e20, 1e20 * 10**0.5, 1e20 / 10**0.5]))
    slope = np.log10(ends.n_params[1] / ends.n_params[2])
    assert point.a.value == pytest.approx(slope, rel=1e-6)
    assert point.n_params.value == pytest.approx(ends.n_params[0])
    assert point.a.low < 0.366 / (0.348 + 0.366) < point.a.high


@pytest.fixture(scope="module")
def bent_report(isoflop_runs):
    """Return a fit of runs that are noisier when small, which the form does not fit."""
    rows = isoflop_runs(noise=0.0)
    size = np.log(rows.flops / LARGEST)
    noise = 0.004 * np.exp(-0.3 * size) * np.random.default_rng(2).standard_normal(len(rows))
    bent = rows.loss_nats * np.exp(noise + 0.004 * size**2)
    table = {"n_params": rows.n_params, "n_tokens": rows.n_tokens, "loss_nats": bent}
    report = api.fit(table, bootstrap=100, forecaster="law")
    assert report.fit.inflation > 1.2
    return report


@pytest.mark.parametrize("kind", ["report", "law_report", "bent_report"])
def test_intervals_have_no_jump_along_the_target(kind, request):
    source = request.getfixturevalue(kind)
    # Across the smallest and the largest run; the steps are 2.3 % of compute.
    for low, high in ((1e18, 1e19), (LARGEST / 3, 3 * LARGEST)):
        bands = bands_between(source, low, high, points=round(np.log(high / low) / 0.023))
        for name in ("loss", "low", "high", "pred_low", "pred_high"):
            step = np.abs(np.diff(np.log(getattr(bands, name))))
            assert step.max() < 2.5 * np.median(step) + 5e-4, name
        for name in ("n_params", "n_params_low", "n_params_high", "n_tokens_low", "n_tokens_high"):
            step = np.abs(np.diff(np.log(getattr(bands, name))))
            assert step.max() < 0.06, name


@given(
    centre=st.tuples(st.floats(14, 25), st.floats(18, 30)),
    angle=st.floats(-1.5, 1.5),
    across=st.floats(0, 0.02),
)
@settings(max_examples=50, deadline=None)
def test_a_line_has_its_own_runs_and_not_those_beside_it(centre, angle, across):
    rng = np.random.default_rng(0)
    direction, normal = (
        np.array([np.cos(angle), np.sin(angle)]),
        np.array([-np.sin(angle), np.cos(angle)]),
    )
    places = (
        np.linspace(-2, 2, 6)[:, None] * direction + across * rng.standard_normal((6, 1)) * normal
    )
    N, D = np.exp(np.array(centre) + places).T
    line = line_of(Points(columns={"n_params": N, "n_tokens": D}, reference_flops=1.0))
    assert line is not None
    assert all(line.has(float(n), float(d)) for n, d in zip(N, D, strict=True))
    for sign in (-1, 1):
        far, beside = (
            np.exp(np.array(centre) + 6 * direction),
            np.exp(np.array(centre) + 3 * sign * normal),
        )
        assert line.has(*map(float, far))
        assert not line.has(*map(float, beside))
    spread = np.exp(np.array(centre) + rng.standard_normal((6, 2)))
    columns = {"n_params": spread[:, 0], "n_tokens": spread[:, 1]}
    assert line_of(Points(columns=columns, reference_flops=1.0)) is None


@pytest.mark.parametrize("n_tokens", [6.451e8, [6.451e8, 6.451e8], [6.451e8, 6.451e9]])
def test_the_candidate_of_a_refusal_lies_on_the_line(n_tokens):
    D = np.atleast_1d(n_tokens)
    columns = {"n_params": np.full(len(D), 8.1436e7), "n_tokens": D}
    line = line_of(Points(columns=columns, reference_flops=1.0))
    option, candidate = line.candidate().split()
    assert option == "--candidate"
    assert line.has(*map(parse_quantity, candidate.split(":")))


@pytest.mark.parametrize("forecaster", ["averaged", "law"])
def test_a_later_call_reuses_the_fits(forecaster, table, request):
    first = request.getfixturevalue("report" if forecaster == "averaged" else "law_report")
    again = api.fit(table, level=0.5, predict="C=1e21", fitted=first)
    assert again.fit is first.fit
    assert again.averaged is first.averaged
    narrow, wide = again.forecasts[0], first.forecasts[0]
    assert wide.low < narrow.low <= narrow.high < wide.high


def test_the_law_keeps_its_own_state_beside_an_answer(table):
    few = {name: values[[0, 4, 10, 14]] for name, values in table.items()}
    report = api.fit(few, bootstrap=20, predict="C=1e20")
    found = json.loads(json.dumps(as_plain(report.to_dict()), allow_nan=False))
    assert (found["schema"], found["status"], report.exit_code) == (2, "ok", 0)
    assert found["law_status"] == "not_identified"
    assert found["objective"]["value"] >= 0
    assert set(found["params"]) == {"A", "B", "E", "alpha", "beta"}
    assert "not_identified" in [each["code"] for each in found["warnings"]]
    assert "not_identified" not in [each.code for each in report.answer_warnings]
    (answer,) = found["predictions"]
    wide = answer["high"] / answer["low"]
    assert 1.01 < wide < 1.5
    no_question = replace(report, forecasts=(), law_forecasts=())
    assert (no_question.status, no_question.exit_code) == ("not_identified", 4)

"""Registered forecasts: what is frozen, which runs score it, and the scores."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy.stats import norm

from scalelab import api
from scalelab.api.data import frame_of
from scalelab.errors import SpecError
from scalelab.forecast.registered import LEVELS, registration_of, row_hash
from scalelab.forecast.scores import AFTER, BEFORE, UNKNOWN, crps, score_runs, summarise
from scalelab.records.forecasts import read_forecasts
from scalelab.records.types import KnownRun
from scalelab.store.table_read import TableRead

POINT = "N=3e9,D=6e10"


@pytest.fixture(scope="module", params=["averaged", "law"])
def report(request, isoflop_runs):
    rows = isoflop_runs(budgets=(1e18, 1e19, 1e20), sizes=5)
    frame = frame_of(TableRead(observations=rows, lines=np.arange(len(rows))))
    return api.fit(frame, predict=[POINT], forecaster=request.param, bootstrap=50)


@pytest.fixture(scope="module")
def registration(report, tmp_path_factory):
    results = tmp_path_factory.mktemp("registered")
    api.register(report, "one", results=results)
    ((path, content),) = read_forecasts(results).items()
    return registration_of(content, str(path))


def run_at(registration, **changes):
    (forecast,) = registration.forecasts
    run = KnownRun(
        run_id="r1",
        source="sweep demo",
        n_params={"chinchilla": forecast.n_params},
        n_tokens=forecast.n_tokens,
        loss_nats=forecast.loss_nats * 1.001,
        eval_fingerprint="e1",
        known_s=registration.registered_s + 60,
        is_start_known=True,
    )
    return replace(run, **changes)


@pytest.mark.parametrize("observed", [-0.5, 0.0, 0.3, 2.0])
def test_the_crps_of_quantiles_is_that_of_their_distribution(observed):
    quantiles = norm(0.1, 0.4).ppf(LEVELS)
    z = (observed - 0.1) / 0.4
    exact = 0.4 * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert crps(quantiles, observed) == pytest.approx(exact, rel=0.01, abs=1e-3)


def test_the_crps_without_spread_is_the_absolute_error():
    assert crps([0.7] * 99, 0.9) == pytest.approx(0.2, rel=0.02)


def test_the_frozen_quantiles_are_those_of_a_new_run(report, registration):
    (forecast,) = registration.forecasts
    (asked,) = report.forecasts
    assert forecast.loss_nats == asked.loss_nats
    quantiles = np.exp(forecast.log_quantiles)
    assert np.all(np.diff(quantiles) >= 0)
    assert quantiles[4] == pytest.approx(asked.pred_low, rel=1e-6)
    assert quantiles[94] == pytest.approx(asked.pred_high, rel=1e-6)
    assert quantiles[49] == pytest.approx(asked.loss_nats, rel=2e-3)


def test_a_changed_file_is_refused(registration):
    content = json.loads(json.dumps(registration.to_dict()))
    assert registration_of(content, "x.json") == registration
    for change in (
        {"schema": 2},
        {"registered": "yesterday"},
        {"rows": {**content["rows"], "hashes": content["rows"]["hashes"][1:]}},
        {"predictions": [{**content["predictions"][0], "log_quantiles": [1.0]}]},
        {"predictions": [{"asked": "C=1"}]},
    ):
        with pytest.raises(SpecError, match="was changed"):
            registration_of({**content, **change}, "x.json")
    with pytest.raises(SpecError):
        registration_of({}, "x.json")


def test_a_run_at_the_point_is_scored(registration):
    (forecast,) = registration.forecasts
    (score,) = score_runs(registration, [run_at(registration)])
    assert score.relative_error == pytest.approx(1 / 1.001 - 1)
    assert score.is_covered == (forecast.pred_low <= score.observed <= forecast.pred_high)
    assert score.crps == pytest.approx(crps(forecast.log_quantiles, np.log(score.observed)))
    (far,) = score_runs(registration, [run_at(registration, loss_nats=2 * forecast.pred_high)])
    assert not far.is_covered
    assert far.crps > 0.5


@pytest.mark.parametrize(("factor", "n_scores"), [(1.019, 1), (0.981, 1), (1.021, 0), (0.979, 0)])
def test_a_run_is_at_the_point_within_2_percent(registration, factor, n_scores):
    run = run_at(registration)
    longer = replace(run, n_tokens=run.n_tokens * factor)
    larger = replace(run, n_params={"chinchilla": run.n_params["chinchilla"] * factor})
    assert len(score_runs(registration, [longer])) == n_scores
    assert len(score_runs(registration, [larger])) == n_scores


def test_when_the_forecast_was_frozen_is_told_apart(registration):
    at = registration.registered_s
    cases = [(at + 1, True), (at - 1, True), (at + 1, False), (at - 1, False)]
    runs = [run_at(registration, known_s=s, is_start_known=known) for s, known in cases]
    timings = [score.timing for score in score_runs(registration, runs)]
    assert timings == [BEFORE, AFTER, UNKNOWN, AFTER]


def test_fitted_runs_are_not_scored(registration):
    run = run_at(registration)
    own = row_hash(run.n_params["chinchilla"], run.n_tokens, run.loss_nats)
    known = replace(registration, row_hashes=(*registration.row_hashes, own))
    assert score_runs(known, [run]) == ()
    other = replace(run, loss_nats=run.loss_nats * 1.01)
    assert len(score_runs(known, [run, other])) == 1
    # A run on another evaluation set has another loss.
    assert score_runs(known, [run, replace(other, eval_fingerprint="e2")]) == ()


def test_a_run_counted_otherwise_is_not_at_the_point(registration):
    run = run_at(registration)
    n = run.n_params["chinchilla"]
    counted = replace(registration, param_convention="kaplan")
    assert score_runs(counted, [run]) == ()
    both = replace(run, n_params={"chinchilla": 2 * n, "kaplan": n})
    assert len(score_runs(counted, [both])) == 1
    assert len(score_runs(counted, [replace(run, n_params={"unstated": n})])) == 1


def test_each_forecast_counts_once(registration):
    (score,) = score_runs(registration, [run_at(registration)])
    one = replace(score, relative_error=0.01, is_covered=True, crps=0.01)
    other = replace(score, asked="C=1", relative_error=-0.03, is_covered=False, crps=0.03)
    found = summarise([one, replace(one), replace(one), other])
    assert asdict(found) == pytest.approx(
        {
            "n_forecasts": 2,
            "n_runs": 4,
            "mean_relative_error": 0.02,
            "coverage": 0.5,
            "crps": 0.02,
        }
    )

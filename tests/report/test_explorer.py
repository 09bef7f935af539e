"""The compute slider has the numbers and the sentences that `fit --predict` prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from scalelab.api import fit
from scalelab.api.forecasts import forecasts
from scalelab.api.reports import FitReport
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.forecast.headline import headline
from scalelab.records.types import Observations
from scalelab.report.explorer import BEYOND, Explorer, explorer, in_html
from scalelab.report.look import LIGHT
from scalelab.store.table_read import TableRead


@pytest.fixture(scope="module", params=["law", "averaged"])
def report(request: pytest.FixtureRequest, isoflop_runs: Callable[..., Observations]) -> FitReport:
    rows = replace(isoflop_runs(noise=0.003), source="</script><b>runs")
    table = TableRead(observations=rows, lines=np.arange(len(rows)))
    return fit(table, bootstrap=BootstrapSpec(k=60), forecaster=request.param)


@pytest.fixture(scope="module")
def slider(report: FitReport) -> Explorer:
    found = explorer(report)
    assert found is not None
    return found


def test_every_step_says_what_predict_prints(report: FitReport, slider: Explorer) -> None:
    found = slider
    steps = found.content["steps"]
    assert steps[0]["c"] == pytest.approx(report.observations.flops.min(), rel=0.15)
    largest = report.observations.flops.max()
    assert steps[-1]["c"] / largest == pytest.approx(BEYOND, rel=0.15)
    start = steps[found.content["start"]]
    assert start["says"] == headline(report).sentence
    for step in (start, steps[-1]):
        (said,) = forecasts(report, step["asked"])
        told = headline(report, forecast=said)
        assert (step["says"], step["basis"], step["verdict"]) == (
            told.sentence,
            told.basis,
            told.verdict,
        )
        assert said.n_params is not None
        assert said.n_tokens is not None
        n, d = said.n_params, said.n_tokens
        assert step["n"] == pytest.approx([n.value, n.low, n.high], rel=1e-4)
        assert step["d"] == pytest.approx([d.value, d.low, d.high], rel=1e-4)
        losses = [said.loss_nats, said.low, said.high, said.pred_low, said.pred_high]
        assert step["loss"] == pytest.approx(losses, rel=1e-4)
    far = [found.content["words"][i].partition(":")[0] for i in steps[-1]["warnings"]]
    assert "Extrapolation" in far


def test_the_star_is_the_lowest_point_of_its_valley(slider: Explorer) -> None:
    for step in slider.content["steps"][::10]:
        sizes, losses = step["valley"]
        assert sizes[int(np.argmin(losses))] == pytest.approx(step["n"][0], rel=0.2)


def test_the_slider_starts_at_what_was_asked_and_is_safe_in_html(report: FitReport) -> None:
    (asked,) = forecasts(report, "C=3.21e21")
    found = explorer(report, asked)
    assert found is not None
    assert found.content["steps"][found.content["start"]]["asked"] == "C=3.21e21"
    text = in_html(found, "scalelab fit --from '</script><b>runs'")
    assert text.count("</script>") == 1
    data = found.data(LIGHT, "scalelab fit")
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_runs_without_a_compute_optimal_size_have_no_slider() -> None:
    n_params = np.geomspace(1e7, 1e9, 12)
    frame = {"n_params": n_params, "n_tokens": 20 * n_params, "loss_nats": 2 + 50 / n_params**0.3}
    assert explorer(fit(frame, bootstrap=BootstrapSpec(k=0))) is None

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from scalelab import api
from scalelab.cli.output import as_plain
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.outcome import FitWarning
from scalelab.forecast.fit_report import SERIOUS, ordered


@pytest.fixture(scope="module")
def frame(isoflop_runs):
    import pandas as pd

    rows = isoflop_runs()
    return pd.DataFrame(
        {
            "n_params": rows.n_params,
            "n_tokens": rows.n_tokens,
            "loss_nats": rows.loss_nats,
            "flops": rows.flops,
            "budget": rows.budget,
        }
    )


@pytest.fixture(scope="module")
def report(frame):
    return api.fit(frame, bootstrap=BootstrapSpec(k=60), predict=["N=7e9", "N=1e9,D=2e10"])


CONTRACT = {
    "schema": int,
    "command": str,
    "status": str,
    "law_status": str,
    "form": str,
    "n_rows": int,
    "param_convention": str,
    "flop_convention": str,
    "objective": {"residual": str, "loss": str, "delta": float, "value": float},
    "params": dict,
    "derived": {name: {"value": float, "low": float, "high": float} for name in ("a", "b", "G")},
    "bootstrap": {"method": str, "k": int, "failed": int, "seed": int, "cluster": type(None)},
    "minima": list,
    "approaches": {"1": type(None), "2": dict},
    "warnings": list,
    "forecaster": str,
    "forms": dict,
    "frontier": list,
    "predictions": list,
    "law_predictions": list,
    "refused": list,
    "holdout": type(None),
}
PREDICTION = {
    **{f"{name}{end}": float for name in ("n_params", "n_tokens") for end in ("", "_low", "_high")},
    **dict.fromkeys(
        ("flops", "loss_nats", "low", "high", "pred_low", "pred_high", "level", "extrapolation"),
        float,
    ),
}


def assert_shape(value, shape, where="$"):
    if isinstance(shape, dict):
        for name, inner in shape.items():
            assert name in value, f"{where}.{name}"
            assert_shape(value[name], inner, f"{where}.{name}")
    else:
        assert isinstance(value, shape), f"{where} is {value!r}"


def test_the_json_keeps_its_contract(report):
    found = json.loads(json.dumps(as_plain(report.to_dict()), allow_nan=False))
    assert_shape(found, CONTRACT)
    assert (found["schema"], found["command"], found["status"]) == (2, "fit", "ok")
    assert (found["law_status"], found["forecaster"]) == ("ok", "averaged")
    for prediction in (*found["predictions"], *found["law_predictions"]):
        assert_shape(prediction, PREDICTION)
    assert found["refused"] == []
    assert [point["flops"] for point in found["frontier"]] == pytest.approx([1e20, 1e21, 1e22])
    for point in found["frontier"]:
        for name in ("n_params", "n_tokens", "a", "b"):
            assert point[name]["low"] < point[name]["value"] < point[name]["high"]
        assert point["a"]["value"] + point["b"]["value"] == pytest.approx(1)
    assert set(found["params"]) == {"A", "B", "E", "alpha", "beta"}
    for interval in found["params"].values():
        assert interval["low"] < interval["value"] < interval["high"]
    for warning in found["warnings"]:
        assert set(warning) == {"code", "message"}
    assert found["minima"][0]["value"] == found["objective"]["value"]


def test_numbers_carry_full_precision(report):
    found = json.loads(json.dumps(as_plain(report.to_dict())))
    for name, value in report.fit.params.items():
        assert found["params"][name]["value"] == value
    assert found["objective"]["value"] == report.fit.value


def test_without_a_bootstrap_limits_are_null_and_values_stay(frame):
    report = api.fit(frame, bootstrap=0, predict=["C=1e21"], forecaster="law")
    found = as_plain(report.to_dict())
    assert found["forms"] is found["frontier"] is found["law_predictions"] is None
    assert found["params"]["A"]["low"] is None
    assert math.isfinite(found["params"]["A"]["value"])
    (prediction,) = found["predictions"]
    assert prediction["low"] is None
    assert math.isfinite(prediction["loss_nats"])
    assert found["bootstrap"]["k"] == 0


@pytest.mark.parametrize("forecaster", ["law", None])
def test_a_fit_that_is_not_identified_has_params_and_says_what_it_cannot_answer(frame, forecaster):
    found = api.fit(
        frame.assign(n_tokens=1e10),
        bootstrap=BootstrapSpec(k=20),
        predict=["N=7e9"],
        forecaster=forecaster,
    )
    plain = as_plain(found.to_dict())
    assert found.exit_code == 4
    assert (plain["status"], plain["law_status"]) == ("not_identified", "not_identified")
    assert plain["predictions"] == []
    (refused,) = plain["refused"]
    assert refused["asked"] == "N=7e9"
    if forecaster is None:
        assert "the runs lie on one line of N and D (D = 10B)" in refused["given"]
    assert math.isfinite(plain["objective"]["value"])
    assert set(plain["params"]) == {"A", "B", "E", "alpha", "beta"}
    assert plain["warnings"][0]["code"] == "not_identified"


def test_the_csv_reads_back_to_the_last_digit(report):
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    params = {row["name"]: row for row in rows if row["kind"] == "param"}
    for name, interval in report.params.items():
        assert float(params[name]["value"]) == interval.value
        assert float(params[name]["low"]) == interval.low
    losses = [row for row in rows if row["name"].startswith("loss_nats at")]
    assert float(losses[1]["pred_high"]) == report.forecasts[1].pred_high


def test_the_tex_is_a_table_with_every_parameter(report):
    text = report.to_tex()
    assert text.startswith("\\begin{table}")
    assert text.rstrip().endswith("\\end{table}")
    for symbol in ("$A$", "$B$", "$E$", "$\\alpha$", "$\\beta$", "$G$"):
        assert f"{symbol} &" in text
    assert "huber of the log residual, $\\delta = 0.001$" in text
    assert text.count("\\\\") == 1 + 5 + 3
    assert "90\\% interval" in text
    assert "%" not in text.replace("\\%", "")


def test_warnings_come_once_and_the_serious_first():
    words = [
        FitWarning(code="derived_flops", message="x"),
        FitWarning(code="outliers", message="x"),
        FitWarning(code="extrapolation", message="x"),
        FitWarning(code="extrapolation", message="x"),
        FitWarning(code="not_identified", message="x"),
    ]
    assert [w.code for w in ordered(words)] == [
        "not_identified",
        "extrapolation",
        "outliers",
        "derived_flops",
    ]
    assert len(set(SERIOUS)) == len(SERIOUS)


def test_held_out_rows_are_scored_by_hand(frame):
    found = api.fit(frame, bootstrap=100, holdout="flops > 5e19", forecaster="law")
    held = frame[frame.flops > 5e19]
    assert found.fit.n_rows == len(frame) - len(held)
    predicted = found.fit.predict({"n_params": held.n_params, "n_tokens": held.n_tokens})
    error = np.abs(predicted.value / held.loss_nats - 1)
    inside = (predicted.pred_low <= held.loss_nats) & (held.loss_nats <= predicted.pred_high)
    assert found.holdout is not None
    assert found.holdout.n_rows == len(held)
    assert found.holdout.mean_relative_error == pytest.approx(error.mean())
    assert found.holdout.max_relative_error == pytest.approx(error.max())
    assert found.holdout.covered == inside.sum()
    assert found.holdout.n_intervals == len(held)
    assert found.holdout.mean_width == pytest.approx(
        np.mean(predicted.pred_high - predicted.pred_low)
    )
    plain = as_plain(found.to_dict())["holdout"]
    assert set(plain) == {
        "n_rows",
        "mean_relative_error",
        "max_relative_error",
        "covered",
        "n_intervals",
        "mean_width",
        "level",
    }


def test_a_report_is_frozen(report):
    with pytest.raises(AttributeError):
        report.level = 0.5
    assert replace(report, level=0.5).level == 0.5

"""`scalelab law`: saved laws answer as the fit does; names, files and conventions are checked."""

import json

import pandas as pd
import pytest

from scalelab import api
from scalelab.cli.main import main
from scalelab.forecast.published import PUBLISHED_MODELS


@pytest.fixture(scope="module")
def place(isoflop_runs, tmp_path_factory):
    """Return a folder with runs.csv and the saved law demo."""
    folder = tmp_path_factory.mktemp("laws")
    rows = isoflop_runs(noise=0.004)
    columns = {"n_params": rows.n_params, "n_tokens": rows.n_tokens, "loss_nats": rows.loss_nats}
    pd.DataFrame(columns).to_csv(folder / "runs.csv", index=False)
    pd.DataFrame(columns).rename(columns={"n_params": "n_params_kaplan"}).to_csv(
        folder / "kaplan.csv", index=False
    )
    for name, file, columns in (
        ("demo", "runs.csv", "n_params=n_params"),
        ("kaplan", "kaplan.csv", "n_params=n_params_kaplan"),
    ):
        words = ["law", "save", name, "--from", str(folder / file), "--map", columns]
        assert main([*words, "--results", str(folder)]) == 0
    return folder


@pytest.fixture
def run(capsys, place):
    def call(*words, code=0):
        capsys.readouterr()
        assert main([*map(str, words), "--results", str(place)]) == code
        return capsys.readouterr().out

    return call


def error(run, *words, code=2):
    return json.loads(run(*words, "--json", code=code))["error"]


def test_a_saved_law_decides_as_its_fit(run, place):
    asked = ("--flops", "1e22", "--target-loss", "2.2", "--level", "0.8", "--json")
    own = ("--from", place / "runs.csv", "--forecaster", "law")
    fitted = json.loads(run("decide", *own, *asked))
    for law in ("demo", place / "laws" / "demo.json"):
        assert json.loads(run("decide", "--law", law, *asked)) == fitted
    assert fitted["best"]["low"] < fitted["best"]["loss_nats"]


def test_a_saved_law_predicts_as_its_fit_beyond_the_runs(place):
    report = api.fit(place / "runs.csv", forecaster="law")
    saved = api.load_law("demo", results=place)
    asked = ("C=1e23", "N=7e9", "N=7e9,D=2e12")
    # Numbers differ by the rounding of a compute that is a product in another order.
    pd.testing.assert_frame_equal(api.predict(saved, *asked), api.predict(report, *asked))


def test_predict_takes_a_law_in_place_of_a_fit(run, place):
    found = json.loads(run("predict", "N=7e9,D=2e12", "--law", "demo", "--json"))
    (row,) = found["predictions"]
    table = api.predict(api.load_law("demo", results=place), "N=7e9,D=2e12")
    assert row["pred_low"] == table.loc[0, "pred_low"] < row["loss_nats"]
    text = run("predict", "C=1e24", "--law", "besiroglu")
    assert "loss 1.9" in text
    assert "nan" not in text
    said = error(run, "predict", "C=1e24", "--law", "demo", "--forecaster", "law", "--sweep", "x")
    assert said["given"] == "--law with --sweep, --forecaster"
    assert "question" in error(run, "predict", "Q=1", "--law", "demo")["given"]


def test_published_constants_predict_without_limits():
    found = api.predict(api.load_law("besiroglu"), "N=7e9,D=2e12", "C=1e24")
    assert found.loc[0, "loss_nats"] == pytest.approx(2.06422, abs=1e-5)
    assert found.loc[1, "n_params"] == pytest.approx(9.5e10, rel=0.05)
    assert found[["low", "pred_high", "extrapolation"]].isna().all(axis=None)


def test_show_gives_the_intervals_of_the_fit(run, place):
    report = api.fit(place / "runs.csv", forecaster="law")
    shown = json.loads(run("law", "show", "demo", "--json"))
    for name, interval in report.params.items():
        expected = {"value": interval.value, "low": interval.low, "high": interval.high}
        assert shown["params"][name] == pytest.approx(expected, rel=1e-12)
    law = shown["law"]
    assert law["provenance"]["n_rows"] == report.fit.n_rows
    assert law["domain"]["n_params"] == [
        report.observations.n_params.min(),
        report.observations.n_params.max(),
    ]
    text = run("law", "show", "demo")
    assert "alpha" in text
    assert "90 % interval" in text
    assert law["provenance"]["rows_sha256"] in text
    assert "def loss_nats(n_params, n_tokens):" in run("law", "show", "demo", "--python")
    assert "\\begin{equation}" in run("law", "show", "demo", "--tex")
    assert "one of them" in error(run, "law", "show", "demo", "--tex")["allowed"]


def test_list_has_saved_and_published_laws_and_files_that_cannot_be_read(run, place):
    broken = place / "laws" / "broken.json"
    broken.write_text("{")
    try:
        rows = {row["name"]: row for row in json.loads(run("law", "list", "--json"))["laws"]}
        text = run("law", "list")
    finally:
        broken.unlink()
    assert rows["demo"]["has_intervals"]
    assert not rows["besiroglu"]["has_intervals"]
    assert "not JSON" in rows["broken"]["error"]["given"]
    assert "hoffmann-tex" in text
    assert "cannot be read" in text


def test_a_law_far_outside_its_domain_warns(run):
    found = json.loads(run("decide", "--law", "demo", "--flops", "1e28", "--json"))
    assert "extrapolation" in [warning["code"] for warning in found["warnings"]]


@pytest.mark.parametrize("use", [["--published"], ["--real-shapes", "--flops", "1e21"]])
def test_a_law_that_counts_n_differently_is_refused(run, use):
    assert use[0] in error(run, "decide", "--law", "kaplan", *use)["given"]
    run("decide", "--law", "demo", *use)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["law", "save", "demo"], "exists"),
        (["law", "save", "hoffmann"], "hoffmann"),
        (["law", "save", "a b"], "'a b'"),
        (["law", "show", "dem"], "'dem'"),
        (["decide", "--flops", "1e20", "--law", "nobody.json"], "nobody.json"),
    ],
)
def test_names_that_cannot_be_used_are_errors(run, place, words, told):
    more = ["--from", str(place / "runs.csv")] if words[1] == "save" else []
    said = error(run, *words, *more)
    assert told in said["given"]
    if "show" in words:
        assert "Did you mean demo?" in said["do"]
    if "hoffmann" in words:
        run(*words[:2], "demo", *more, "--replace")


def test_a_fit_that_is_not_identified_is_not_saved(place):
    report = api.fit(place / "runs.csv", mapping={"n_tokens": "1e10"}, bootstrap=20)
    with pytest.raises(api.NotIdentifiedError):
        api.save_law(report, "flat", results=place)
    assert not (place / "laws" / "flat.json").exists()


def test_each_published_model_has_one_line_of_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["decide", "--published", "--law", "besiroglu"]) == 0
    head, *models, _ = [line.rstrip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert head.split()[0] == "model"
    assert len(models) == sum(model.is_decoder for model in PUBLISHED_MODELS)
    assert max(map(len, models)) <= 80
    for line in models:
        assert line.endswith(("over-trained", "near the optimum", "under-trained")), line

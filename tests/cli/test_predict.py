"""`scalelab predict` and `scalelab scores` as a user meets them."""

import json

import numpy as np
import pytest

POINT = "N=3e9,D=6e10"


@pytest.fixture
def run(run):
    """Return a runner of the command line: stdout and stderr as one text."""
    return lambda *words, code=0: "".join(run(*words, code=code))


@pytest.fixture(scope="module")
def file(isoflop_runs, tmp_path_factory):
    rows = isoflop_runs(budgets=(1e18, 1e19, 1e20), sizes=5)
    path = tmp_path_factory.mktemp("predict") / "runs.csv"
    lines = ["n_params,n_tokens,loss,flops"]
    columns = (rows.n_params, rows.n_tokens, rows.loss_nats, rows.flops)
    lines += [",".join(repr(float(x)) for x in row) for row in zip(*columns, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_the_answers_are_those_of_fit(run, file):
    asked = ("C=1e21", POINT)
    found = json.loads(run("predict", *asked, "--from", file, "--json"))
    options = [word for each in asked for word in ("--predict", each)]
    for name in ("averaged", "law"):
        fitted = json.loads(run("fit", "--from", file, *options, "--forecaster", name, "--json"))
        mine = found if name == "averaged" else found["law"]
        assert mine["predictions"] == fitted["predictions"]
    assert found["verdict"] == fitted["headline"]["verdict"]
    assert found["registered"] is None
    assert (found["schema"], found["status"], found["refused"]) == (2, "ok", [])


def test_the_page_has_a_sentence_for_each_question_and_the_law_beside_it(run, file):
    lines = run("predict", "C=1e23", POINT, "--from", file).splitlines()
    assert lines[0].startswith(
        "Extrapolation: 1,000x the FLOPs of the largest run. By the average of"
    )
    assert lines[1].startswith("The chinchilla law alone: loss ")
    assert " laws, N 3B on D 60B (N and D given" in lines[2]
    assert "Extrapolation: 10.8x the FLOPs of the largest run" in lines[2]
    law = run("predict", POINT, "--from", file, "--forecaster", "law")
    assert "law alone" not in law
    assert "Law: chinchilla" in law


@pytest.mark.slow
def test_what_the_rows_do_not_answer_exits_with_4_and_says_what_to_do(run, file):
    line = "--map", "n_tokens=20*n_params,flops=120*n_params*n_params"
    said = run("predict", "N=1e6,D=1e17", "--from", file, *line, code=4)
    assert said.startswith("No answer to 'N=1e6,D=1e17': the runs lie on one line of N and D")
    assert "add runs off it, for example N=" in said
    said = run("predict", "N=1e9", "--from", file, *line, "--forecaster", "law", code=4)
    assert "do not determine the law" in said
    said = run("predict", "N9", "--from", file, code=2)
    assert "--predict" not in said


@pytest.mark.slow
def test_a_forecast_is_registered_once_and_scored_when_its_run_is_imported(run, file, tmp_path):
    results = "--results", tmp_path / "results"
    assert "No registered forecasts" in run("scores", *results)
    words = ("predict", POINT, "--from", file, *results)
    path = tmp_path / "results/forecasts/first.json"
    said = run(*words, "--register", "first")
    assert f"Registered in {path}" in said
    content = path.read_text()
    assert f"No run yet: first, {POINT}" in run("scores", *results)
    assert "is registered in" in run(*words, "--register", "first", code=2)
    run(*words, "--register", "../up", code=2)
    assert path.read_text() == content

    table = tmp_path / "later.csv"
    loss = json.loads(content)["predictions"][0]["loss_nats"] * 1.001
    table.write_text(f"n_params,n_tokens,loss\n3.01e9,6e10,{loss}\n9e9,6e10,2.0\n")
    run("import", table, *results)
    run("import", file, *results)  # the fitted runs
    found = json.loads(run("scores", *results, "--json"))
    (score,) = found["scores"]
    assert (score["run"], score["timing"]) == ("later:2", "start unknown")
    assert score["relative_error"] == pytest.approx(1 / 1.001 - 1)
    assert score["is_covered"]
    assert list(found["overall"]) == ["start unknown"]
    assert found["overall"]["start unknown"]["crps"] == pytest.approx(score["crps"])
    assert found["waiting"] == []
    # Registered now, the same run is known already.
    run(*words, "--register", "second")
    overall = json.loads(run("scores", *results, "--json"))["overall"]
    assert {name: each["n_forecasts"] for name, each in overall.items()} == {
        "start unknown": 1,
        "after the fact": 1,
    }
    said = run("scores", *results)
    assert "Registered after the fact: mean error 0.10 %, coverage 1.00" in said

    path.write_text(content.replace('"n": 15', '"n": 14'))
    said = run("scores", *results)
    assert "first.json, which is not a registered forecast or was changed" in said
    assert "second" in said


def test_two_registrations_of_a_name_at_once_keep_the_first(tmp_path):
    from scalelab.errors import UsageError
    from scalelab.records.forecasts import forecast_file, save_forecast

    path = forecast_file(tmp_path, "one")
    save_forecast(path, {"a": 1})
    with pytest.raises(UsageError, match="never change"):
        save_forecast(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [each.name for each in path.parent.iterdir()] == ["one.json"]


def test_a_forecast_without_interval_is_not_registered(isoflop_runs, tmp_path):
    from scalelab import api
    from scalelab.errors import NotIdentifiedError

    rows = isoflop_runs(budgets=(1e18, 1e19, 1e20), sizes=5)
    table = {name: np.array(getattr(rows, name)) for name in ("n_params", "n_tokens", "loss_nats")}
    report = api.fit(table, predict=[POINT], bootstrap=0, forecaster="law")
    with pytest.raises(NotIdentifiedError, match="no interval"):
        api.register(report, "one", results=tmp_path)
    assert not (tmp_path / "forecasts").exists()

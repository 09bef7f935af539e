"""Tables that no law was meant for: every command answers or refuses, and none breaks."""

import json

import numpy as np
import pytest

from scalelab.cli.main import main

MAP = "n_params=N,n_tokens=D,loss_nats=loss"
ANSWERS = (0, 2, 3, 4)
"""Exit codes of intended ends: done, usage error, bad data, not identified."""


def table(kind: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return runs, most of which do not determine a law."""
    n = 16
    columns = {"N": 10 ** rng.uniform(4, 9, n), "D": 10 ** rng.uniform(5, 11, n)}
    if kind == "one D":
        columns["D"][:] = 1e9
    elif kind == "one N":
        columns["N"][:] = 1e7
    elif kind == "one ratio":
        columns["D"] = 20 * columns["N"]
    loss = 1.7 + 400 / columns["N"] ** 0.34 + 400 / columns["D"] ** 0.28
    if kind == "equal losses":
        loss[:] = 3.0
    elif kind == "losses that rise":
        loss = 1 + 0.1 * np.log(columns["N"]) + 0.01 * np.log(columns["D"])
    elif kind == "wild losses":
        loss = 10 ** rng.uniform(-3, 3, n)
    elif kind == "N alone":
        loss = 400 / columns["N"] ** 0.34
    return {**columns, "loss": loss}


@pytest.fixture
def runs(tmp_path, request):
    """Return a table's file, as options."""
    path = tmp_path / "runs.csv"
    columns = table(request.param, np.random.default_rng(7))
    rows = np.column_stack(list(columns.values()))
    np.savetxt(path, rows, delimiter=",", header=",".join(columns), comments="", fmt="%.17g")
    return ["--from", str(path), "--map", MAP]


@pytest.mark.parametrize(
    "runs",
    ["one D", "one N", "one ratio", "equal losses", "losses that rise", "N alone"],
    indirect=True,
)
def test_a_fit_of_an_odd_table_is_answered_or_refused(runs, capsys):
    words = ["fit", *runs, "--bootstrap", "20", "--predict", "N=7e9", "--predict", "C=1e22"]
    assert main([*words, "--json"]) in ANSWERS
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("runs", ["wild losses", "one ratio", "equal losses"], indirect=True)
def test_a_question_far_from_an_odd_table_is_answered_or_refused(runs, capsys):
    asked = ["C=1e12", "C=1e30", "N=1,D=1", "N=1e15", "D=10"]
    assert main(["predict", *asked, *runs, "--json"]) in ANSWERS
    found = json.loads(capsys.readouterr().out)
    refused = [each for each in found["refused"] if each["do"]]
    assert {each["asked"] for each in (*found["predictions"], *refused)} == set(asked)
    assert all(each["low"] <= each["loss_nats"] <= each["high"] for each in found["predictions"])


@pytest.mark.slow
@pytest.mark.parametrize("runs", ["on the law", "wild losses"], indirect=True)
def test_forms_are_compared_on_an_odd_table(runs, capsys):
    assert main(["fit", *runs, "--bootstrap", "20", "--compare", "--json"]) in ANSWERS
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("runs", ["one D"], indirect=True)
def test_a_report_of_an_odd_table_is_written(runs, tmp_path):
    page = tmp_path / "report.html"
    assert main(["report", *runs, "--out", str(page)]) in ANSWERS
    assert page.exists()


@pytest.mark.parametrize("runs", ["N alone"], indirect=True)
def test_what_to_train_by_an_odd_table_is_answered_or_refused(runs):
    limits = ["--flops", "1e21", "--max-usd", "1e6", "--target-loss", "2.5"]
    assert main(["decide", *runs, *limits]) in ANSWERS
    assert main(["decide", *runs, "--published"]) in ANSWERS

"""Tables that no law was meant for: every command answers or refuses, and none breaks."""

import contextlib
import io
import json

import pytest

from scalelab.cli.main import main
from tests.cli.odd_tables import KINDS, faults, write

ANSWERS = (0, 2, 3, 4)
"""Exit codes of intended ends: done, usage error, bad data, not identified."""
QUESTIONS = ["C=1e22", "N=1e9", "D=1e11", "N=7e9,D=2e12"]
FAR = ["C=1e12", "C=1e30", "N=1,D=1", "N=1e15", "D=10"]
FORMS = ("tied", "gamma", "farseer", "kaplan", "overtraining", "data_constrained", "compute")


def commands(path, out, i):
    """Return the words of every command about a table; ``i`` selects a form."""
    runs = ["--from", str(path)]
    fit = ["fit", *runs, "--bootstrap", "20"]
    asked = [word for each in QUESTIONS for word in ("--predict", each)]
    decide = ["decide", *runs, "--flops", "1e22", "--json"]
    return [
        [*fit, *asked, "--json"],
        [*fit, *asked, "--forecaster", "law", "--json"],
        [*fit, *asked, "--form", FORMS[i % len(FORMS)], "--json"],
        ["predict", *QUESTIONS, *FAR, *runs, "--json"],
        decide,
        [*decide, "--forecaster", "law", "--target-loss", "2.5"],
        [*fit, "--loss", "likelihood", "--bootstrap-method", "residual", "--json"],
        ["report", *runs, "--out", str(out), "--predict", "C=1e22", "--json"],
        ["backtest", *runs, "--json"],
        ["compare", str(path), "public:marin", "--bootstrap", "20", "--json"],
        [*fit, "--holdout", "n_params >= 3e8", "-v"],
        [*fit, *asked, "--form", "auto", "--json"],
        [*fit, "--compare", "--json"],
    ]


def check(words, kind):
    """Assert that a command ends as intended and its intervals fit; warnings are errors here."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(words) in ANSWERS, (kind, words)
    if "--json" in words:
        assert not list(faults(json.loads(out.getvalue()))), (kind, words)


@pytest.mark.parametrize("kind", ["one point", "N as text", "losses near zero", "no columns"])
def test_a_fit_of_an_odd_table_is_answered_or_refused(kind, tmp_path):
    write(kind, 0, tmp_path / "runs.csv")
    check(commands(tmp_path / "runs.csv", tmp_path, 0)[0], kind)


@pytest.mark.slow
def test_commands_answer_or_refuse_odd_tables(tmp_path):
    """Every twelfth kind with one command, in turn; the long test asks more."""
    for i, kind in list(enumerate(KINDS))[1::12]:
        write(kind, i, tmp_path / "runs.csv")
        check(commands(tmp_path / "runs.csv", tmp_path / "report.html", i)[i % 7], kind)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_every_command_answers_or_refuses_hundreds_of_odd_tables(tmp_path):
    for seed in range(4):
        for i, kind in enumerate(KINDS):
            write(kind, 100 * seed + i, tmp_path / "runs.csv")
            every = commands(tmp_path / "runs.csv", tmp_path / "report.html", i + seed)
            for j in (i + 3 * seed, i + 3 * seed + 7):
                check(every[j % len(every)], kind)


@pytest.mark.slow
def test_a_hessian_without_a_finite_factor_is_no_traceback(tmp_path):
    write("wild losses", 359, tmp_path / "runs.csv")
    words = ["fit", "--from", str(tmp_path / "runs.csv"), "--bootstrap", "0", "--json"]
    check([*words, "--form", "auto"], "wild losses")


@pytest.mark.slow
def test_losses_too_large_for_a_float_are_decided_without_a_warning(tmp_path):
    write("wild losses", 159, tmp_path / "runs.csv")
    words = ["decide", "--from", str(tmp_path / "runs.csv"), "--flops", "1e22", "--json"]
    check(words, "wild losses")


@pytest.mark.slow
def test_repeats_that_some_rows_do_not_state_are_not_averaged(tmp_path, capsys):
    write("unique tokens in part", 0, tmp_path / "runs.csv")
    words = [
        "fit",
        "--from",
        str(tmp_path / "runs.csv"),
        "--bootstrap",
        "20",
        "--predict",
        "C=1e22",
    ]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["forecaster"] == "law"
    (warning,) = (each for each in found["warnings"] if each["code"] == "not_averaged")
    assert "--where 'unique_tokens > 0'" in warning["message"]


def test_what_is_wrong_with_an_answer_is_found():
    fine = {"value": 1.0, "low": 0.9, "high": 1.1}
    assert not list(
        faults({"a": fine, "predictions": [{**fine, "pred_low": 0.8, "pred_high": 1.2}]})
    )
    for wrong in (
        {**fine, "value": 1.2},
        {**fine, "low": 1.0, "high": 1.0},
        {**fine, "pred_low": 0.95, "pred_high": 1.2},
        {"error": {"given": "a", "allowed": "b", "do": ""}},
    ):
        assert len(list(faults({"deep": [wrong]}))) == 1


@pytest.fixture
def runs(tmp_path, request):
    """Return a table's file, as options."""
    write(request.param, 7, tmp_path / "runs.csv")
    return ["--from", str(tmp_path / "runs.csv")]


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
@pytest.mark.parametrize("runs", ["wild losses"], indirect=True)
def test_forms_are_compared_on_an_odd_table(runs, capsys):
    assert main(["fit", *runs, "--bootstrap", "20", "--compare", "--json"]) in ANSWERS
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("runs", ["one D"], indirect=True)
def test_a_report_of_an_odd_table_is_written(runs, tmp_path):
    page = tmp_path / "report.html"
    assert main(["report", *runs, "--out", str(page)]) in ANSWERS
    assert page.exists()


@pytest.mark.slow
@pytest.mark.parametrize("runs", ["losses of N alone"], indirect=True)
def test_what_to_train_by_an_odd_table_is_answered_or_refused(runs):
    limits = ["--flops", "1e21", "--max-usd", "1e6", "--target-loss", "2.5"]
    assert main(["decide", *runs, *limits]) in ANSWERS
    assert main(["decide", *runs, "--published"]) in ANSWERS

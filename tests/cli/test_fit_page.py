"""What ``scalelab fit`` prints: order, width, names of intervals."""

import io
import json
import re

import pytest
from rich.console import Console

from scalelab.cli.fit_page import _print_warning
from scalelab.fit.outcome import FitWarning


def test_the_first_line_is_the_answer(run, file):
    out, err = run("fit", "--from", file, "--predict", "N=1e9", "--bootstrap", 50)
    first = out.splitlines()[0]
    assert first.startswith("By the average of ")
    assert " laws, N 1B on D " in first
    assert "compute-optimal" in first
    assert "90 % " in first
    assert "x the FLOPs of the largest budget" in first
    assert out.splitlines()[1].startswith("The chinchilla law alone: loss ")
    assert err == ""
    words = ["--from", file, "--predict", "N=1e9", "--bootstrap", 50, "--forecaster", "law"]
    assert run("fit", *words)[0].startswith("By the chinchilla law, N 1B on D ")


@pytest.mark.parametrize("command", ["fit", "decide", "report"])
def test_the_rows_used_the_answer_and_the_verdict_with_its_warnings_come_first(
    run, file, tmp_path, command
):
    lines = file.read_text().splitlines()
    bad = [
        ",".join(
            "" if name == "loss" else value
            for name, value in zip(lines[0].split(","), line.split(","), strict=True)
        )
        for line in lines[1:4]
    ]
    outlier = lines[5].split(",")
    outlier[lines[0].split(",").index("loss")] = "9.5"
    table = tmp_path / "bad.csv"
    table.write_text("\n".join([*lines[:5], ",".join(outlier), *lines[6:], *bad]))
    words = {
        "fit": ["--bootstrap", 20],
        "decide": ["--flops", "1e21"],
        "report": ["--out", tmp_path / "r.html"],
    }
    out, _ = run(command, "--from", table, *words[command], "--forecaster", "law")
    n = len(lines) - 1
    said = out.splitlines()
    assert said[0].startswith(f"{n} of {n + 3} rows used. With ")
    assert "your largest " in said[0]
    assert said[2:4] == ["", "Verdict: with warnings."]
    assert any(line.startswith("  outliers: 1 row") for line in said[4:10])
    assert out.count("outliers: ") == 1


@pytest.mark.usefixtures("ranked_once", "probed_once")
@pytest.mark.parametrize("command", ["fit", "decide", "doctor"])
def test_narrow_output_cuts_no_number_and_keeps_its_width(run, file, monkeypatch, command):
    words = {
        "fit": ["--from", file, "--bootstrap", 20, "--predict", "C=1e21", "--compare"],
        "decide": ["--from", file, "--flops", "1e21"],
        "doctor": [],
    }
    wide, _ = run(command, *words[command])
    for columns in (40, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        out, _ = run(command, *words[command])
        assert "…" not in out
        numbers = set(re.findall(r"\d+\.\d{2,}", wide)) if command != "doctor" else set()
        assert numbers <= set(re.findall(r"\d+\.\d{2,}", out))
        assert any(len(line.rstrip()) <= columns for line in out.splitlines())


def test_a_warning_wraps_with_its_prefix_counted():
    message = "1 of 9 budgets has no minimum inside its grid: 1e20. Add sizes on that side. " * 4
    file = io.StringIO()
    out = Console(file=file, force_terminal=True, width=50, no_color=True)
    _print_warning(FitWarning(code="edge_minimum", message=message), out)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 50
    assert lines[0].startswith("  edge minimum: 1 of 9")
    assert all(line.startswith("    ") for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == f"edge minimum: {message.strip()}"


def test_a_far_forecast_carries_its_warning_in_its_first_line(run, file):
    out, _ = run(
        "fit", "--from", file, "--predict", "N=7e12", "--bootstrap", 50, "--forecaster", "law"
    )
    assert out.splitlines()[0].startswith("Extrapolation: ")
    assert "extrapolation: N=7e12 is far outside the fitted runs" in out
    words = ["--predict", "N=7e12", "--bootstrap", 50, "--json", "--forecaster", "law"]
    found, _ = run("fit", "--from", file, *words)
    assert json.loads(found)["warnings"][0]["code"] == "extrapolation"


@pytest.mark.parametrize(("k", "level", "is_few"), [(19, 0.9, 1), (20, 0.9, 0), (39, 0.95, 1)])
def test_replicates_too_few_for_their_level_are_said(run, file, k, level, is_few):
    words = ["--bootstrap", k, "--level", level, "--json", "--forecaster", "law"]
    out, _ = run("fit", "--from", file, *words)
    codes = [warning["code"] for warning in json.loads(out)["warnings"]]
    assert codes.count("few_replicates") == is_few


def test_piped_output_is_plain_and_whole(run, file):
    long = " AND ".join(["flops > 0"] * 40)
    out, _ = run("fit", "--from", file, "--where", long, "--bootstrap", 20, "--forecaster", "law")
    assert "\x1b" not in out
    assert "…" not in out
    assert long in out


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_number_is_cut_off_on_a_narrow_terminal(run, file, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    out, _ = run("fit", "--from", file, "--predict", "C=1e21", "--bootstrap", 50, "-v")
    assert "…" not in out
    words = ["--predict", "C=1e21", "--bootstrap", 50, "--csv", "--forecaster", "law"]
    wide = run("fit", "--from", file, *words)[0]
    beta = next(line for line in wide.splitlines() if line.startswith("param,beta"))
    assert f"{float(beta.split(',')[2]):.7g}" in out


def test_a_fit_that_is_not_identified_shows_no_intervals(run, tmp_path):
    (tmp_path / "two.csv").write_text("n_params,n_tokens,loss\n1e6,1e7,3\n2e6,2e7,2.8\n")
    out, _ = run("fit", "--from", tmp_path / "two.csv", code=4)
    assert out.startswith("No answer")
    assert "Verdict: not identified." in out
    assert out.count("2 distinct") == 1
    for words in ("[", "0 failed", "(answer)", "confidence interval"):
        assert words not in out


def test_every_interval_on_the_page_has_a_name(run):
    words = ["fit", "--from", "public:chinchilla", "--bootstrap", 20, "--predict", "C=1e24"]
    out, _ = run(*words)
    assert "from public:chinchilla." in out
    assert "90 % confidence interval 1." in out
    assert "90 % prediction interval of a new run 1." in out
    assert "In brackets: 90 % confidence intervals of N and D; 90 % prediction interval" in out


@pytest.mark.parametrize(
    ("chosen", "label"), [((2, 4, 18, 23, 32, 34), None), (range(45), "ladder")]
)
def test_the_first_line_says_that_there_are_no_intervals(run, file, tmp_path, chosen, label):
    lines = file.read_text().splitlines()
    some = [lines[0], *(lines[1 + i] for i in chosen)]
    if label is not None:
        some = [f"{line},{label if i else 'cluster'}" for i, line in enumerate(some)]
    path = tmp_path / "few.csv"
    path.write_text("\n".join(some) + "\n")
    asked = ["fit", "--from", path, "--predict", "C=1e21"]
    out, _ = run(*asked, "--forecaster", "law")
    assert out.startswith("No intervals: ")
    assert "confidence interval" not in out.splitlines()[0]
    found = json.loads(run(*asked, "--forecaster", "law", "--json")[0])
    (prediction,) = found["predictions"]
    assert prediction["loss_nats"] > 0
    assert {prediction[name] for name in ("low", "high", "pred_low", "pred_high")} == {None}
    assert {each["low"] for each in found["params"].values()} == {None}
    assert "no_interval" in {warning["code"] for warning in found["warnings"]}

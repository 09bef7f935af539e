"""The command `decide`: its text, its JSON, the sweep file that it writes, and wrong options."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from scalelab.cli.main import main


def test_the_emitted_sweep_trains_the_best_real_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "winner.toml"
    words = ["decide", "--law", "besiroglu", "--flops", "1e17", "--real-shapes"]
    assert main([*words, "--vocab-size", "8192", "--emit", str(out), "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    results = ["--results", str(tmp_path / "results")]
    assert main(["sweep", "run", str(out), "--dry-run", "--json", *results]) == 0
    (run,) = json.loads(capsys.readouterr().out)["rows"]
    assert run["n_params"] == best["n_params"]
    assert run["shape"] == best["shape"]
    assert run["flops"] == pytest.approx(best["flops"], rel=0.01)


def test_without_a_limit_a_fit_answers_for_ten_times_its_largest_run(
    tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["decide", "--from", str(tables / "llama3" / "data.csv"), "--forecaster", "law"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("With 1e23 FLOP (10x your largest run): ")
    assert "No limit was given, so the compute is limited to 1e23 FLOP" in out


@pytest.mark.parametrize("demand", ["0", "-1e9"])
def test_invalid_served_tokens_are_errors(demand: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["decide", "--law", "hoffmann", "--flops", "1e20", f"--inference-tokens={demand}"]
    assert main([*words, "--json"]) == 2
    assert set(json.loads(capsys.readouterr().out)["error"]) == {"given", "allowed", "do"}


def test_the_json_of_decide(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "winner.toml"
    words = ["decide", "--law", "hoffmann", "--flops", "5.76e23", "--json", "--emit", str(out)]
    # Processor time: which other processes do not change.
    started = time.process_time()
    assert main(words) == 0
    assert time.process_time() - started < 1
    told = json.loads(capsys.readouterr().out)
    assert told["binding"] == ["flops"]
    assert told["best"]["n_params"] == pytest.approx(32.19e9, rel=1e-3)
    assert told["best"]["low"] is None
    assert {"best", "binding", "candidates"} <= told.keys()
    assert 'kind = "grid"' in out.read_text()
    assert main(["decide", "--law", "hoffmann", "--published", "--json"]) == 0
    verdicts = json.loads(capsys.readouterr().out)["published"]
    assert len(verdicts) > 90


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--law", "hoffmann", "--form", "gamma"], "--form"),
        (["--law", "hoffmann", "--level", "0.9", "--map", "a=b"], "--map, --level"),
        (["--law", "hoffmann", "--published", "--emit", "x.toml"], "--emit"),
        (["--law", "hoffmann", "--published", "--flops", "1e20"], "--flops"),
        (["--law", "", "--flops", "1e20"], "law ''"),
        (["--law", "hoffmann", "--flops", "1e20", "--target-loss", "2"], "target loss"),
        (["--law", "hoffmann", "--flops", "1e20", "--emit", "runs.csv"], "runs.csv"),
    ],
)
def test_options_that_contradict_each_other_are_errors(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decide", *words, "--json"]) == 2
    assert told in json.loads(capsys.readouterr().out)["error"]["given"]


def test_the_text_has_the_warnings_and_the_probability_of_a_miss(
    tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["decide", "--from", str(tables / "llama3" / "data.csv"), "--forecaster", "law"]
    assert main([*words, "--flops", "3.8e25", "--target-loss", "0.55"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[2:4] == ["", "Verdict: with warnings."]
    (chance,) = (i for i, line in enumerate(lines) if line.startswith("Probability that this run"))
    assert chance < lines.index(next(line for line in lines if line.startswith("candidate")))
    assert "misses" in out
    assert "extrapolation: " in out
    assert "approach 1 unavailable" not in out

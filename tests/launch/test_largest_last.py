"""The largest budget last: its forecast is registered from the smaller ones, then scored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scalelab.cli.main import main
from scalelab.errors import UsageError
from scalelab.launch.base import LaunchReport, LaunchRequest
from scalelab.launch.largest_last import Halves, halves_of, launch_halves
from scalelab.records.sweep_dir import Results, SavedPlan
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.largest import largest_runs
from scalelab.sweep.option import validated
from scalelab.tune.spec import TuneSpec

WORDS = ("sweep", "isoflop", "--budgets", "1e17..1e19:3", "--tokenizer", "bpe:4096", "--dry-run")


def test_the_largest_runs_are_those_of_the_largest_budget_or_of_the_most_flops() -> None:
    flops = {"a": 9.9, "b": 10.1, "c": 1.0}
    assert largest_runs({"a": 10.0, "b": 10.0, "c": 1.0}, flops) == {"a", "b"}
    assert largest_runs({"a": None, "b": None, "c": None}, flops) == {"b"}


def test_a_sweep_of_one_budget_and_a_tuning_have_no_halves() -> None:
    def saved(kind: str, budgets: dict[str, float | None]) -> SavedPlan:
        return SavedPlan(
            name="x" * 64, kind=kind, created_s=1.0, run_ids=tuple(budgets), budgets=budgets
        )

    flops = {"a": 1e18, "b": 1e17}
    found = halves_of(saved("isoflop", {"a": 1e18, "b": 1e17}), ("a", "b"), flops)
    assert found == Halves(smaller=("b",), largest=("a",), name="x" * 59 + "-1e18")
    assert halves_of(saved("isoflop", {"a": 1e18, "b": 1e18}), ("a", "b"), flops) is None
    assert halves_of(saved("tune", {"a": None, "b": None}), ("a", "b"), flops) is None


def test_an_interrupted_first_half_does_not_start_the_second(tmp_path: Path) -> None:
    asked: list[tuple[str, ...]] = []

    def launch(request: LaunchRequest, watch: object) -> LaunchReport:
        asked.append(request.run_ids)
        statuses = dict.fromkeys(request.run_ids, "running")
        return LaunchReport(statuses=statuses, n_started=1, wall_s=1.0, is_interrupted=True)

    request = LaunchRequest(
        results=Results(tmp_path),
        sweep="s",
        run_ids=("big", "small"),
        execution=ExecutionSpec(),
        n_workers=1,
    )
    halves = Halves(smaller=("small",), largest=("big",), name="s-1e18")
    report = launch_halves(launch, request, halves, {}, lambda view: None)
    assert asked == [("small",)]
    assert report.statuses == {"small": "running", "big": "planned"}
    assert report.is_interrupted
    assert not (tmp_path / "forecasts").exists()


def test_the_plan_says_what_starts_last(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = ("--results", str(tmp_path / "results"))
    assert main([*WORDS, *where, "--largest-last", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["budget_flops"] for row in rows if row["starts_last"]} == {1e19}
    assert main([*WORDS, *where, "--json"]) == 0
    assert not any(row["starts_last"] for row in json.loads(capsys.readouterr().out)["rows"])
    one = ("sweep", "isoflop", "--budgets", "1e17", "--dry-run", "--largest-last")
    assert main([*one, *where]) == 2
    assert "sweep of one budget" in capsys.readouterr().err


def test_a_tuning_refuses_it() -> None:
    sweep = {"kind": "grid", "n_params": "1M", "n_tokens": "20M"}
    with pytest.raises(UsageError, match=r"largest_last in a tuning"):
        validated(TuneSpec, {"sweep": {**sweep, "launcher": {"largest_last": True}}}, source="it")


@pytest.mark.slow
def test_a_sweep_registers_its_largest_budget_trains_it_and_scores_it(
    text: Path, cache_home: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"

    def run(*words: str) -> dict[str, Any]:
        answer = subprocess.run(
            [sys.executable, "-m", "scalelab", *words, "--results", str(results), "--json"],
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
            env={**os.environ, "XDG_CACHE_HOME": str(cache_home)},
        )
        found: dict[str, Any] = json.loads(answer.stdout)
        return found

    shared = ("--data", str(text), "--eval-tokens", "4096", "--seq-len", "32", "--batch-seqs", "4")
    words = ("sweep", "isoflop", *shared, "--sizes", "3", "--span", "4", "--name", "tiny", "--yes")
    found = run(*words, "--budgets", "1e9,2e9,4e9", "--largest-last")
    assert found["counts"] == {"done": 9}
    assert found["n_started"] == 9
    assert "tiny-4e9.json" in found["forecast"]
    assert [score["timing"] for score in found["scores"]] == ["before the run"] * 3
    asked = json.loads((results / "forecasts/tiny-4e9.json").read_text())
    assert asked["rows"]["n"] == 6
    assert [each["begun"] for each in asked["predictions"]] == [[], [], []]

    # A larger budget that is added later is forecast too: the smaller ones have ended.
    found = run(*words, "--budgets", "8e9", "--extend")
    assert "tiny-8e9.json" in found["forecast"]
    assert {score["name"] for score in found["scores"]} == {"tiny-8e9"}
    # Nothing is registered again.
    again = run("resume", "tiny")
    assert (again["forecast"], again["scores"]) == (None, [])

    overall = run("scores")["overall"]
    assert list(overall) == ["before the run"]
    assert overall["before the run"]["n_forecasts"] == 6
    # The same forecast made after its run is kept apart.
    point = asked["predictions"][0]["asked"]
    run("predict", point, "--sweep", "tiny", "--where", "budget < 3e9", "--register", "late")
    late = json.loads((results / "forecasts/late.json").read_text())
    assert len(late["predictions"][0]["begun"]) == 1
    assert run("scores")["overall"]["after the fact"]["n_forecasts"] == 1

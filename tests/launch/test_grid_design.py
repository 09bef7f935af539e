"""An optimal isoFLOP grid: the same FLOPs, less variance at the target, with its gain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scalelab.cli.main import main

WORDS = ("sweep", "isoflop", "--budgets", "1e17..1e19", "--tokenizer", "bpe:4096", "--dry-run")


def plan_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main([*WORDS, *words, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_an_optimal_grid_spends_no_more_and_leaves_less(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words and words and more words. " * 20_000)
    where = ("--data", str(text), "--results", str(tmp_path / "results"))
    plain = plan_of(capsys, *where)
    optimal = plan_of(capsys, *where, "--design", "optimal")
    assert "design" not in plain
    gain = optimal["design"]
    assert isinstance(gain, dict)
    assert gain["target_flops"] == pytest.approx(1e21)
    assert gain["width_optimal"] < gain["width_plain"]
    assert 0 < gain["flops_share"] < 0.8
    totals = [found["totals"]["flops"] for found in (plain, optimal)]  # type: ignore[index]
    assert totals[1] <= totals[0] * 1.001
    budgets = [{row["budget_flops"] for row in found["rows"]} for found in (plain, optimal)]  # type: ignore[attr-defined]
    assert budgets[1] <= budgets[0]
    assert optimal["kind"] == "isoflop"
    costs = np.array([row["flops"] / row["budget_flops"] for row in optimal["rows"]])  # type: ignore[attr-defined]
    np.testing.assert_allclose(costs, 1.0, rtol=0.02)
    assert main([*WORDS, *where, "--design", "optimal"]) == 0
    assert "of the FLOPs" in capsys.readouterr().out


def test_an_unknown_design_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--design", "best", "--json"]) == 2
    assert "--design best" in json.loads(capsys.readouterr().out)["error"]["given"]

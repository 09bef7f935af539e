"""`scalelab program check` and `scalelab program probe`, and a dry run of a program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scalelab.cli.main import main

TRAINER = """
import json, sys

given = dict(word[2:].split("=", 1) for word in sys.argv[1:])
steps, n_params = int(given["steps"]), 12 * int(given["depth"]) * int(given["width"]) ** 2
with open(given["metrics"], "w") as file:
    for row in (
        {"scalelab": 1, "n_params": n_params, "flops_per_token": 6.5 * n_params, "unit": "nats"},
        {"step": steps, "tokens": steps * int(given["tokens"]), "loss": 5.0},
        {"final": True, "eval_loss": 5.0},
    ):
        file.write(json.dumps(row) + "\\n")
"""
SWEEP = """
kind = "isoflop"
budgets = "1e10,2e10"
[program]
command = ["{python}", "train.py", "--depth={size.depth}", "--width={size.width}",
           "--steps={n_steps}", "--tokens={batch_tokens}", "--metrics={metrics}"]
env = { GREETING = "it's {sweep}; $(id)" }
size = { by = "table", table = "sizes.csv" }
[train]
seq_len = 64
batch_seqs = 4
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(TRAINER)
    Path("sizes.csv").write_text("depth,width\n1,8\n2,16\n")
    path = tmp_path / "mine.toml"
    path.write_text(SWEEP)
    return path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_table_of_depths_is_probed_and_then_planned(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = said(capsys, "sweep", "run", str(file), "--dry-run")
    assert code == 2
    assert "scalelab program probe" in error["error"]["do"]
    assert main(["program", "probe", str(file)]) == 0
    shown = capsys.readouterr()
    assert "depth = 1, width = 8: n_params = 768, flops_per_token = 4992" in shown.out
    assert Path("sizes.csv").read_text() == (
        "depth,width,n_params,flops_per_token\n1,8,768,4992\n2,16,6144,39936\n"
    )
    code, plan = said(capsys, "sweep", "run", str(file), "--dry-run")
    assert code == 0
    assert {row["n_params"] for row in plan["rows"]} == {768, 6144}
    assert plan["flop_convention"] == "reported"
    assert plan["totals"]["wall_s"] is None
    command = plan["program"]["commands"][0]
    assert "--depth=1" in command["argv"] or "--depth=2" in command["argv"]
    assert command["env"] == {"GREETING": "it's mine; $(id)"}
    # Nothing is left to measure.
    assert said(capsys, "program", "probe", str(file))[1]["rows"] == []


def test_a_failed_probe_names_the_row_and_leaves_the_table(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("train.py").write_text("raise SystemExit('no such depth')\n")
    before = Path("sizes.csv").read_text()
    code, error = said(capsys, "program", "probe", str(file))
    assert code == 5
    assert "depth = 1, width = 8" in error["error"]["given"]
    assert "no such depth" in error["error"]["given"]
    assert Path("sizes.csv").read_text() == before


def test_a_check_prints_commands_placeholders_and_problems(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sizes.csv").write_text("depth,width,n_params\n1,8,768\n2,16,6144\n")
    assert main(["program", "check", str(file)]) == 0
    shown = capsys.readouterr().out
    for words in ("--depth=1", "{size.depth} = 1", "{n_steps} = ", "No problem."):
        assert words in shown
    Path("train.py").unlink()
    code, found = said(capsys, "program", "check", str(file))
    assert code == 2
    assert [problem["given"] for problem in found["problems"]] == [
        f"the script 'train.py', which is not in {file.parent}"
    ]
    assert not Path("results").exists()


def test_a_sweep_without_a_program_is_told_so(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text('kind = "isoflop"\nbudgets = "1e12"\n')
    code, error = said(capsys, "program", "check", str(file))
    assert code == 2
    assert "[program]" in error["error"]["given"]


def test_the_program_of_a_file_is_an_option(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sizes.csv").write_text("depth,width,n_params\n1,8,768\n2,16,6144\n")
    words = ("--program", str(file), "--seq-len", "64", "--batch-seqs", "4", "--dry-run")
    code, plan = said(capsys, "sweep", "grid", "--n-tokens", "100K", *words)
    assert (code, len(plan["rows"])) == (0, 2)
    command = ["{python}", "train.py", "--lr={lr}", "--bs={batch_seqs}", "--n={size.n_params}",
               "--steps={n_steps}"]  # fmt: skip
    file.write_text(SWEEP.split("command")[0] + f"command = {json.dumps(command)}\n"
                    'size = { by = "table", table = "sizes.csv" }\n')  # fmt: skip
    tune = ("tune", "--n-tokens", "1M", "--lr", "1e-4..1e-2", "--batch-seqs", "4..16")
    code, plan = said(capsys, *tune, "--program", str(file), "--seq-len", "64", "--dry-run")
    assert code == 0, plan
    assert set(plan["bounds"][0]) == {"lr", "batch_seqs"}

"""``scalelab bench qualify`` and the verdicts in ``scalelab doctor`` and ``scalelab logs``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scalelab.cli import main
from scalelab.cli.machine import MISSING, OK, PROBLEM
from scalelab.cli.qualify import check_qualification, verdict_lines
from scalelab.records.qualification import Platform, shape_entry, write_verdict
from scalelab.theory.shape import ModelShape
from scalelab.train.calibrate import synthetic_run

GRAPH = {"step": "graph", "kernels": "triton", "attention": "flash"}
EAGER = {"step": "eager", "kernels": "reference", "attention": "sdpa"}
PLATFORM = Platform(
    device="NVIDIA H200", driver="570.1", torch="2.11", triton="3.6", revision="abc"
)


def verdict(status: str = "ok") -> dict[str, Any]:
    shape = ModelShape(n_layers=4, d_model=64, n_heads=2, d_head=32, d_ff=176, vocab_size=256)
    spec = synthetic_run(shape, seq_len=128, batch_seqs=8)
    reason = "" if status == "ok" else "swiglu (3 x 8): value 0 has a relative error of 0.5"
    candidates = [
        {**EAGER, "status": "ok", "reason": "", "step_ms": 4.0},
        {**GRAPH, "status": status, "reason": reason, "step_ms": 1.0 if status == "ok" else None},
    ]
    check = {"op": "swiglu", "size": "3 x 8", "status": status, "reason": "value 0 is wrong"}
    return {
        "schema": 1,
        "platform": {name: getattr(PLATFORM, name) for name in Platform.__dataclass_fields__},
        "made_s": 1.0,
        "took_s": 30.0,
        "kernels": [{"class": {}, "is_whole": True, "tries": 1, "checks": [check]}],
        "shapes": [shape_entry(spec, 1, candidates, is_whole=True, tries=1)],
    }


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "qualification" / PLATFORM.file_name


def test_doctor_names_what_runs_take_and_what_is_ruled_out(keep: Path, tmp_path: Path) -> None:
    assert check_qualification(tmp_path, ()) == []
    (asked,) = check_qualification(tmp_path, ("NVIDIA H200", "NVIDIA H200"))
    assert (asked.status, "scalelab bench qualify" in asked.do) == (MISSING, True)
    write_verdict(keep, verdict())
    (good,) = check_qualification(tmp_path, ("NVIDIA H200",))
    assert good.status == OK
    assert "graph + triton + flash at 1 shape" in good.found
    assert str(keep) in good.found
    write_verdict(keep, verdict("wrong"))
    (bad,) = check_qualification(tmp_path, ("NVIDIA H200",))
    assert bad.status == PROBLEM
    assert "eager + reference + sdpa" in bad.found
    assert "Ruled out: graph + triton + flash (wrong)" in bad.found


def test_a_verdict_is_shown_with_times_reasons_and_what_is_taken() -> None:
    lines = list(verdict_lines(verdict("wrong")))
    assert lines[0] == "1 kernel check, 0 right"
    assert "swiglu (3 x 8): wrong" in lines[1]
    assert lines[3] == "  eager + reference + sdpa: 4 ms, taken"
    assert "graph + triton + flash: wrong, swiglu" in lines[4]


def test_on_a_plain_cpu_there_is_nothing_to_measure(
    keep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "qualify", "--device", "cpu", "--results", str(tmp_path)]
    assert main.main(words) == 0
    assert "direct + reference + explicit" in capsys.readouterr().out
    assert main.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"] == "bench qualify"
    assert found["verdict"] is None


def test_what_the_device_cannot_do_is_refused(
    keep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "qualify", "--device", "cpu", "--results", str(tmp_path)]
    assert main.main([*words, "--step", "graph"]) == 2
    assert "step = graph on a CPU" in capsys.readouterr().err

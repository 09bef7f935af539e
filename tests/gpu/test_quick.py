"""``tests/gpu/quick.py`` without a GPU: it completes, and a bad case costs only itself."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import quick
from gpu_cases import catalog, steps
from gpu_cases.case import CHECK, TIME, Case, Goal

from scalelab.records.machine import pid_start
from scalelab.sweep.execution import AUTO, planned_execution
from scalelab.sweep.tables import ExecutionTable
from tests.bare_machine import bare_environment

ROOT = Path(__file__).parents[2]
ODD_CASES = """
import os, time

def good(*, is_tiny, value=1.0):
    print("printed by a case")
    return {"speed": value, "says": "good"}

def wrong(*, is_tiny):
    raise AssertionError("the loss is wrong")

def broken(*, is_tiny):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def killed(*, is_tiny):
    os.abort()

def hangs(*, is_tiny):
    print("about to hang", flush=True)
    time.sleep(600)

def slow(*, is_tiny, seconds):
    time.sleep(seconds)
    return {"says": "slow"}

def partly(*, is_tiny):
    return {"speed": 3.0, "problems": ["shape 2 has a relative error of 1"]}
"""


def odd(name: str, call: str, *, kind: str = TIME, limit_s: float = 100.0, **given: Any) -> Case:
    return Case(name=name, call=f"odd:{call}", kind=kind, limit_s=limit_s, arguments=given)


@pytest.fixture
def odd_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an output folder; children can import the module of odd cases."""
    (tmp_path / "odd.py").write_text(ODD_CASES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("SCALELAB_GPU_TINY", raising=False)
    return tmp_path / "out"


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "quick.json").read_text())


def test_a_bad_case_costs_only_itself(odd_module: Path) -> None:
    cases = [
        odd("device", "good", kind=CHECK),
        odd("first", "good", value=4.0),
        odd("wrong", "wrong"),
        odd("broken", "broken"),
        odd("killed", "killed"),
        # The limit includes the start of the child, which a busy machine makes slow.
        odd("hangs", "hangs", limit_s=4.0),
        odd("no such function", "absent"),
        odd("partly", "partly"),
        odd("last", "good", value=2.0),
    ]
    goals = [
        Goal(case="first", figure="speed", wanted=3.0),
        Goal(case="last", figure="speed", wanted=3.0),
        Goal(case="hangs", figure="speed", wanted=3.0),
    ]
    assert quick.main(["--out", str(odd_module), "--tiny"], lambda out: cases, goals) == 0
    found = report_of(odd_module)
    assert {name: row["status"] for name, row in found["cases"].items()} == {
        "device": "ok",
        "first": "ok",
        "wrong": "failed",
        "broken": "failed",
        "killed": "crashed",
        "hangs": "timed out",
        "no such function": "failed",
        "partly": "failed",
        "last": "ok",
    }
    reasons = {name: row.get("reason", "") for name, row in found["cases"].items()}
    assert reasons["killed"] == "the child ended by signal 6; == killed"
    assert "about to hang" in reasons["hangs"]
    assert reasons["partly"] == "shape 2 has a relative error of 1"
    assert [goal["verdict"] for goal in found["goals"]] == ["met", "missed", "not measured"]
    table = (odd_module / "quick.md").read_text()
    assert all(f"| {name} |" in table for name in found["cases"])


def test_a_failed_check_is_the_exit_code_and_a_missed_goal_is_not(odd_module: Path) -> None:
    cases = [odd("device", "good", kind=CHECK), odd("kernel", "wrong", kind=CHECK)]
    words = ["--out", str(odd_module), "--tiny"]
    assert quick.main(words, lambda out: cases) == 1
    assert quick.main(words, lambda out: cases[:1]) == 0


def test_without_a_device_nothing_else_runs(odd_module: Path) -> None:
    cases = [odd("device", "broken", kind=CHECK), odd("kernel", "good")]
    assert quick.main(["--out", str(odd_module), "--tiny"], lambda out: cases) == 1
    assert list(report_of(odd_module)["cases"]) == ["device"]


def test_an_earlier_report_stays_until_a_case_has_passed(odd_module: Path) -> None:
    words = ["--out", str(odd_module), "--tiny"]
    measured = [odd("device", "good", kind=CHECK), odd("kernel", "good")]
    assert quick.main(words, lambda out: measured) == 0
    assert quick.main(words, lambda out: [odd("device", "broken", kind=CHECK)]) == 1
    assert list(report_of(odd_module)["cases"]) == ["device", "kernel"]
    assert quick.main(words, lambda out: measured[:1]) == 0
    assert list(report_of(odd_module)["cases"]) == ["device"]


@pytest.mark.parametrize("words", [["--only", "device"], ["--tiny"]])
def test_a_report_of_some_cases_or_of_toy_sizes_is_not_published(
    words: list[str], odd_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "PUBLISHED", odd_module / "published")
    monkeypatch.setattr(quick, "PARTIAL", odd_module / "partial", raising=False)
    assert quick.main(words, lambda out: [odd("device", "good", kind=CHECK)]) == 0
    assert report_of(odd_module / "partial")["cases"]
    assert not (odd_module / "published").exists()


@pytest.mark.slow
def test_the_budget_is_kept(odd_module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "TOY_LANES", 1)
    cases = [odd("device", "good", kind=CHECK), odd("early check", "hangs", kind=CHECK)]
    cases += [odd(f"slow {index}", "slow", seconds=1.2) for index in range(8)]
    started = time.monotonic()
    words = ["--out", str(odd_module), "--tiny", "--budget-s", "8"]
    assert quick.main(words, lambda out: cases) == 1
    # The check alone would take its limit of 100 s.
    assert time.monotonic() - started < 60
    statuses = [row["status"] for row in report_of(odd_module)["cases"].values()]
    assert statuses[:3] == ["ok", "timed out", "ok"]
    assert statuses[-1] == "not run"
    assert len(statuses) == len(cases)


def test_the_json_is_whole_after_each_case(
    odd_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [odd("device", "good", kind=CHECK), odd("one", "good"), odd("two", "hangs")]
    seen = []

    def watch(text: str) -> None:
        seen.append((text, list(report_of(odd_module)["cases"])))
        if " one:" in text:
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", lambda text, **_: watch(text))
    with pytest.raises(KeyboardInterrupt):
        quick.main(["--out", str(odd_module), "--tiny"], lambda out: cases)
    assert [names for _, names in seen] == [["device"], ["device", "one"]]
    assert list(report_of(odd_module)["cases"]) == ["device", "one"]


def test_a_killed_program_leaves_no_child_on_the_device(odd_module: Path) -> None:
    program = f"""
import sys
sys.path[:0] = [{str(ROOT / "tests" / "gpu")!r}, {str(ROOT / "kernels")!r}, {str(ROOT)!r}]
import quick
from gpu_cases.case import CHECK, TIME, Case
given = dict(kind=CHECK, limit_s=99.0)
cases = [Case(name=name, call=f"odd:{{name}}", **given) for name in ("good", "hangs")]
quick.main(["--out", {str(odd_module)!r}, "--tiny"], lambda out: cases)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    logs = odd_module / "lane-0.log"
    wait_until(lambda: logs.exists() and "about to hang" in logs.read_text())
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.kill()
    parent.wait()
    assert children
    wait_until(lambda: not any(pid_start(int(pid)) for pid in children))
    assert report_of(odd_module)["cases"]["good"]["status"] == "ok"


def wait_until(is_true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 200
    while not is_true():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.05)


def test_the_catalog_has_the_checks_first_and_a_case_for_each_goal() -> None:
    for cases in (catalog.quick("out"), catalog.long("out")):
        names = [case.name for case in cases]
        assert len(names) == len(set(names))
        assert names[0] == "device"
        kinds = [case.kind for case in cases]
        assert kinds == sorted(kinds), "checks come before timings"
        assert {goal.case for goal in catalog.GOALS} <= set(names)
        compiled = catalog.compilations([case for case in cases if case.kind == TIME])
        assert {case.name.removeprefix("compile ") for case in compiled} <= set(names)


@pytest.mark.parametrize("n_runs", [1, 16])
@pytest.mark.parametrize("name", [*steps.MODELS, *steps.SMALL])
def test_what_is_measured_is_what_a_sweep_plans_on_a_gpu(name: str, n_runs: int) -> None:
    asked = ExecutionTable().request("cuda")
    assert (asked.step, asked.kernels, asked.attention) == (AUTO, AUTO, AUTO)
    if name in steps.SMALL:
        spec = steps.small_spec(name, is_tiny=False)
    else:
        spec = steps.model_spec(name, 2048, is_tiny=False)
    assert spec.precision == "bf16", "the precision that a sweep has on a GPU"
    measured = steps.execution_of(spec, n_runs=n_runs)
    assert measured == replace(planned_execution(asked, spec), batched_runs=n_runs)
    assert (measured.step, measured.kernels) == ("graph", "triton")


@pytest.mark.slow
def test_all_cases_complete_at_toy_sizes_with_only_torch_triton_and_numpy(tmp_path: Path) -> None:
    out, patience = tmp_path / "out", ("--budget-s", "2000")
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "gpu" / "quick.py", "--tiny", "--out", out, *patience],
        env=bare_environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    found = report_of(out)
    wrong = {name: row for name, row in found["cases"].items() if row["status"] != "ok"}
    assert wrong == {}, "".join(log.read_text() for log in out.glob("*.log"))
    assert done.returncode == 0, done.stderr
    assert set(found["cases"]) == {case.name for case in catalog.quick(str(out))}
    # Toy sizes reach almost no goal, but each has its figure.
    verdicts = {goal["verdict"] for goal in found["goals"]}
    assert "missed" in verdicts
    assert "not measured" not in verdicts
    assert json.loads(gzip.decompress((out / "trace.json.gz").read_bytes()))["traceEvents"]
    assert sum(path.stat().st_size for path in out.iterdir()) < 4e6


@pytest.mark.slow
def test_without_a_gpu_the_program_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "gpu" / "quick.py", "--out", tmp_path],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no device: nothing was measured" in done.stderr
    assert report_of(tmp_path)["cases"]["device"]["reason"].endswith("no CUDA device")

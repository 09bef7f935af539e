"""A sweep of programs, each with another fault, on the local pool through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scalelab.launch.programs.process import processes_of
from scalelab.records.sweep_dir import Results
from tests.launch.local.frozen import wait_for
from tests.programs.adversary import adversary_table, final_loss

# Status of the run of each fault, and the kinds of failure of its attempts.
FAULTS: dict[str, tuple[str, list[str | None]]] = {
    "": ("done", [None]),
    "exit0:30": ("done", ["early_exit", None]),
    "crash:30": ("failed", ["exception"] * 4),
    "kill:30": ("done", ["infrastructure", None]),
    "nan:20": ("diverged", ["diverged"]),
    "oom:25": ("failed", ["out_of_memory"] * 4),
    "orphan": ("done", [None]),
    "overlap": ("done", [None]),
    "raw": ("done", [None]),
    "flood": ("done", [None]),
    "wrong_n": ("failed", ["no_result"]),
    "no_final": ("failed", ["no_result"]),
    "broken": ("done", [None]),
}
STEPS, BATCH_TOKENS = 40, 128
RUNS_FAILED = 5
pytestmark = pytest.mark.slow


def sweep_file(folder: Path, seeds: int, *more: str) -> Path:
    """Write a sweep whose runs the adversary trains, one a seed."""
    program = {**adversary_table(*more), "size": {"by": "report"}, "grace_s": 0.5}
    program["command"] = [*program["command"], "--n-params=11632"]
    path = folder / "faults.toml"
    path.write_text(
        f'kind = "grid"\nn_params = "12K"\nn_tokens = {STEPS * BATCH_TOKENS}\n'
        + "[program]\n"
        + "".join(
            f"{key} = {json.dumps(value)}\n" for key, value in program.items() if key != "size"
        )
        + 'size = { by = "report" }\n'
        + f"[train]\nseq_len = 32\nbatch_seqs = 4\nlr = 0.01\nseeds = {list(range(seeds))}\n"
    )
    return path


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scalelab", *words, "--results", str(folder / "results")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(folder)},
        start_new_session=True,
    )


def processes(results: Results) -> list[int]:
    """Return the living processes of all attempts."""
    runs = [results.run(run_id) for run_id in results.load_plan("faults").run_ids]
    return [pid for run in runs for a in run.attempts() for pid in processes_of(a.token)]


def test_each_fault_ends_as_it_should_and_leaves_no_process(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, len(FAULTS), f"--faults={','.join(FAULTS)}")
    launcher = start(tmp_path, "sweep", "run", str(file), "--yes", "--json")
    out, err = launcher.communicate(timeout=800)
    results = Results(tmp_path / "results")
    found: dict[str, Any] = {}
    for run_id in results.load_plan("faults").run_ids:
        run = results.run(run_id)
        spec, attempts = run.read_spec(), run.attempts()
        fault = list(FAULTS)[spec.seed]
        ends = [attempt.read_note()["ended"]["kind"] for attempt in attempts]
        found[fault] = (run.status(), ends)
        records = [a for a in attempts if a.read_record() is not None]
        assert len(records) == (run.status() != "failed"), fault
        if run.status() == "done":
            record = run.accepted().read_record()
            assert record.loss_nats == final_loss(spec.seed, spec.n_steps, spec.lr), fault
    assert found == FAULTS, err
    assert processes(results) == []
    assert launcher.returncode == RUNS_FAILED
    counts = json.loads(out)["counts"]
    assert counts == {"done": 8, "diverged": 1, "failed": 4}


def test_a_killed_launcher_leaves_no_process_and_resume_finishes(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, 3, "--step-s=0.1", "--fault=ignore_term")
    launcher = start(tmp_path, "sweep", "run", str(file), "--yes")
    results = Results(tmp_path / "results")

    def checkpoints() -> int:
        return len(list(results.path.glob("runs/*/attempts/*/out/ckpt_10.json")))

    wait_for(lambda: checkpoints() >= 2, "checkpoints of two runs")
    assert processes(results)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.communicate()
    wait_for(lambda: not processes(results), "end of the programs")
    done = start(tmp_path, "resume", "faults", "--json")
    out, err = done.communicate(timeout=600)
    assert done.returncode == 0, err
    assert json.loads(out)["counts"] == {"done": 3}
    n_resumed = 0
    for run_id in results.load_plan("faults").run_ids:
        run = results.run(run_id)
        spec, accepted = run.read_spec(), run.accepted()
        assert accepted is not None
        assert [a.token for a in run.attempts() if a.read_record()] == [accepted.token]
        record = accepted.read_record()
        assert record is not None
        assert record.loss_nats == final_loss(spec.seed, spec.n_steps, spec.lr)
        n_resumed += accepted.read_note()["resumed_from"] is not None
    assert n_resumed == 2
    assert processes(results) == []

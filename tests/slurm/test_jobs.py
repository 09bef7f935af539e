"""Single faults of jobs on the real cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalelab.launch.cancel import cancel_runs
from scalelab.launch.saved_options import saved_options
from scalelab.launch.slurm.intents import read_intents
from scalelab.launch.worker import CANCELLED_FILE
from scalelab.sweep.tables import LauncherTable

WITHOUT_SACCT = pytest.mark.parametrize("cluster", [False], indirect=True, ids=["no-sacct"])
TINY_TOKENS = 2e4
LONG_TOKENS = 3e7
KILL_STEPS = [1, 4, 7, 10, 13, 16, 19, "sbatch+0.000", "sbatch+0.004", "sbatch+0.010", "sbatch+0.1"]


def ended(launcher: subprocess.Popen[str], timeout: float = 300) -> dict[str, Any]:
    """Return the report of a launcher that ends normally."""
    output, _ = launcher.communicate(timeout=timeout)
    assert launcher.returncode == 0, output
    report: dict[str, Any] = json.loads(output.splitlines()[-1])
    return {**report, "notes": output.splitlines()[:-1]}


@WITHOUT_SACCT
def test_launchers_killed_around_sbatch_on_a_real_cluster(
    cluster: Any, make_sweep: Callable[..., Any], tmp_path: Path, stopping: list[Any]
) -> None:
    sweeps = [
        make_sweep(tmp_path / str(n), name=f"kill{n}", seeds=1, n_tokens=TINY_TOKENS)
        for n in range(len(KILL_STEPS))
    ]
    assert len(sweeps) >= 10
    killed = [
        sweep.start_launcher(kill_at=str(step))
        for sweep, step in zip(sweeps, KILL_STEPS, strict=True)
    ]
    stopping += killed
    codes = [launcher.wait(300) for launcher in killed]
    # The last launcher may receive the answer of sbatch; it then dies while it waits for the run.
    assert codes == [-signal.SIGKILL] * len(codes)
    again = [sweep.start_launcher() for sweep in sweeps]
    stopping += again
    for sweep, launcher in zip(sweeps, again, strict=True):
        assert set(ended(launcher)["statuses"].values()) == {"done"}
        (run_id,) = sweep.run_ids
        assert len(sweep.results.run(run_id).attempts()) == 1
    names = cluster.command("squeue", "-h", "-t", "all", "-r", "-o", "%j").split()
    started = [
        intent
        for sweep in sweeps
        for intent in read_intents(sweep.results.sweep(sweep.name))
        if intent.verdict().startswith("started")
    ]
    assert len(started) == len(sweeps)
    assert all(names.count(intent.job_name) == 1 for intent in started)


def test_a_crash_is_detected_within_ten_seconds(
    cluster: Any,
    make_sweep: Callable[..., Any],
    tmp_path: Path,
    stopping: list[Any],
    wait_for: Callable[..., None],
) -> None:
    sweep = make_sweep(tmp_path / "results", seeds=1, n_tokens=LONG_TOKENS)
    launcher = sweep.start_launcher()
    stopping.append(launcher)
    run = sweep.results.run(sweep.run_ids[0])
    wait_for(lambda: bool(run.attempts()) and bool(run.attempts()[-1].read_note()), "attempt", 300)
    os.kill(run.attempts()[-1].read_note()["pid"], signal.SIGKILL)
    words = ("squeue", "-h", "-t", "running", "-o", "%j")
    wait_for(lambda: "scalelab." not in cluster.command(*words), "end of the job in SLURM", 300)
    ended_s = time.monotonic()
    assert launcher.stdout is not None
    while "FAILED" not in (line := launcher.stdout.readline()):
        assert line, "the launcher ended"
    assert time.monotonic() - ended_s < 10
    wait_for(lambda: len(run.attempts()) == 2, "second attempt", 300)
    report = cancel_runs(sweep.results, sweep.name, sweep.run_ids)
    assert report.run_ids == sweep.run_ids
    assert ended(launcher)["statuses"] == {run.run_id: "cancelled"}


@WITHOUT_SACCT
def test_usr2_saves_a_checkpoint_and_the_run_continues(
    cluster: Any,
    make_sweep: Callable[..., Any],
    tmp_path: Path,
    stopping: list[Any],
    wait_for: Callable[..., None],
) -> None:
    sweep = make_sweep(tmp_path / "results", seeds=1, n_tokens=LONG_TOKENS)
    launcher = sweep.start_launcher(checkpoint_interval_s=1000.0)
    stopping.append(launcher)
    run = sweep.results.run(sweep.run_ids[0])
    wait_for(lambda: bool(run.attempts()) and run.attempts()[0].metrics_path.exists(), "rows", 300)
    (intent,) = read_intents(sweep.results.sweep(sweep.name))
    cluster.command("scancel", "--signal=USR2", f"{intent.job_id()}_0")
    wait_for(lambda: len(run.attempts()) == 2, "attempt after the hint", 300)
    first, second = run.attempts()
    wait_for(lambda: second.read_note().get("resumed_from") is not None, "resumed attempt", 300)
    assert first.read_note()["ended"]["reason"] == "received SIGUSR2"
    # Rows are written every 10 steps; no step was repeated.
    between = second.read_note()["resumed_from"]["step"] - first.last_metrics().step
    assert 0 <= between < 10
    assert second.read_note()["pid"] == first.read_note()["pid"]
    (run.path / CANCELLED_FILE).touch()
    assert ended(launcher)["statuses"] == {run.run_id: "cancelled"}


@WITHOUT_SACCT
def test_grouped_jobs_run_from_a_frozen_copy_and_share_nothing(
    cluster: Any, make_sweep: Callable[..., Any], tmp_path: Path, stopping: list[Any]
) -> None:
    sweep = make_sweep(
        tmp_path / "it's a results folder",
        seeds=6,
        n_tokens=TINY_TOKENS,
        slurm={"target_job_minutes": 0.25, "snapshot": True, "gpus_per_run": 1},
    )
    launcher = sweep.start_launcher(seconds=4.0)
    stopping.append(launcher)
    report = ended(launcher)
    assert set(report["statuses"].values()) == {"done"}
    (intent,) = read_intents(sweep.results.sweep(sweep.name))
    assert [len(group.run_ids) for group in intent.job_groups] == [3, 3]
    (copy,) = (path for path in (sweep.results.path / "source").iterdir() if path.is_dir())
    for run_id in sweep.run_ids:
        note = sweep.results.run(run_id).accepted().read_note()
        assert note["snapshot"] == copy.name
        assert note["git_commit"]
        assert "source_diff" in note
    assert saved_options(sweep.results, sweep.name, LauncherTable).slurm.snapshot


@WITHOUT_SACCT
def test_a_strangers_callable_is_never_loaded(
    cluster: Any, make_sweep: Callable[..., Any], tmp_path: Path, stopping: list[Any]
) -> None:
    if os.getuid() != 0:
        pytest.skip("giving a file to another user takes root")
    sweep = make_sweep(tmp_path / "results", seeds=1, n_tokens=TINY_TOKENS)
    cluster.command("scontrol", "update", "nodename=n1,n2", "state=drain", "reason=test")
    launcher = sweep.start_launcher(detach=True)
    stopping.append(launcher)
    ended(launcher)
    (intent,) = read_intents(sweep.results.sweep(sweep.name))
    os.chown(intent.path / "submitted.pkl", 65534, 65534)
    cluster.command("scontrol", "update", "nodename=n1,n2", "state=resume")
    again = sweep.start_launcher()
    stopping.append(again)
    report = ended(again)
    # The first job refuses; the next one has its own callable.
    assert set(report["statuses"].values()) == {"done"}
    assert any("FAILED" in note for note in report["notes"])
    (log, *_) = intent.path.glob("*_log.out")
    assert "belongs to another user" in log.read_text()


@WITHOUT_SACCT
def test_torchruns_environment_in_a_job_of_several_tasks(cluster: Any, tmp_path: Path) -> None:
    program = (
        "from submitit.helpers import TorchDistributedEnvironment as T; import os; "
        "os.environ['SUBMITIT_EXECUTOR'] = 'slurm'; T().export(); "
        "print(*(os.environ[k] for k in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR')))"
    )
    words = ("srun", "-N2", "--ntasks-per-node=1", sys.executable, "-c", program)
    out = cluster.command(*words, timeout=120)
    assert sorted(out.split("\n")[:2]) == ["0 2 0 n1", "1 2 0 n1"]

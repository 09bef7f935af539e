"""A sweep on the real cluster, with everything that can go wrong happening in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalelab.launch.base import LaunchRequest
from scalelab.launch.local import launch_local
from scalelab.sweep.run_spec import ExecutionSpec

N_RUNS = 12
N_TOKENS = 1e5
CHECKPOINT_INTERVAL_S = 1.0
POLL_AND_SAVE_S = 1.0


@pytest.fixture(scope="session")
def undisturbed(
    make_sweep: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, float]:
    """Return the losses of the same sweep, trained where nothing happens to it."""
    sweep = make_sweep(tmp_path_factory.mktemp("quiet"), seeds=N_RUNS, n_tokens=N_TOKENS)
    request = LaunchRequest(
        results=sweep.results,
        sweep=sweep.name,
        run_ids=sweep.run_ids,
        execution=ExecutionSpec(),
        n_workers=2,
    )
    launch_local(request, lambda view: None)
    losses: dict[str, float] = sweep.losses()
    assert len(set(losses.values())) == N_RUNS
    assert None not in losses.values()
    return losses


class Faults:
    """Things that happen to runs of a sweep, each to a run that has a checkpoint already."""

    def __init__(self, cluster: Any, sweep: Any) -> None:
        self.cluster = cluster
        self.sweep = sweep
        self.hit: dict[str, str] = {}

    def take_run(self, what: str, *, node: str | None = None) -> str | None:
        """Return the array element of a run under way that nothing happened to yet."""
        running = self.cluster.command("squeue", "-h", "-t", "running", "-r", "-o", "%i|%N|%j")
        lines = (line.split("|") for line in running.splitlines())
        nodes = {i: n for i, n, name in lines if name.startswith("scalelab.")}
        for run_id in self.sweep.run_ids:
            run = self.sweep.results.run(run_id)
            attempts = run.attempts()
            saved = [checkpoint.step for checkpoint in run.checkpoints()]
            if run_id in self.hit or run.accepted() or not attempts or not saved:
                continue
            if max(saved) > run.read_spec().n_steps / 2:
                continue  # it could be done before anything happens to it
            note = attempts[-1].read_note()
            element = f"{note.get('array_job_id')}_{note.get('array_task_id')}"
            if note.get("ended") or element not in nodes:
                continue
            if node is None or nodes[element] == node:
                self.hit[run_id] = what
                return element
        return None

    def pid_of(self, what: str) -> int:
        """Return the process that works on the run that something happens to."""
        (run_id,) = (run_id for run_id, word in self.hit.items() if word == what)
        return int(self.sweep.results.run(run_id).attempts()[-1].read_note()["pid"])


@pytest.mark.timeout(900)
def test_faults_cost_no_result(
    cluster: Any,
    make_sweep: Callable[..., Any],
    undisturbed: dict[str, float],
    tmp_path: Path,
    stopping: list[subprocess.Popen[str]],
    wait_for: Callable[..., None],
) -> None:
    sweep = make_sweep(
        tmp_path / "results", seeds=N_RUNS, n_tokens=N_TOKENS, slurm={"partition": "low"}
    )
    assert set(sweep.run_ids) == set(undisturbed)
    faults = Faults(cluster, sweep)

    def launch() -> subprocess.Popen[str]:
        launcher: subprocess.Popen[str] = sweep.start_launcher(
            checkpoint_interval_s=CHECKPOINT_INTERVAL_S
        )
        stopping.append(launcher)
        return launcher

    def take_run(what: str, **where: Any) -> str:
        found: list[str] = []

        def take() -> bool:
            element = faults.take_run(what, **where)
            if element is not None:
                found.append(element)
            return bool(found)

        wait_for(take, f"run to hit with {what}", 200)
        return found[0]

    launcher = launch()
    # Paused, the job cannot save itself when its limit comes: it has what it saved before.
    paused = take_run("time limit")
    os.kill(faults.pid_of("time limit"), signal.SIGSTOP)
    cluster.command("scontrol", "update", f"jobid={paused}", "timelimit=1")
    cluster.command("scancel", take_run("cancelled from outside"))
    cluster.command("scontrol", "requeue", take_run("requeued from outside"))
    cluster.kill("slurmctld")
    os.kill(launcher.pid, signal.SIGKILL)
    time.sleep(1)
    launcher = launch()
    cluster.revive("slurmctld")
    take_run("node gone", node="n1")
    cluster.kill("n1")
    time.sleep(1)
    cluster.revive("n1")
    take_run("preempted")
    urgent = cluster.command(
        "sbatch",
        "--parsable",
        "-p",
        "high",
        "-N2",
        "--exclusive",
        "-t1",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 3",
    ).strip()
    output, _ = launcher.communicate(timeout=600)

    assert launcher.returncode == 0, output
    report = json.loads(output.splitlines()[-1])
    assert set(report["statuses"].values()) == {"done"}, output
    assert "COMPLETED" in cluster.command("squeue", "-h", "-t", "all", "-j", urgent, "-o", "%T")
    assert sorted(faults.hit.values()) == sorted(
        ["time limit", "cancelled from outside", "requeued from outside", "node gone", "preempted"]
    )
    assert sweep.losses() == undisturbed
    for run_id in sweep.run_ids:
        assert_one_accepted(sweep.results.run(run_id))
        assert_little_lost(sweep.results.run(run_id))
    for run_id in faults.hit:
        assert len(sweep.results.run(run_id).attempts()) > 1, faults.hit[run_id]
    again = launch()
    output, _ = again.communicate(timeout=60)
    assert json.loads(output.splitlines()[-1])["n_started"] == 0


def assert_one_accepted(run: Any) -> None:
    """At most one attempt made a whole record, and it is the one that counts."""
    records = [attempt for attempt in run.attempts() if attempt.read_record() is not None]
    assert [attempt.token for attempt in records] == [run.accepted().token]


def assert_little_lost(run: Any) -> None:
    """Whatever ended an attempt, what its successor had to do again took one interval at most."""
    seen: list[tuple[int, float]] = []
    for attempt in run.attempts():
        note = attempt.read_note()
        resumed = note.get("resumed_from")
        start = resumed["step"] if resumed else 0
        lost = [time_s for step, time_s in seen if step > start]
        if lost:
            kept = [time_s for step, time_s in seen if step <= start]
            begun = max(kept) if kept else min(lost)
            assert max(lost) - begun <= CHECKPOINT_INTERVAL_S + POLL_AND_SAVE_S, run.path
        if attempt.metrics_path.exists():
            lines = attempt.metrics_path.read_text().rpartition("\n")[0].splitlines()
            rows = [json.loads(line) for line in lines if line]
            seen = [(row["step"], row["time_s"]) for row in rows]

"""A sweep on the real cluster under all faults at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scalelab.launch.base import LaunchRequest
from scalelab.launch.local.pool import launch_local
from scalelab.launch.programs.process import processes_of
from scalelab.sweep.execution import ExecutionSpec
from scalelab.train.loop import POLL_INTERVAL_S
from tests.launch.local.frozen import process_state
from tests.programs.adversary import adversary_table, final_loss

N_RUNS = 12
N_AT_ONCE = 8
N_TOKENS = 1e5
PROGRAM_TOKENS = 4e4
CHECKPOINT_INTERVAL_S = 0.5


@pytest.fixture(scope="session")
def undisturbed(
    make_sweep: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, float]:
    """Return the losses of the same sweep without faults."""
    sweep = make_sweep(tmp_path_factory.mktemp("quiet"), seeds=N_RUNS, n_tokens=N_TOKENS)
    request = LaunchRequest(
        results=sweep.results,
        sweep=sweep.name,
        run_ids=sweep.run_ids,
        execution=ExecutionSpec(step="direct"),
        n_workers=2,
    )
    launch_local(request, lambda view: None)
    losses: dict[str, float] = sweep.losses()
    assert len(set(losses.values())) == N_RUNS
    assert None not in losses.values()
    return losses


@dataclass(frozen=True)
class Frozen:
    """A job stopped in the middle of its run, after a checkpoint."""

    run_id: str
    element: str
    node: str
    pids: tuple[int, ...]
    """The job's process, then those of its program."""

    def is_dead(self) -> bool:
        return process_state(self.pids[0]) in "XZ"

    def thaw(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGCONT)


class Freezer:
    """Stops every job that has a checkpoint, so that a fault never comes too late."""

    def __init__(self, cluster: Any, sweep: Any) -> None:
        self.cluster = cluster
        self.sweep = sweep
        self.found: list[Frozen] = []

    def look(self) -> int:
        """Freeze the jobs that have a checkpoint; return how many are frozen."""
        running = self.cluster.command("squeue", "-h", "-t", "running", "-r", "-o", "%i|%N|%j")
        lines = (line.split("|") for line in running.splitlines())
        nodes = {i: n for i, n, name in lines if name.startswith("scalelab.")}
        for run_id in set(self.sweep.run_ids) - {frozen.run_id for frozen in self.found}:
            run = self.sweep.results.run(run_id)
            if not run.checkpoints():
                continue
            note = run.attempts()[-1].read_note()
            element = f"{note.get('array_job_id')}_{note.get('array_task_id')}"
            if element in nodes and (pids := self._freeze(run, note["pid"])):
                self.found.append(Frozen(run_id, element, nodes[element], pids))
        return len(self.found)

    @property
    def _n_alone(self) -> int:
        """Processes of a job whose program is not running; without a program, never that many."""
        return 1 if self.sweep.program else 0

    def _freeze(self, run: Any, pid: int) -> tuple[int, ...]:
        """Stop a job's process and its program; return them, or nothing if the run has ended."""
        try:
            os.kill(pid, signal.SIGSTOP)
            while process_state(pid) not in "TXZ":
                time.sleep(0.001)
            attempt = run.attempts()[-1]
            is_midway = not attempt.read_record() and "ended" not in attempt.read_note()
            pids = (pid, *processes_of(attempt.token))
            if not is_midway or not run.checkpoints() or len(pids) == self._n_alone:
                os.kill(pid, signal.SIGCONT)
                return ()
            for own in pids[1:]:
                os.kill(own, signal.SIGSTOP)
        except ProcessLookupError:
            return ()
        return pids if process_state(pid) == "T" else ()

    @contextlib.contextmanager
    def hold(self, *held: Frozen) -> Iterator[None]:
        """Stop the processes again that SLURM's signals have woken; a run would otherwise be done
        before the time limit or the end of its grace.
        """
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(0.02):
                for pid in (pid for frozen in held for pid in frozen.pids):
                    if process_state(pid) not in "TXZ":
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGSTOP)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()

    def take(self, node: str) -> Frozen:
        """Return a frozen job of a node, each job once."""
        found = next(frozen for frozen in self.found if frozen.node == node)
        self.found.remove(found)
        return found


@pytest.fixture(params=["builtin", "program"])
def disturbed(
    request: pytest.FixtureRequest, make_sweep: Callable[..., Any], tmp_path: Path
) -> tuple[Any, dict[str, float]]:
    """Return a sweep of our trainer or of a program, and the losses that it has without faults."""
    slurm = {"partition": "low", "array_parallelism": N_AT_ONCE}
    if request.param == "builtin":
        sweep = make_sweep(tmp_path / "results", seeds=N_RUNS, n_tokens=N_TOKENS, slurm=slurm)
        losses = request.getfixturevalue("undisturbed")
        assert set(sweep.run_ids) == set(losses)
        return sweep, losses
    sweep = make_sweep(
        tmp_path / "results",
        seeds=N_RUNS,
        n_tokens=PROGRAM_TOKENS,
        slurm=slurm,
        program=adversary_table("--step-s=0.03"),
    )
    specs = {run_id: sweep.results.run(run_id).read_spec() for run_id in sweep.run_ids}
    return sweep, {
        run_id: final_loss(spec.seed, spec.n_steps, spec.lr) for run_id, spec in specs.items()
    }


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "cluster",
    [pytest.param(False, id="no-sacct"), pytest.param(True, id="sacct", marks=pytest.mark.long)],
    indirect=True,
)
def test_faults_cost_no_result(
    cluster: Any,
    disturbed: tuple[Any, dict[str, float]],
    stopping: list[subprocess.Popen[str]],
    wait_for: Callable[..., None],
) -> None:
    sweep, losses = disturbed

    def launch() -> subprocess.Popen[str]:
        launcher: subprocess.Popen[str] = sweep.start_launcher(
            checkpoint_interval_s=CHECKPOINT_INTERVAL_S
        )
        stopping.append(launcher)
        return launcher

    def state(job: str) -> str:
        words = ("squeue", "-h", "-t", "all", "-r", "-j", job, "-o", "%T")
        answer: str = cluster.command(*words)
        return answer.strip()

    def restart_count(run_id: str) -> int:
        """Return how often SLURM requeued the job of a run's last attempt."""
        return int(sweep.results.run(run_id).attempts()[-1].read_note()["restart_count"] or 0)

    launcher = launch()
    freezer = Freezer(cluster, sweep)
    wait_for(lambda: freezer.look() == N_AT_ONCE, "jobs with a checkpoint on both nodes", 600)

    limited, cancelled, requeued, left_alone = (freezer.take("n2") for _ in range(4))
    on_n1 = [freezer.take("n1") for _ in range(4)]
    with freezer.hold(limited, *on_n1):
        # A time limit is in minutes, but the end time can be set to the second.
        cluster.command("scontrol", "update", f"jobid={limited.element}", "endtime=now+5")
        cluster.command("scancel", cancelled.element)
        cluster.command("scontrol", "requeue", requeued.element)
        # A restarted controller does not know what it had not saved before it died.
        now_s = time.time()
        saved = cluster.folder / "state" / "job_state"
        wait_for(lambda: saved.stat().st_mtime > now_s, "saved state of the controller", 300)
        cluster.kill("slurmctld")
        os.kill(launcher.pid, signal.SIGKILL)
        launcher = launch()
        time.sleep(1)
        cluster.revive("slurmctld")
        # Both nodes are full: a place on n1 becomes free when another job ends.
        wrapped = ("-c1", "--mem=100", "-t1", "-o", "/dev/null", "--wrap", "true")
        urgent = cluster.command("sbatch", "--parsable", "-p", "high", "-w", "n1", *wrapped).strip()
        wait_for(lambda: state(urgent) == "COMPLETED", "urgent job", 300)
        (preempted,) = (frozen for frozen in on_n1 if frozen.is_dead())
        cluster.kill("n1")
        time.sleep(1)
        cluster.revive("n1")
        left_alone.thaw()
        wait_for(limited.is_dead, "end of the job whose time was up", 600)
    output, _ = launcher.communicate(timeout=900)

    assert launcher.returncode == 0, output
    report = json.loads(output.splitlines()[-1])
    assert set(report["statuses"].values()) == {"done"}, output
    assert sweep.losses() == losses
    for run_id in sweep.run_ids:
        assert_one_accepted(sweep.results.run(run_id))
        if sweep.program is None:
            assert_little_lost(sweep.results.run(run_id))
    n_attempts = {r: len(sweep.results.run(r).attempts()) for r in sweep.run_ids}
    for hit in (limited, cancelled, requeued, preempted, *on_n1):
        assert n_attempts[hit.run_id] > 1, output
    assert state(limited.element) == "TIMEOUT"
    assert state(cancelled.element) == "CANCELLED"
    restarts = [restart_count(hit.run_id) for hit in (requeued, preempted, *on_n1)]
    assert min(restarts) >= 1, restarts
    assert n_attempts[left_alone.run_id] == 1, output
    again = launch()
    output, _ = again.communicate(timeout=200)
    assert json.loads(output.splitlines()[-1])["n_started"] == 0
    if sweep.program is not None:
        attempts = [a for run_id in sweep.run_ids for a in sweep.results.run(run_id).attempts()]
        assert [a.token for a in attempts if processes_of(a.token)] == []
        for hit in (limited, cancelled, requeued, preempted, *on_n1):
            notes = [a.read_note() for a in sweep.results.run(hit.run_id).attempts()]
            assert any(note.get("resumed_from") for note in notes), hit


def assert_one_accepted(run: Any) -> None:
    """At most one attempt made a complete record, and it is the accepted one."""
    records = [attempt for attempt in run.attempts() if attempt.read_record() is not None]
    assert [attempt.token for attempt in records] == [run.accepted().token]


def assert_little_lost(run: Any) -> None:
    """After any end of an attempt, its successor repeats only steps after the last checkpoint
    and before the next was due; seen by rows, so that it holds on a machine of any speed.
    """
    earlier: list[dict[str, Any]] = []
    saved: dict[str, Any] = {}
    for attempt in run.attempts():
        note = attempt.read_note()
        if not note.get("resumed_from") and not attempt.metrics_path.exists():
            continue  # killed before training: its node died as the job began
        start = (note.get("resumed_from") or {"step": 0})["step"]
        lost = [row["time_s"] for row in earlier if row["step"] > start]
        if lost:
            assert start >= saved.get("step", 0), run.path
            due_s = saved.get("time_s", earlier[0]["time_s"])
            due_s += saved.get("interval_s", CHECKPOINT_INTERVAL_S) + POLL_INTERVAL_S
            # The next row is the step at which the checkpoint is saved.
            assert sum(time_s > due_s for time_s in lost) <= 1, run.path
        if attempt.metrics_path.exists():
            lines = attempt.metrics_path.read_text().rpartition("\n")[0].splitlines()
            earlier = [json.loads(line) for line in lines if line]
            saved = note.get("checkpoint") or {}

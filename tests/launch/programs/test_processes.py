"""No process is left behind, whichever process of scalelab is killed."""

import dataclasses
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from scalelab.errors import RunsFailedError
from scalelab.launch.base import LaunchRequest
from scalelab.launch.local.pool import launch_local
from scalelab.launch.programs.process import SUPERVISOR, processes_of
from scalelab.records.sweep_dir import Results
from tests.launch.programs.conftest import is_alive

pytestmark = pytest.mark.slow

FAMILY = """
child = "import os,time,signal\\nsignal.signal(15, signal.SIG_IGN)\\nos.fork() or os.setsid()\\n"
child += "time.sleep(250)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
signal.signal(15, signal.SIG_IGN)
train(1, 3)
time.sleep(250)
"""


def _until(condition, timeout_s=120.0):
    ends_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < ends_s, "nothing happened in time"
        time.sleep(0.02)
    return found


def _family(run) -> list[int]:
    """Return the processes of `FAMILY`, once it has shown its rows."""
    attempts = run.attempts()
    if not attempts or attempts[-1].last_metrics() is None:
        return []
    found = processes_of(attempts[-1].token)
    return found if len(found) == 3 else []


def _train_elsewhere(trained) -> subprocess.Popen:
    """Train the run in a process of its own."""
    text = f"""
    from pathlib import Path
    from scalelab.launch.programs.run import run_program
    from scalelab.sweep.execution import execution_from_mapping
    execution = execution_from_mapping({_mapping(trained.execution)})
    print(run_program(Path({str(trained.run.path)!r}), execution))
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)], start_new_session=True)


def _mapping(execution) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(execution)))


def test_a_killed_worker_leaves_no_process_and_the_next_attempt_has_the_result(program):
    trained = program(FAMILY)
    worker = _train_elsewhere(trained)
    family = _until(lambda: _family(trained.run))
    worker.kill()
    worker.wait()
    _until(lambda: not any(map(is_alive, family)))
    trained = program("train(1, 20)\nfinish()")
    assert trained.train() == "done"
    trained.record()
    assert [end.get("status") for end in trained.ends()] == [None, "done"]


def test_a_killed_supervisor_leaves_no_process(program):
    trained = program(FAMILY)
    worker = _train_elsewhere(trained)
    family = _until(lambda: _family(trained.run))
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    worker.wait(100)
    _until(lambda: not any(map(is_alive, family)))
    assert trained.end()["kind"] == "infrastructure"
    assert "supervisor was killed" in trained.end()["reason"]


@pytest.mark.parametrize(("order", "code"), [("kill", -9), ("signal 15", -15)])
def test_an_order_that_arrives_while_the_supervisor_starts_is_obeyed(tmp_path, order, code):
    first = {"argv": ["sleep", "200"], "env": dict(os.environ), "cwd": str(tmp_path)}
    started = subprocess.Popen(
        [sys.executable, "-I", "-S", str(SUPERVISOR)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    first |= {"linger_s": 1.0, "ignored": []}
    # Both in one piece, as where the supervisor is slow to start; nothing follows.
    started.stdin.write(f"{json.dumps(first)}\n{order}\n".encode())
    try:
        assert started.wait(100) == 0
        reports = [json.loads(line) for line in started.stdout]
    finally:
        started.stdin.close()
        started.stdout.close()
        started.wait()
    assert reports[1] == {"code": code}


def test_in_place_waits_for_the_end_of_the_earlier_processes(program):
    trained = program(FAMILY, in_place=True)
    worker = _train_elsewhere(trained)
    family = _until(lambda: _family(trained.run))
    # The worker is alive and is only fenced by the next claim.
    os.kill(worker.pid, signal.SIGSTOP)
    text = f"print([p for p in {family} if os.path.exists(f'/proc/{{p}}')], flush=True)\n"
    text += "train(1, 20)\nfinish()"
    trained = program(text, in_place=True)
    try:
        assert trained.train() == "done"
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    assert (trained.run.attempts()[-1].path / "output.txt").read_text() == "[]\n"


def test_in_place_does_not_start_without_proof_that_another_host_is_done(program, monkeypatch):
    monkeypatch.setattr("scalelab.launch.programs.process.PROOF_S", 0.1)
    trained = program("train(1, 20)\nfinish()", in_place=True)
    earlier = trained.run.claim()
    earlier.write_note({"host": "elsewhere", "command": ["x"], "pid": 1, "pid_start": 1})
    assert trained.train() == "preempted"
    assert trained.end()["kind"] == "infrastructure"
    do = trained.end()["reason"].partition("type: ")[2]
    subprocess.run(shlex.split(do), check=True)
    assert trained.train() == "done"


def _launch(results: Path, run_ids, execution) -> None:
    request = LaunchRequest(
        results=Results(results), sweep="tiny", run_ids=tuple(run_ids), execution=execution,
        n_workers=2,
    )  # fmt: skip
    launch_local(request, lambda view: None)


def _sweep_of(trained) -> Path:
    results = trained.run.path.parents[1]
    (results / "sweeps" / "tiny").mkdir(parents=True, exist_ok=True)
    return results


def test_a_killed_launcher_leaves_no_process(program):
    trained = program(FAMILY)
    results = _sweep_of(trained)
    launcher = multiprocessing.get_context("spawn").Process(
        target=_launch, args=(results, [trained.run.run_id], trained.execution)
    )
    launcher.start()
    family = _until(lambda: _family(trained.run))
    launcher.kill()
    launcher.join()
    _until(lambda: not any(map(is_alive, family)))
    _until(lambda: "ended" in trained.run.attempts()[-1].read_note())
    assert trained.end()["reason"] == "the launcher is gone"


def test_the_local_pool_trains_the_runs_of_a_program(program):
    trained = program("train(1, 20)\nfinish()")
    results = _sweep_of(trained)
    request = LaunchRequest(
        results=Results(results), sweep="tiny", run_ids=(trained.run.run_id,),
        execution=trained.execution, n_workers=1,
    )  # fmt: skip
    report = launch_local(request, lambda view: None)
    assert report.statuses == {trained.run.run_id: "done"}
    assert trained.run.attempts()[0].read_note()["sweep"] == "tiny"
    assert "torch" not in trained.run.attempts()[0].read_note()["versions"]


def test_two_wrong_commands_stop_the_sweep(program):
    runs = [program("sys.exit('no such option --x')", spec={"version": str(i)}) for i in range(6)]
    results = _sweep_of(runs[0])
    with pytest.raises(RunsFailedError, match="no such option --x"):
        _launch(results, [trained.run.run_id for trained in runs], runs[0].execution)
    assert sum(len(trained.run.attempts()) for trained in runs) <= 4

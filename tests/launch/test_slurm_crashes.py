"""The launcher SIGKILLed at every step of a submission, SLURM's commands replayed.

The replayed commands answer in the words of SLURM 22.05 and keep a queue in a folder. "The cluster"
then runs every job that sbatch took, and a run that two jobs work on has two attempts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalelab.launch import intents as intents_module
from scalelab.launch import queue as queue_module
from scalelab.launch import submissions as submissions_module
from scalelab.launch.base import LaunchReport, LaunchRequest
from scalelab.launch.intents import read_pack, settle
from scalelab.launch.slurm import SlurmOptions, launch_slurm
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results
from scalelab.records.types import RunRecord
from scalelab.sweep.plan import DataFacts, make_plan
from scalelab.sweep.run_spec import ExecutionSpec
from scalelab.sweep.spec import SlurmTable, sweep_from_mapping

SBATCH = """#!/bin/sh
cd "$REPLAY" || exit 1
echo "sbatch $*" >> calls
n=1; while ! mkdir "jobs/$n" 2>/dev/null; do n=$((n + 1)); done
sed -n 's/^#SBATCH --job-name=//p' "$1" > "jobs/$n/name"
sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1" > "jobs/$n/last"
if [ -e lose_answer ]; then
  rm lose_answer
  echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2
  exit 1
fi
echo "Submitted batch job $n"
"""
SQUEUE = """#!/bin/sh
cd "$REPLAY" || exit 1
echo "squeue $*" >> calls
[ -e controller_is_down ] && { echo 'squeue: error: Unable to contact controller' >&2; exit 1; }
for job in jobs/*; do
  [ -s "$job/last" ] || continue
  state=PENDING; [ -e "$job/state" ] && state=$(cat "$job/state")
  i=0; while [ $i -le "$(cat "$job/last")" ]; do
    echo "${job#jobs/}|$i|$state|0:01|$(cat "$job/name")"; i=$((i + 1))
  done
done
"""
SCONTROL = """#!/bin/sh
cd "$REPLAY" || exit 1
echo "scontrol $*" >> calls
echo 'MaxArraySize            = 1001'
"""
PLAN_AND_SUBMIT_S = 20.0
LAUNCH_AGAIN_S = 2.0
"""Processor seconds for a thousand runs: what the machine does besides is not ours."""
OTHER = "#!/bin/sh\nexit 0\n"
CHANGES = ("os.rename", "os.link", "os.mkdir", "os.remove", "subprocess.Popen")


@pytest.fixture
def replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a replayed cluster whose commands are on the path; no time is waited."""
    folder = tmp_path / "replay"
    (folder / "jobs").mkdir(parents=True)
    (folder / "bin").mkdir()
    scripts = {"sbatch": SBATCH, "squeue": SQUEUE, "scontrol": SCONTROL}
    for name in ("sbatch", "squeue", "scontrol", "scancel", "srun"):
        program = folder / "bin" / name
        program.write_text(scripts.get(name, OTHER))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("REPLAY", str(folder))
    # A killed process loses nothing that it wrote; only a power cut would.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(queue_module, "QUEUE_INTERVAL_S", 0.01)
    monkeypatch.setattr(submissions_module, "SUBMISSION_GRACE_S", 0.1)
    return folder


def make_runs(folder: Path, n_runs: int, *, name: str = "crash") -> tuple[Results, tuple[str, ...]]:
    sweep = sweep_from_mapping(
        {
            "kind": "grid",
            "name": name,
            "n_params": "20K",
            "n_tokens": 1e5,
            "train": {"seq_len": 32, "batch_seqs": 4, "lr": 0.01, "seeds": tuple(range(n_runs))},
        },
        source="the test",
    )
    facts = DataFacts(
        fingerprint="f" * 12,
        eval_fingerprint="e" * 12,
        tokenizer="bytes",
        vocab_size=256,
        n_train_tokens=10**6,
        n_eval_tokens=4096,
    )
    results = Results(folder)
    saved = results.save_plan(
        make_plan(sweep, facts, precision="fp32"), sweep.science(), extend=False
    )
    return results, saved.run_ids


def launch(
    results: Results,
    run_ids: tuple[str, ...],
    *,
    name: str = "crash",
    detach: bool = True,
    **table: Any,
) -> LaunchReport:
    request = LaunchRequest(
        results=results, sweep=name, run_ids=run_ids, execution=ExecutionSpec(), n_workers=1
    )
    options = SlurmOptions(
        table=SlurmTable(**{"gpus_per_run": 0, "target_job_minutes": 0, **table}),
        seconds=dict.fromkeys(run_ids, 30.0),
        usd_per_gpu_hour=2.0,
        is_detached=detach,
    )
    return launch_slurm(request, options, lambda view: None)


def in_child(work: Callable[[], object]) -> int:
    """Do something in a forked process; return how it ended (negative: the signal)."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dying_at(step: int | str, results: Path, work: Callable[[], object]) -> Callable[[], object]:
    """Return work whose process kills itself at a step: its n-th change to the results folder or
    command started, or so many seconds into sbatch.
    """

    def run() -> object:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            is_write = (
                event == "open"
                and str(results) in str(arguments[0])
                and arguments[1] not in ("r", "rb", None)
            )
            if not is_write and event not in CHANGES:
                return
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            is_sbatch = event == "subprocess.Popen" and "sbatch" in str(arguments[1])
            if isinstance(step, str) and is_sbatch:
                delay = float(step.partition("+")[2])
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

        sys.addaudithook(hook)
        return work()

    return run


def let_cluster_run(replay: Path, results: Results, *, name: str = "crash") -> None:
    """Do what the replayed cluster's jobs would do: each of them, all of its elements."""
    sweep = results.sweep(name)
    for job in sorted((replay / "jobs").iterdir(), key=lambda path: int(path.name)):
        intent = (job / "name").read_text().strip().removeprefix("scalelab.")
        started = f"started {job.name}"
        if settle(sweep / "intents" / intent, started) == started:
            for index in range(int((job / "last").read_text()) + 1):
                for run_id in read_pack(sweep, intent, index).run_ids:
                    finish(results.run(run_id))
        (job / "state").write_text("COMPLETED")


def finish(run: RunDir) -> None:
    attempt = run.claim()
    attempt.write_record(
        RunRecord(
            run_id=run.run_id,
            attempt=attempt.number,
            token=attempt.token,
            status="done",
            loss_nats=1.0 + int(run.run_id, 16) % 997 / 1000,
            loss_se_nats=None,
            n_params={"chinchilla": 1000},
            flops={"exact": 1e9},
            n_tokens=1,
            unique_tokens=1,
            n_steps=1,
            wall_s=1.0,
        )
    )
    attempt.accept()


def assert_each_done_once(results: Results, run_ids: tuple[str, ...]) -> None:
    for run_id in run_ids:
        run = results.run(run_id)
        assert run.status() == "done", run_id
        assert len(run.attempts()) == 1, f"{run_id} was worked on twice"


def count_steps(replay: Path, tmp_path: Path) -> int:
    """Return how many steps an undisturbed launch takes."""
    results, run_ids = make_runs(tmp_path / "counted", 3)
    counter = tmp_path / "count"

    def work() -> None:
        n = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal n
            is_write = (
                event == "open"
                and str(results.path) in str(arguments[0])
                and arguments[1] not in ("r", "rb", None)
            )
            n += is_write or event in CHANGES

        sys.addaudithook(hook)
        launch(results, run_ids)
        counter.write_text(str(n))

    assert in_child(work) == 0
    for job in (replay / "jobs").iterdir():
        subprocess.run(["rm", "-r", str(job)], check=True)
    return int(counter.read_text())


def test_a_launcher_killed_at_any_step_loses_and_doubles_nothing(
    replay: Path, tmp_path: Path
) -> None:
    n_steps = count_steps(replay, tmp_path)
    assert n_steps >= 15
    steps: list[int | str] = [*range(1, n_steps + 1)]
    delays = [f"sbatch+{0.00015 * i:.5f}" for i in range(100)]
    trials = [*steps, *delays][: max(100, n_steps + 60)]
    n_killed = 0
    for number, step in enumerate(trials):
        for job in (replay / "jobs").iterdir():
            subprocess.run(["rm", "-r", str(job)], check=True)
        results, run_ids = make_runs(tmp_path / f"trial{number}", 3)
        launch_once = lambda r=results, ids=run_ids: launch(r, ids)  # noqa: E731
        code = in_child(dying_at(step, results.path, launch_once))
        n_killed += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL)
        assert in_child(launch_once) == 0
        let_cluster_run(replay, results)
        # Attached, it waits for what is under way and finds everything done.
        report = launch(results, run_ids, detach=False)
        assert report.n_started == 0, step
        assert set(report.statuses.values()) == {"done"}
        assert_each_done_once(results, run_ids)
    assert len(trials) >= 100
    assert n_killed >= 100 - 20


def test_a_lost_answer_of_sbatch_is_found_by_name(replay: Path, tmp_path: Path) -> None:
    (replay / "lose_answer").touch()
    results, run_ids = make_runs(tmp_path / "results", 5)
    launch(results, run_ids)
    let_cluster_run(replay, results)
    launch(results, run_ids, detach=False)
    assert_each_done_once(results, run_ids)
    assert (replay / "calls").read_text().count("sbatch ") == 1


def test_a_job_that_turns_up_after_its_submission_was_given_up_does_nothing(
    replay: Path, tmp_path: Path
) -> None:
    results, run_ids = make_runs(tmp_path / "results", 2)
    step = next(n for n in range(1, 60) if _dies_before_sbatch(n, results, run_ids))
    assert step
    launch(results, run_ids)
    (late,) = (i for i in intents_module.read_intents(results.sweep("crash")) if i.outcomes())
    job = replay / "jobs" / "77"
    job.mkdir()
    (job / "name").write_text(late.job_name)
    (job / "last").write_text(str(len(late.packs) - 1))
    let_cluster_run(replay, results)
    assert_each_done_once(results, run_ids)


def _dies_before_sbatch(step: int, results: Results, run_ids: tuple[str, ...]) -> bool:
    """Kill a launch at a step; say whether an intent without a job is what it leaves."""
    code = in_child(dying_at(step, results.path, lambda: launch(results, run_ids)))
    assert code == -signal.SIGKILL
    found = intents_module.read_intents(results.sweep("crash"))
    return bool(found) and not any(Path(os.environ["REPLAY"], "jobs").iterdir())


def test_a_silent_controller_changes_nothing(
    replay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalelab.launch.retries.GONE_GRACE_S", 0.1)
    results, run_ids = make_runs(tmp_path / "results", 3)
    launch(results, run_ids)
    (replay / "controller_is_down").touch()
    threading.Timer(0.7, (replay / "controller_is_down").unlink).start()
    threading.Timer(1.0, let_cluster_run, (replay, results)).start()
    report = launch(results, run_ids, detach=False)
    assert report.n_started == 0
    assert_each_done_once(results, run_ids)


def test_two_sweeps_share_runs(replay: Path, tmp_path: Path) -> None:
    results, few = make_runs(tmp_path / "results", 4)
    _, many = make_runs(tmp_path / "results", 7, name="more")
    assert set(few) < set(many)
    launch(results, few)
    report = launch(results, many, name="more")
    assert report.n_started == 3
    submitted = [
        run_id
        for name in ("crash", "more")
        for intent in intents_module.read_intents(results.sweep(name))
        for pack in intent.packs
        for run_id in pack.run_ids
    ]
    assert sorted(submitted) == sorted(many)


def test_caps_refuse_before_anything_is_submitted(replay: Path, tmp_path: Path) -> None:
    from scalelab.errors import UsageError

    results, run_ids = make_runs(tmp_path / "results", 6)
    too_much = [{"max_gpu_hours": 0.049}, {"max_usd": 0.099}]
    for cap in too_much:
        with pytest.raises(UsageError, match="at most"):
            launch(results, run_ids, gpus_per_run=1, **cap)
        assert "sbatch" not in (replay / "calls").read_text()
        assert not intents_module.read_intents(results.sweep("crash"))
    launch(results, run_ids, gpus_per_run=1, max_gpu_hours=0.051, max_usd=0.101)
    assert "sbatch" in (replay / "calls").read_text()


def test_refused_options_are_said_in_sbatchs_words(replay: Path, tmp_path: Path) -> None:
    from scalelab.errors import UsageError

    (replay / "bin" / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: nowhere' >&2; exit 1\n"
    )
    results, run_ids = make_runs(tmp_path / "results", 2)
    with pytest.raises(UsageError, match="invalid partition specified: nowhere"):
        launch(results, run_ids, partition="nowhere")


def test_a_thousand_runs(replay: Path, tmp_path: Path) -> None:
    started_s = time.process_time()
    results, run_ids = make_runs(tmp_path / "results", 1000)
    launch(results, run_ids)
    assert time.process_time() - started_s < PLAN_AND_SUBMIT_S
    calls = (replay / "calls").read_text()
    assert calls.count("sbatch ") == 1
    for run_id in run_ids:
        finish(results.run(run_id))
    (replay / "calls").unlink()
    started_s = time.process_time()
    report = launch(results, run_ids, detach=False)
    assert time.process_time() - started_s < LAUNCH_AGAIN_S
    assert report.n_started == 0
    assert not (replay / "calls").exists()


def test_the_cap_on_running_jobs_holds_over_arrays(replay: Path, tmp_path: Path) -> None:
    script = (replay / "bin" / "scontrol").read_text().replace("1001", "5")
    (replay / "bin" / "scontrol").write_text(script)
    results, run_ids = make_runs(tmp_path / "results", 13)
    launch(results, run_ids, array_parallelism=7)
    found = intents_module.read_intents(results.sweep("crash"))
    assert sorted(len(intent.packs) for intent in found) == [3, 5, 5]
    assert sum(intent.throttle for intent in found) == 7
    for intent in found:
        script_text = (intent.path / "submission.sh").read_text()
        assert f"%{intent.throttle}\n" in script_text
        assert json.loads((intent.path / "job.json").read_text())["throttle"] == intent.throttle

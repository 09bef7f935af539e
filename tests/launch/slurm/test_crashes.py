"""The launcher SIGKILLed at every step of a submission, SLURM's commands replayed.

"The cluster" runs every job that sbatch took, and a run that two jobs work on has two attempts.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from pathlib import Path

import pytest

from scalelab.launch.base import LaunchView
from scalelab.launch.slurm import intents as intents_module
from scalelab.launch.slurm import queue as queue_module
from scalelab.launch.slurm import submissions as submissions_module
from scalelab.records.sweep_dir import Results
from tests.launch.slurm.replayed import (
    SBATCH_STEPS,
    SBATCH_THEN,
    Crash,
    counting_steps,
    crashing,
    empty,
    finish,
    in_child,
    install,
    launch,
    let_cluster_run,
    make_runs,
    side_by_side,
    wait_for_orphans,
)

PLAN_AND_SUBMIT_S = 20.0
LAUNCH_AGAIN_S = 2.0
"""Processor seconds for a thousand runs; other load on the machine does not count."""
PAIR_STRIDE = 8


@pytest.fixture
def replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a replayed cluster whose commands are on the PATH; waits are zero."""
    folder = tmp_path / "replay"
    install(folder)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("REPLAY", str(folder))
    # A killed process loses nothing that it wrote, so fsync is not needed here.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(queue_module, "QUEUE_INTERVAL_S", 0.01)
    monkeypatch.setattr(submissions_module, "SUBMISSION_GRACE_S", 0.1)
    return folder


def assert_each_done_once(results: Results, run_ids: tuple[str, ...], what: object = "") -> None:
    for run_id in run_ids:
        run = results.run(run_id)
        assert run.status() == "done", (run_id, what)
        assert len(run.attempts()) == 1, f"{run_id} was worked on twice: {what}"


def count_steps(replay: Path, tmp_path: Path) -> int:
    """Return the number of steps of a launch without faults."""
    results, run_ids = make_runs(tmp_path / "counted", 3)
    counter = tmp_path / "count"

    def work() -> None:
        n_steps = counting_steps(results.path, lambda: launch(results, run_ids), lambda count: None)
        counter.write_text(str(n_steps))

    assert in_child(work) == 0
    return int(counter.read_text())


def crashes(n_steps: int) -> list[tuple[Crash, ...]]:
    """Return the crashes of the launchers in each trial: the first launcher and its successor.

    Every step alone, every step of sbatch with all that sbatch may do then, and pairs of them.
    """
    steps = [Crash(step) for step in range(1, n_steps + 1)]
    around = [Crash(step, then) for step in SBATCH_STEPS for then in SBATCH_THEN]
    pairs = [
        (first, second)
        for i, first in enumerate([*steps, *around])
        for second in steps[i % PAIR_STRIDE :: PAIR_STRIDE]
    ]
    return [*((crash,) for crash in steps + around), *pairs]


@pytest.mark.slow
def test_a_launcher_killed_at_any_step_loses_and_doubles_nothing(
    replay: Path, tmp_path: Path
) -> None:
    n_steps = count_steps(replay, tmp_path)
    assert n_steps >= 15
    trials = crashes(n_steps)
    assert len(trials) >= 100
    n_parts = min(len(os.sched_getaffinity(0)), 4)

    def part(start: int, replay: Path) -> None:
        for number in range(start, len(trials), n_parts):
            assert_survived(trials[number], replay, tmp_path / f"trial{number}")

    parts = [functools.partial(part, start) for start in range(n_parts)]
    assert side_by_side(tmp_path, parts) == []
    assert len(list(tmp_path.glob("trial*"))) == len(trials)


def assert_survived(trial: tuple[Crash, ...], replay: Path, folder: Path) -> None:
    """Kill one launcher after the other, and check that the last one finishes every run."""
    first, *then = trial
    what = " then ".join(map(str, trial))
    empty(replay)
    results, run_ids = make_runs(folder, 3)

    def launch_once() -> object:
        return launch(results, run_ids)

    assert crashing(first, replay, results.path, launch_once) == -signal.SIGKILL, what
    for second in then:
        # It may end before it reaches the step at which it would die.
        assert crashing(second, replay, results.path, launch_once) in (0, -signal.SIGKILL)
    assert in_child(launch_once) == 0, what
    wait_for_orphans(replay)
    let_cluster_run(replay, results)
    # An attached launcher waits for the running jobs and finds every run done.
    report = launch(results, run_ids, detach=False)
    assert report.n_started == 0, what
    assert set(report.statuses.values()) == {"done"}, what
    assert_each_done_once(results, run_ids, what)


def test_a_lost_answer_of_sbatch_is_found_by_name(replay: Path, tmp_path: Path) -> None:
    (replay / "lose_answer").touch()
    results, run_ids = make_runs(tmp_path / "results", 5)
    launch(results, run_ids)
    let_cluster_run(replay, results)
    launch(results, run_ids, detach=False)
    assert_each_done_once(results, run_ids)
    assert (replay / "calls").read_text().count("sbatch ") == 1


def test_a_job_that_appears_after_its_submission_was_abandoned_does_nothing(
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
    (job / "last").write_text(str(len(late.job_groups) - 1))
    let_cluster_run(replay, results)
    assert_each_done_once(results, run_ids)


def _dies_before_sbatch(step: int, results: Results, run_ids: tuple[str, ...]) -> bool:
    """Kill a launch at a step; return whether it leaves an intent without a job."""
    replay = Path(os.environ["REPLAY"])
    code = crashing(Crash(step), replay, results.path, lambda: launch(results, run_ids))
    assert code == -signal.SIGKILL
    found = intents_module.read_intents(results.sweep("crash"))
    return bool(found) and not any((replay / "jobs").iterdir())


def test_a_silent_controller_changes_nothing(
    replay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalelab.launch.slurm.retries.GONE_GRACE_S", 0.1)
    results, run_ids = make_runs(tmp_path / "results", 3)
    launch(results, run_ids)
    (replay / "controller_is_down").touch()
    looks = 0

    def watch(view: LaunchView) -> None:
        nonlocal looks
        looks += 1
        time.sleep(0.01)
        if looks == 30:
            (replay / "controller_is_down").unlink()
        if looks == 40:
            let_cluster_run(replay, results)

    report = launch(results, run_ids, detach=False, watch=watch)
    assert looks >= 40
    assert report.n_started == 0
    assert_each_done_once(results, run_ids)


def test_a_job_that_slurm_holds_forever_is_cancelled_and_submitted_again(
    replay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalelab.launch.slurm.retries.GONE_GRACE_S", 0.05)
    results, run_ids = make_runs(tmp_path / "results", 1)
    launch(results, run_ids)
    (replay / "jobs" / "1" / "reason").write_text("launch failed requeued held\n")
    notes = []

    def watch(view: LaunchView) -> None:
        notes.append(view.note)
        if "submitted" in view.note:
            let_cluster_run(replay, results)

    report = launch(results, run_ids, detach=False, watch=watch)
    assert report.statuses == dict.fromkeys(run_ids, "done")
    assert any("was held by SLURM" in note for note in notes)
    calls = (replay / "calls").read_text()
    assert calls.count("sbatch ") == 2
    assert "scancel 1_0" in calls
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
        for group in intent.job_groups
        for run_id in group.run_ids
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


def test_refused_options_show_the_message_of_sbatch(replay: Path, tmp_path: Path) -> None:
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
    assert sorted(len(intent.job_groups) for intent in found) == [3, 5, 5]
    assert sum(intent.throttle for intent in found) == 7
    for intent in found:
        script_text = (intent.path / "submission.sh").read_text()
        assert f"%{intent.throttle}\n" in script_text
        assert json.loads((intent.path / "job.json").read_text())["throttle"] == intent.throttle

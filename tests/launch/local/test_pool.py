"""The local launcher under faults: one accepted record per run, with the same bits."""

import json
import os
import signal
import time

import pytest

from scalelab.api import sweeps as api
from scalelab.launch.local.pool import QUALIFYING, TICK_S
from scalelab.sweep.spec import read_sweep_file
from tests.launch.local.frozen import (
    frozen_worker,
    has_pending,
    process_state,
    wait_for,
    working_pids,
)

N_RUNS = 6
TIMEOUT_S = 600


def alive(pid: int) -> bool:
    return process_state(pid) not in "ZX"


def end_reasons(results) -> list[str]:
    """Return the reasons that attempts recorded for their end."""
    runs = [results.run(path.name) for path in (results.path / "runs").glob("*")]
    notes = [run.attempts()[-1].read_note() for run in runs if run.attempts()]
    return [note["ended"].get("reason", "") for note in notes if "ended" in note]


def n_done(results) -> int:
    return len(list((results.path / "runs").glob("*/accepted")))


def finish(process) -> dict:
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    return json.loads(out)


def test_a_killed_worker_costs_its_run_one_attempt_and_nothing_else(
    start, sweep_file, results, undisturbed, losses_of
):
    process = start("sweep", "run", str(sweep_file), "--yes", "--json")
    with frozen_worker(results) as pid:
        os.kill(pid, signal.SIGKILL)
    answer = finish(process)
    assert answer["counts"] == {"done": N_RUNS}
    # Runs of one size may be batched in one worker if there are few workers.
    runs = [results.run(run.name).attempts() for run in (results.path / "runs").glob("*")]
    lost = [attempts for attempts in runs if attempts[0].read_note().get("pid") == pid]
    assert [len(attempts) for attempts in lost] == [2] * len(lost)
    assert answer["n_started"] == N_RUNS + len(lost)
    assert losses_of(results) == undisturbed


@pytest.mark.slow
def test_a_killed_launcher_takes_its_workers_along_and_the_same_command_finishes(
    start, sweep_file, results, undisturbed, losses_of
):
    process = start("sweep", "run", str(sweep_file), "--yes", "--json")
    with frozen_worker(results) as frozen:
        wait_for(lambda: n_done(results) >= 1, "a run done beside the frozen one")
        pids = {frozen, *working_pids(results)}
        process.kill()
        process.wait()
    wait_for(lambda: not any(alive(pid) for pid in pids), "the workers to end")
    assert "the launcher is gone" in end_reasons(results)
    done_before = n_done(results)
    assert done_before < N_RUNS
    answer = finish(start("sweep", "run", str(sweep_file), "--yes", "--json"))
    assert answer["n_started"] == N_RUNS - done_before
    assert losses_of(results) == undisturbed


def test_ctrl_c_leaves_a_state_that_resume_finishes(
    start, sweep_file, results, undisturbed, losses_of
):
    process = start("sweep", "run", str(sweep_file), "--yes")
    with frozen_worker(results) as frozen:
        pids = {frozen, *working_pids(results)}
        os.killpg(process.pid, signal.SIGINT)
        wait_for(lambda: has_pending(frozen, signal.SIGTERM), "the launcher's word to its worker")
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, err
    assert "scalelab resume tiny" in out
    assert not any(alive(pid) for pid in pids)
    notes = [results.run(run.name).attempts() for run in (results.path / "runs").glob("*")]
    assert "preempted" in [a[-1].read_note()["ended"]["status"] for a in notes if a]
    assert finish(start("resume", "tiny", "--json"))["counts"] == {"done": N_RUNS}
    assert losses_of(results) == undisturbed


@pytest.mark.slow
def test_a_run_whose_workers_always_die_fails_and_the_others_finish(
    start, sweep_file, results, undisturbed, losses_of
):
    process = start("sweep", "run", str(sweep_file), "--yes", "--json")
    victim = wait_for(
        lambda: next(
            (
                run.name
                for run in (results.path / "runs").glob("*")
                if results.run(run.name).attempts()
            ),
            None,
        ),
        "a first attempt",
    )
    folder = results.run(victim)
    killed: set[int] = set()
    while process.poll() is None:
        attempts = folder.attempts()
        pid = attempts[-1].read_note().get("pid") if attempts else None
        if pid and pid not in killed and alive(pid):
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.005)
    out, _ = process.communicate()
    assert process.returncode == 5
    answer = json.loads(out)
    assert answer["counts"] == {"done": N_RUNS - 1, "failed": 1}
    assert "lost 3 times" in folder.attempts()[-1].read_note()["ended"]["reason"]
    assert len(killed) == 3
    # Only a user starts it again.
    assert finish_with(start("resume", "tiny", "--json"), 5)["n_started"] == 0
    assert finish(start("retry", "tiny", "--json"))["counts"] == {"done": N_RUNS}
    assert losses_of(results) == undisturbed


@pytest.mark.slow
def test_workers_that_never_begin_end_the_launch_with_the_reason(
    start, sweep_file, results, tmp_path, cache_home, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    proposal = api.propose(read_sweep_file(sweep_file), results=results.path)
    saved = results.save_plan(proposal.plan, proposal.sweep.science(), extend=False)
    broken = tmp_path / "broken" / "torch.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('libcudart.so: cannot open shared object file')\n")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(broken.parent))
        process = start("resume", "tiny", "--workers", "2", "--json")
        answer = finish_with(process, 5)["error"]
    assert "6 workers" in answer["given"]
    assert "libcudart.so: cannot open" in answer["given"]
    assert "scalelab resume tiny" in answer["do"]
    assert {results.run(run_id).status() for run_id in saved.run_ids} == {"planned"}
    assert finish(start("resume", "tiny", "--json"))["counts"] == {"done": N_RUNS}


def finish_with(process, code: int) -> dict:
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, err
    return json.loads(out)


def test_a_finished_sweep_is_not_trained_again_and_an_extended_one_only_where_new(
    start, sweep_file, results, undisturbed
):
    finish(start("sweep", "run", str(sweep_file), "--yes", "--json"))
    again = finish(start("sweep", "run", str(sweep_file), "--yes", "--json"))
    assert again["n_started"] == 0
    sweep_file.write_text(sweep_file.read_text().replace("3e9,8e9", "3e9,8e9,1.2e10"))
    refused = start("sweep", "run", str(sweep_file), "--yes")
    _, err = refused.communicate(timeout=TIMEOUT_S)
    assert refused.returncode == 2
    assert "--extend" in err
    extended = finish(start("sweep", "run", str(sweep_file), "--yes", "--json", "--extend"))
    assert extended["n_started"] == 3
    assert len(results.load_plan("tiny").run_ids) == N_RUNS + 3


@pytest.mark.slow
def test_a_second_launcher_is_refused_and_the_first_tells_of_a_qualification(
    start, sweep_file, results
):
    first = start("sweep", "run", str(sweep_file), "--yes", "--json")
    with frozen_worker(results):
        second = start("sweep", "run", str(sweep_file), "--yes")
        _, err = second.communicate(timeout=TIMEOUT_S)
        # The lock of a worker that measures, perhaps of another sweep in this results folder.
        lock = results.qualification / "gpu.lock" / "1"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.write_text("host 17 4")
        time.sleep(4 * TICK_S)
    assert second.returncode == 2
    assert f"process {first.pid}" in err
    out, err = first.communicate(timeout=TIMEOUT_S)
    assert json.loads(out)["counts"] == {"done": N_RUNS}
    assert err.count(QUALIFYING) == 1, "said once, not at each look"


@pytest.mark.slow
def test_a_second_sweep_that_shares_runs_waits_for_them_instead_of_doubling_them(
    start, sweep_file, results, undisturbed, losses_of
):
    first = start("sweep", "run", str(sweep_file), "--yes", "--json")
    with frozen_worker(results):
        second = start("sweep", "run", str(sweep_file), "--yes", "--json", "--name", "twin")
        wait_for((results.sweep("twin") / "launcher.lock").exists, "the second launcher")
    one, two = finish(first), finish(second)
    assert one["counts"] == two["counts"] == {"done": N_RUNS}
    assert one["n_started"] + two["n_started"] == N_RUNS
    assert all(len(results.run(run_id).attempts()) == 1 for run_id in undisturbed)
    assert losses_of(results) == undisturbed


@pytest.mark.slow
def test_a_spec_edited_by_hand_stops_the_launch_before_anything_starts(
    start, sweep_file, results, undisturbed
):
    finish(start("sweep", "run", str(sweep_file), "--yes", "--json"))
    run_id = next(iter(undisturbed))
    path = results.run(run_id).path / "spec.json"
    path.write_text(path.read_text().replace('"batch_seqs": 4', '"batch_seqs": 8'))
    process = start("resume", "tiny")
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 3
    assert run_id in err
    assert "Undo the edit" in err


@pytest.mark.parametrize("missing", ["runs", "database"])
def test_what_was_deleted_by_hand_comes_back(
    start, sweep_file, results, undisturbed, losses_of, missing
):
    import shutil

    finish(start("sweep", "run", str(sweep_file), "--yes", "--json"))
    if missing == "runs":
        shutil.rmtree(results.run(next(iter(undisturbed))).path)
    else:
        for file in results.path.glob("*.duckdb*"):
            file.unlink()
    answer = finish(start("sweep", "run", str(sweep_file), "--yes", "--json"))
    assert answer["n_started"] == (1 if missing == "runs" else 0)
    assert losses_of(results) == undisturbed
    assert (results.path / "scalelab.duckdb").exists()

"""Batched runs in one local worker: separate folders, the same bits as single runs."""

import dataclasses
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from scalelab.launch import execute
from scalelab.launch.base import LaunchRequest
from scalelab.launch.calibration import cache_path
from scalelab.launch.local.pool import launch_local
from scalelab.sweep.cost import SpeedPoint
from scalelab.sweep.execution import AUTO, ExecutionSpec
from scalelab.sweep.speeds import unmeasured_cpu_speed
from tests.launch.local.frozen import frozen_worker

EXECUTION = ExecutionSpec(step="direct", batched_runs=0)
ALL_AUTO = ExecutionSpec(step=AUTO, kernels=AUTO, attention=AUTO)


def losses(results, run_ids):
    return [results.run(run_id).accepted().read_record().loss_nats for run_id in run_ids]


def test_killing_batched_runs_loses_nothing_and_its_runs_have_the_bits_of_separate_ones(
    save, tmp_path
) -> None:
    results, saved = save(tmp_path / "batched")

    def kill_one() -> int:
        with frozen_worker(results) as pid:
            os.kill(pid, signal.SIGKILL)
        return pid

    request = LaunchRequest(
        results=results,
        sweep=saved.name,
        run_ids=saved.run_ids,
        execution=EXECUTION,
        n_workers=2,
        batched_runs=dict.fromkeys(saved.run_ids, 4),
    )
    # In a thread: on a fast machine, a run may begin and end between two looks of the launcher.
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_one)
        report = launch_local(request, lambda view: None)
        assert killed.result()
    assert report.count("done") == 8
    runs = [results.run(run_id) for run_id in saved.run_ids]
    assert sum(len(run.attempts()) for run in runs) > 8
    first = runs[0].attempts()[0].read_note()
    assert len(first["companions"]) == 4
    for run in runs:
        note = run.attempts()[-1].read_note()
        assert note["execution"]["batched_runs"] == len(note["companions"]) <= 4
        assert (run.path / "log.txt").exists()

    alone, again = save(tmp_path / "alone")
    plain = LaunchRequest(
        results=alone, sweep=again.name, run_ids=again.run_ids, execution=EXECUTION, n_workers=2
    )
    assert launch_local(plain, lambda view: None).count("done") == 8
    assert losses(alone, again.run_ids) == losses(results, saved.run_ids)


@pytest.mark.slow
def test_a_run_that_always_kills_its_worker_takes_no_companion_with_it(save, tmp_path) -> None:
    results, saved = save(tmp_path / "results")
    victim = saved.run_ids[1]
    killed: set[int] = set()

    def kill_victim(view) -> None:
        (*_, attempt) = results.run(victim).attempts() or [None]
        pid = attempt.read_note().get("pid") if attempt is not None else None
        if victim in view.running and pid not in killed | {None}:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)

    request = LaunchRequest(
        results=results,
        sweep=saved.name,
        run_ids=saved.run_ids[:4],
        execution=EXECUTION,
        n_workers=1,
        batched_runs=dict.fromkeys(saved.run_ids, 4),
    )
    report = launch_local(request, kill_victim)
    assert report.statuses == {
        run_id: "failed" if run_id == victim else "done" for run_id in request.run_ids
    }


@pytest.mark.parametrize(("gains", "size"), [(((2, 1.3), (4, 2.0)), 4), (((2, 1.05),), 1), ((), 1)])
def test_a_launch_batches_runs_where_the_calibration_of_this_machine_says_so(
    save, tmp_path, monkeypatch, gains, size
) -> None:
    results, saved = save(tmp_path / "results")
    spec = results.run(saved.run_ids[0]).read_spec()
    own = SpeedPoint(
        d_model=spec.shape.d_model,
        n_layers=spec.shape.n_layers,
        seq_len=spec.seq_len,
        batch_seqs=spec.batch_seqs,
        flops_per_s=1e9,
        eval_flops_per_s=1e9,
        batching_gains=gains,
    )
    speed = unmeasured_cpu_speed(2)
    monkeypatch.setattr(
        execute, "machine_speed", lambda *_, **__: dataclasses.replace(speed, exact=(own,))
    )
    asked: list[LaunchRequest] = []
    monkeypatch.setattr(execute, "launch_local", lambda request, watch: asked.append(request))
    execute.resume(saved, results, lambda view: None, execution=EXECUTION, n_workers=2)
    assert set(asked[0].batched_runs.values()) == {size}


@pytest.mark.slow
def test_a_calibration_times_batches_of_a_plans_small_equal_runs(
    start, text, cache_home, results, monkeypatch
) -> None:
    axes = ("--n-params", "15K", "--n-tokens", "60K", "--seeds", "0,1,2,3")
    options = ("--data", str(text), "--eval-tokens", "4096", "--workers", "2")
    tiny = ("--seq-len", "32", "--batch-seqs", "4", "--name", "timed", "--yes", "--json")
    process = start("sweep", "grid", *axes, *options, *tiny)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert json.loads(out)["counts"] == {"done": 4}
    run_ids = results.load_plan("timed").run_ids
    spec = results.run(run_ids[0]).read_spec()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    # Other tests write other shapes into the same cache file.
    own = (spec.shape.d_model, spec.shape.n_layers, spec.seq_len, spec.batch_seqs)
    (point,) = [
        point
        for point in json.loads(cache_path(ALL_AUTO, 2, "fp32").read_text())["exact"]
        if own == tuple(point[name] for name in ("d_model", "n_layers", "seq_len", "batch_seqs"))
    ]
    assert {"2"} <= set(point["batching_gains"]) <= {"2", "4", "8", "16"}
    batched = {
        results.run(run_id).attempts()[-1].read_note()["execution"]["batched_runs"]
        for run_id in run_ids
    }
    assert batched == ({2} if point["batching_gains"]["2"] >= 1.1 else {1})

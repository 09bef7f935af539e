"""Runs that are stopped, are killed or lose a checkpoint resume to the same bits."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from scalelab.corpus.dataset import Dataset
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.train import checkpoint, loop
from tests.train.outcome import curve, last_note, result

MakeRun = Callable[..., RunDir]


@pytest.mark.slow
def test_resuming_at_any_step_changes_no_bit(
    make_run: MakeRun, attempt_at: Callable[..., str]
) -> None:
    straight = make_run("straight")
    assert attempt_at(straight) == "done"
    steps = sorted(random.Random(5).sample(range(1, 30), 20))
    for stop_at in steps:
        run = make_run(f"stopped-{stop_at}")
        assert attempt_at(run, stop_at=stop_at) == "preempted"
        (kept,) = run.checkpoints()
        assert kept.step == stop_at
        assert attempt_at(run) == "done"
        assert last_note(run)["resumed_from"] == {"attempt": 1, "step": stop_at}
        assert curve(run) == curve(straight), f"stopped at {stop_at}"
        assert result(run).loss_nats == result(straight).loss_nats


def test_a_run_can_be_stopped_many_times(make_run: MakeRun, attempt_at: Callable[..., str]) -> None:
    straight, run = make_run("straight"), make_run("often")
    assert attempt_at(straight) == "done"
    for stop_at in (3, 7, 7, 20, 29):
        assert attempt_at(run, stop_at=stop_at) == "preempted"
    assert attempt_at(run) == "done"
    assert result(run).loss_nats == result(straight).loss_nats
    assert result(run).wall_s > 0
    assert curve(run) == curve(straight)
    last = [
        json.loads(line)["step"]
        for line in run.attempts()[-1].metrics_path.read_text().splitlines()
    ]
    assert last == [30]


def test_a_resumed_run_remembers_the_losses_before(
    make_run: MakeRun, attempt_at: Callable[..., str]
) -> None:
    """The spike rule uses the best loss so far, even if it was before the stop."""
    run = make_run()
    for stop_at in (9, 17):
        assert attempt_at(run, stop_at=stop_at) == "preempted"
    (_, state), *_ = checkpoint.load_newest(run)
    assert state is not None
    assert state["detector"]["n_steps"] == 17
    assert state["detector"]["first_loss"] == curve(run)[1]


@pytest.mark.slow
def test_two_threads_give_the_bits_of_one(
    make_run: MakeRun, attempt_at: Callable[..., str]
) -> None:
    shape = replace(make_run().read_spec().shape, d_model=64, d_ff=176, n_heads=4, d_head=16)
    fields = {"shape": shape, "batch_seqs": 16, "seq_len": 64, "n_steps": 12}
    one, two = make_run("one", **fields), make_run("two", **fields)
    assert attempt_at(one) == "done"
    assert attempt_at(two, n_threads=2) == "done"
    assert curve(one) == curve(two)
    assert result(one).loss_nats == result(two).loss_nats


def test_after_a_corrupt_checkpoint_the_one_before_is_used(
    make_run: MakeRun, attempt_at: Callable[..., str]
) -> None:
    straight, run = make_run("straight"), make_run("harmed")
    assert attempt_at(straight) == "done"
    assert attempt_at(run, stop_at=9) == "preempted"
    assert attempt_at(run, stop_at=17) == "preempted"
    state = run.checkpoints()[0].path / "state.pt"
    content = bytearray(state.read_bytes())
    content[700] ^= 1
    state.write_bytes(content)
    assert attempt_at(run) == "done"
    note = last_note(run)
    assert note["resumed_from"] == {"attempt": 1, "step": 9}
    assert "corrupt" in note["warnings"][0]["message"]
    assert result(run).loss_nats == result(straight).loss_nats


def test_without_a_valid_checkpoint_the_run_starts_at_step_zero(
    make_run: MakeRun, attempt_at: Callable[..., str]
) -> None:
    straight, run = make_run("straight"), make_run("harmed")
    assert attempt_at(straight) == "done"
    assert attempt_at(run, stop_at=9) == "preempted"
    (run.checkpoints()[0].path / "meta.json").write_text("{")
    assert attempt_at(run) == "done"
    assert last_note(run)["resumed_from"] is None
    assert result(run).loss_nats == result(straight).loss_nats


def test_a_full_disk_during_a_checkpoint_does_not_stop_the_run(
    make_run: MakeRun, attempt_at: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLIMIT_FSIZE allows small files and stops the checkpoint's tensors in the middle."""
    straight, run = make_run("straight"), make_run("full")
    assert attempt_at(straight) == "done"
    assert attempt_at(run, stop_at=5) == "preempted"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        assert attempt_at(run, checkpoint_interval_s=0.0, stop_at=20) == "preempted"
        assert "no checkpoint at step" in last_note(run)["warnings"][0]["message"]
        assert [c.step for c in run.checkpoints()] == [5]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(run.path.rglob(".partial*"))
    assert attempt_at(run) == "done"
    assert last_note(run)["resumed_from"]["step"] == 5
    assert result(run).loss_nats == result(straight).loss_nats


def start_worker(run: RunDir, dataset: Dataset, execution: ExecutionSpec) -> subprocess.Popen[str]:
    code = (
        "import sys; from pathlib import Path\n"
        "from scalelab.sweep.execution import ExecutionSpec\n"
        "from scalelab.train import loop, worker\n"
        "loop.POLL_INTERVAL_S = 0.0\n"
        f"execution = {execution!r}\n"
        f"paths = [Path({str(run.path)!r})]\n"
        f"print(*worker.run_batched(paths, Path({str(dataset.folder)!r}), execution))\n"
        "left_out = {'pydantic', 'duckdb', 'pandas', 'streamlit', 'torch.distributed.fsdp'}\n"
        "assert not left_out & set(sys.modules), left_out & set(sys.modules)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_checkpoints(run: RunDir, n: int, process: subprocess.Popen[str]) -> None:
    for _ in range(20_000):
        if len([c for c in run.checkpoints() if c.step > 0]) >= n:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail("the worker wrote no checkpoint")


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGUSR2])
def test_after_a_signal_the_run_saves_a_checkpoint_and_ends_as_preempted(
    make_run: MakeRun, dataset: Dataset, execution: ExecutionSpec, kind: signal.Signals
) -> None:
    run = make_run(n_steps=100_000)
    process = start_worker(run, dataset, replace(execution, checkpoint_interval_s=0.05))
    wait_for_checkpoints(run, 1, process)
    process.send_signal(kind)
    out, err = process.communicate(timeout=200)
    assert out.strip() == "preempted", err
    assert kind.name in last_note(run)["ended"]["reason"]
    assert curve(run)


@pytest.mark.slow
def test_slow_checkpoints_are_less_frequent_and_noted(
    make_run: MakeRun, attempt_at: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    saved_at: list[float] = []
    save = checkpoint.save

    def slow_save(*arguments: Any) -> None:
        save(*arguments)
        saved_at.append(clock[0])
        clock[0] += 3.0

    def tick() -> float:
        clock[0] += 0.5
        return clock[0]

    monkeypatch.setattr(checkpoint, "save", slow_save)
    monkeypatch.setattr(loop.time, "perf_counter", tick)
    run = make_run(n_steps=800)
    assert attempt_at(run, checkpoint_interval_s=10.0) == "done"
    gaps = [after - before for before, after in itertools.pairwise(saved_at)]
    assert saved_at[0] < 20.0
    assert gaps
    assert all(3.0 / gap <= loop.CHECKPOINT_SHARE for gap in gaps)
    note = last_note(run)["checkpoint"]
    assert note["took_s"] >= 3.0
    assert note["interval_s"] == pytest.approx(note["took_s"] * 49)


@pytest.mark.slow
def test_a_run_killed_at_any_time_ends_with_the_bits_of_an_undisturbed_one(
    make_run: MakeRun,
    attempt_at: Callable[..., str],
    dataset: Dataset,
    execution: ExecutionSpec,
) -> None:
    fields = {"n_steps": 800, "lr": 0.003}
    straight, run = make_run("straight", **fields), make_run("killed", **fields)
    assert attempt_at(straight) == "done"
    for delay in (0.0, 0.013, 0.037):
        process = start_worker(run, dataset, replace(execution, checkpoint_interval_s=0.0))
        before = run.newest_claim()
        while run.newest_claim() == before and process.poll() is None:
            time.sleep(0.005)
        wait_for_checkpoints(run, 1, process)
        time.sleep(delay)
        process.kill()
        process.communicate()
    assert attempt_at(run) == "done"
    assert last_note(run)["resumed_from"] is not None
    assert result(run).loss_nats == result(straight).loss_nats
    steps = curve(straight)
    assert {step: loss for step, loss in curve(run).items() if step in steps} == steps
    assert not list(run.path.rglob("checkpoint-*"))

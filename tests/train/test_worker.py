"""An attempt, from the spec to the accepted record, and everything that may befall it."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalelab.corpus.dataset import Dataset
from scalelab.records.run_dir import Attempt, RunDir
from scalelab.records.types import RunRecord
from scalelab.sweep.run_spec import ExecutionSpec
from scalelab.theory.accounting import count_params, train_flops, train_flops_per_token
from scalelab.theory.hardware import HARDWARE
from scalelab.train import checkpoint, loop, session, worker

MakeRun = Callable[..., RunDir]


def result(run: RunDir) -> RunRecord:
    accepted = run.accepted()
    assert accepted is not None
    record = accepted.read_record()
    assert record is not None
    return record


def curve(run: RunDir) -> dict[int, float]:
    """Return loss by step, later attempts replacing earlier ones."""
    losses = {}
    for attempt in run.attempts():
        if attempt.metrics_path.exists():
            for line in attempt.metrics_path.read_text().splitlines():
                row = json.loads(line)
                losses[row["step"]] = row["loss_nats"]
    return losses


def last_note(run: RunDir) -> dict[str, Any]:
    return run.attempts()[-1].read_note()


@pytest.fixture
def attempt_at(
    dataset: Dataset, execution: ExecutionSpec, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Return a function that makes an attempt, stopping it after a number of steps if asked."""
    monkeypatch.setattr(loop, "POLL_INTERVAL_S", 0.0)

    def make(run: RunDir, stop_at: int | None = None, **changes: Any) -> str:
        def stop() -> str | None:
            steps = [c.observed for c in watched]
            return "enough" if stop_at is not None and steps and steps[-1] >= stop_at else None

        watched: list[Any] = []
        original = session.Session.observe

        class Watched:
            observed = 0

        def observe(self: session.Session, *args: Any) -> str | None:
            reason = original(self, *args)
            Watched.observed = self.step
            watched.append(Watched)
            return reason

        with monkeypatch.context() as patch:
            patch.setattr(session.Session, "observe", observe)
            return worker.run_attempt(
                run.path, dataset.folder, replace(execution, **changes), should_stop=stop
            )

    return make


def test_a_run_ends_with_an_accepted_record(
    make_run: MakeRun, attempt_at: Callable[..., str], dataset: Dataset
) -> None:
    run = make_run()
    spec = run.read_spec()
    assert attempt_at(run) == "done"
    record = result(run)
    assert (record.status, record.n_steps, record.n_tokens) == ("done", 30, 30 * 6 * 24)
    assert record.n_params == count_params(spec.shape).by_convention()
    flops = dict(record.flops)
    assert flops.pop("executed") > flops["exact"]
    assert flops == pytest.approx(train_flops(spec.shape, 24, record.n_tokens))
    assert record.unique_tokens == record.n_tokens
    assert record.loss_nats is not None
    assert record.loss_nats < math.log(61)
    losses = np.load(run.attempts()[0].path / "eval_losses.npy")
    assert losses.shape == (len(dataset.eval_sequences(24)),)
    assert losses.dtype == np.float64
    assert record.loss_nats == losses.mean()
    assert record.loss_se_nats == pytest.approx(losses.std(ddof=1) / math.sqrt(len(losses)))
    assert list(curve(run)) == [1, 4, 8, 12, 16, 20, 24, 28, 30]
    rows = [json.loads(line) for line in run.attempts()[0].metrics_path.read_text().splitlines()]
    assert rows[-1]["eval_loss_nats"] == record.loss_nats
    assert all(row["mfu"] is None for row in rows)
    assert all(row["tokens"] == row["step"] * 144 for row in rows)
    assert rows[0]["lr"] == pytest.approx(0.01 / 3)
    assert run.checkpoints() == []
    note = last_note(run)
    assert note["ended"]["status"] == "done"
    assert (note["pid"], note["resumed_from"]) == (os.getpid(), None)
    assert {"host", "pid_start", "versions", "git_commit", "is_dirty", "device_name"} <= set(note)


def test_on_a_known_device_the_curve_holds_its_utilisation(
    make_run: MakeRun, attempt_at: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = next(iter(HARDWARE.values()))
    monkeypatch.setattr(session, "match_hardware", lambda name: known)
    run = make_run(n_steps=4, warmup_steps=1)
    assert attempt_at(run) == "done"
    row = json.loads(run.attempts()[0].metrics_path.read_text().splitlines()[-1])
    per_token = train_flops_per_token(run.read_spec().shape, 24)["palm"]
    assert row["mfu"] == pytest.approx(row["tokens_per_s"] * per_token / known.peak_flops_per_s)


def test_an_accepted_run_is_not_trained_again(
    make_run: MakeRun, attempt_at: Callable[..., str]
) -> None:
    run = make_run()
    assert attempt_at(run) == attempt_at(run) == "done"
    assert len(run.attempts()) == 1


def test_a_record_whose_writer_died_before_acceptance_counts(
    make_run: MakeRun, attempt_at: Callable[..., str]
) -> None:
    run = make_run()
    assert attempt_at(run) == "done"
    (run.path / "accepted").unlink()
    assert attempt_at(run) == "done"
    assert len(run.attempts()) == 1


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


def test_a_run_may_be_stopped_again_and_again(
    make_run: MakeRun, attempt_at: Callable[..., str]
) -> None:
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
    """A spike is judged by the best loss so far, also when that was before the stop."""
    run = make_run()
    for stop_at in (9, 17):
        assert attempt_at(run, stop_at=stop_at) == "preempted"
    (_, state), *_ = checkpoint.load_newest(run)
    assert state is not None
    assert state["detector"]["n_steps"] == 17
    assert state["detector"]["first_loss"] == curve(run)[1]


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


def test_a_corrupt_checkpoint_is_passed_over_for_the_one_before(
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


def test_without_a_whole_checkpoint_the_run_starts_afresh(
    make_run: MakeRun, attempt_at: Callable[..., str]
) -> None:
    straight, run = make_run("straight"), make_run("harmed")
    assert attempt_at(straight) == "done"
    assert attempt_at(run, stop_at=9) == "preempted"
    (run.checkpoints()[0].path / "meta.json").write_text("{")
    assert attempt_at(run) == "done"
    assert last_note(run)["resumed_from"] is None
    assert result(run).loss_nats == result(straight).loss_nats


def test_a_fenced_attempt_stops_and_writes_nothing_more(
    make_run: MakeRun, dataset: Dataset, execution: ExecutionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "POLL_INTERVAL_S", 0.0)
    run = make_run()
    claimed: list[Attempt] = []

    def claim_over() -> str | None:
        if not claimed:
            claimed.append(run.claim())
        return None

    status = worker.run_attempt(run.path, dataset.folder, execution, should_stop=claim_over)
    assert status == "preempted"
    first = run.attempts()[0]
    assert "newer attempt" in first.read_note()["ended"]["reason"]
    assert first.read_record() is None
    assert run.accepted() is None
    assert first.checkpoints() == []


def test_an_attempt_fenced_at_its_very_end_is_not_accepted(
    make_run: MakeRun,
    attempt_at: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run()
    original = session.Session.eval_sequences

    def claimed_meanwhile(self: session.Session) -> Any:
        run.claim()
        return original(self)

    monkeypatch.setattr(session.Session, "eval_sequences", claimed_meanwhile)
    assert attempt_at(run) == "preempted"
    assert run.accepted() is None


def test_divergence_is_recorded_and_is_never_done(
    make_run: MakeRun, attempt_at: Callable[..., str]
) -> None:
    run = make_run(lr=3e38, grad_clip=1e30, warmup_steps=0)
    assert attempt_at(run) == "diverged"
    record = result(run)
    assert (record.status, record.loss_nats) == ("diverged", None)
    assert record.reason is not None
    assert record.diverged_at_step == record.n_steps <= 30
    assert run.status() == "diverged"
    rows = list(curve(run))
    assert rows[-1] == record.diverged_at_step
    assert attempt_at(run) == "diverged"
    assert len(run.attempts()) == 1


def test_a_run_that_ends_in_a_spike_is_diverged(
    make_run: MakeRun, attempt_at: Callable[..., str]
) -> None:
    run = make_run(lr=30.0, grad_clip=1e9, warmup_steps=0, n_steps=8)
    assert attempt_at(run) == "diverged"
    assert "spike" in str(result(run).reason)


def test_other_data_than_planned_fails(make_run: MakeRun, attempt_at: Callable[..., str]) -> None:
    run = make_run(data_fingerprint="0123456789abcdef")
    assert attempt_at(run) == "failed"
    ended = last_note(run)["ended"]
    assert "planned with" in ended["reason"]
    assert ended["traceback"] is None
    assert run.accepted() is None


def test_a_fault_is_written_down_with_its_traceback(
    make_run: MakeRun, attempt_at: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*args: Any) -> None:
        raise ZeroDivisionError("a fault of ours")

    run = make_run()
    monkeypatch.setattr(worker, "train", break_down)
    assert attempt_at(run) == "failed"
    ended = last_note(run)["ended"]
    assert "ZeroDivisionError: a fault of ours" in ended["reason"]
    assert "break_down" in ended["traceback"]


def test_kept_weights_stay_as_the_last_checkpoint(
    make_run: MakeRun, attempt_at: Callable[..., str]
) -> None:
    run = make_run()
    assert attempt_at(run, keeps_weights=True) == "done"
    assert [c.step for c in run.checkpoints()] == [30]


def test_a_disk_that_fills_up_during_a_checkpoint_costs_nothing(
    make_run: MakeRun, attempt_at: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLIMIT_FSIZE lets small files through and stops the checkpoint's tensors half-way."""
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
        "from scalelab.sweep.run_spec import ExecutionSpec\n"
        "from scalelab.train import loop, worker\n"
        "loop.POLL_INTERVAL_S = 0.0\n"
        f"execution = {execution!r}\n"
        f"print(worker.run_attempt(Path({str(run.path)!r}), Path({str(dataset.folder)!r}),"
        " execution))\n"
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
    for _ in range(3_000):
        if len([c for c in run.checkpoints() if c.step > 0]) >= n:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail("the worker wrote no checkpoint")


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_makes_a_checkpoint_and_ends_as_preempted(
    make_run: MakeRun, dataset: Dataset, execution: ExecutionSpec, kind: signal.Signals
) -> None:
    run = make_run(n_steps=100_000)
    process = start_worker(run, dataset, replace(execution, checkpoint_interval_s=0.05))
    wait_for_checkpoints(run, 1, process)
    process.send_signal(kind)
    out, err = process.communicate(timeout=60)
    assert out.strip() == "preempted", err
    assert kind.name in last_note(run)["ended"]["reason"]
    assert curve(run)


def test_slow_checkpoints_are_rarer_and_say_so(
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


def test_killed_anywhere_the_run_ends_with_the_bits_of_an_undisturbed_one(
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


def test_a_folder_of_another_run_is_refused(
    make_run: MakeRun, attempt_at: Callable[..., str], tmp_path: Path
) -> None:
    run = make_run()
    other = RunDir(tmp_path / "0123456789ab")
    other.path.mkdir()
    (other.path / "spec.json").write_text((run.path / "spec.json").read_text())
    with pytest.raises(Exception, match=r"spec\.json of run"):
        attempt_at(other)

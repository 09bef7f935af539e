"""An attempt, from the spec to the accepted record, and its other ends."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.corpus.dataset import Dataset
from scalelab.records.run_dir import Attempt, RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.theory.accounting import count_params, train_flops, train_flops_per_token
from scalelab.theory.hardware import HARDWARE
from scalelab.train import evaluation, loop, session, worker
from tests.train.outcome import curve, last_note, result, run_attempt

MakeRun = Callable[..., RunDir]


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


def test_on_a_known_device_the_curve_has_mfu(
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


def test_a_fenced_attempt_stops_and_writes_nothing(
    make_run: MakeRun, dataset: Dataset, execution: ExecutionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "POLL_INTERVAL_S", 0.0)
    run = make_run()
    claimed: list[Attempt] = []

    def claim_over() -> str | None:
        if not claimed:
            claimed.append(run.claim())
        return None

    status = run_attempt(run.path, dataset.folder, execution, should_stop=claim_over)
    assert status == "preempted"
    first = run.attempts()[0]
    assert "newer attempt" in first.read_note()["ended"]["reason"]
    assert first.read_record() is None
    assert run.accepted() is None
    assert first.checkpoints() == []


def test_an_attempt_fenced_at_its_end_is_not_accepted(
    make_run: MakeRun,
    attempt_at: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run()
    original = evaluation.EvaluationSets.evaluated

    def claimed_meanwhile(self: evaluation.EvaluationSets, evaluate: Any) -> Any:
        run.claim()
        return original(self, evaluate)

    monkeypatch.setattr(evaluation.EvaluationSets, "evaluated", claimed_meanwhile)
    assert attempt_at(run) == "preempted"
    assert run.accepted() is None


def test_divergence_is_recorded_as_diverged(
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


def test_a_dataset_other_than_planned_fails(
    make_run: MakeRun, attempt_at: Callable[..., str]
) -> None:
    run = make_run(data_fingerprint="0123456789abcdef")
    assert attempt_at(run) == "failed"
    ended = last_note(run)["ended"]
    assert "planned with" in ended["reason"]
    assert ended["traceback"] is None
    assert run.accepted() is None


def test_an_error_is_noted_with_its_traceback(
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


def test_a_folder_of_another_run_is_an_error(
    make_run: MakeRun, attempt_at: Callable[..., str], tmp_path: Path
) -> None:
    run = make_run()
    other = RunDir(tmp_path / "0123456789ab")
    other.path.mkdir()
    (other.path / "spec.json").write_text((run.path / "spec.json").read_text())
    with pytest.raises(Exception, match=r"spec\.json of run"):
        attempt_at(other)


def test_training_restores_the_settings_of_the_process(
    make_run: MakeRun, attempt_at: Callable[..., str]
) -> None:
    before = torch.get_num_threads()
    assert attempt_at(make_run()) == "done"
    assert torch.get_num_threads() == before
    smallest = np.float64(5e-324)
    assert smallest * 1.0 > 0, "denormals are flushed to zero for everybody in this process"

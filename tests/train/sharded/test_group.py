"""A run on several processes has the losses, files and resume of one process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scalelab.corpus.dataset import Dataset
from scalelab.launch.slurm.retries import classify
from scalelab.records.run_dir import RunDir
from scalelab.train.weights import WeightsModel, load_weights
from tests.train.outcome import curve, last_note, result
from tests.train.sharded.job import Job
from tests.train.test_eval_sets import add_set, rows_of

MakeRun = Callable[..., RunDir]


def losses(run: RunDir) -> Any:
    found = curve(run)
    assert list(found) == [1, *range(4, 30, 4), 30]
    return np.array(list(found.values()))


def test_two_ranks_have_the_losses_of_one_and_resume_with_the_same_bits(
    make_run: MakeRun,
    attempt_at: Callable[..., str],
    start: Callable[..., Job],
    together: Callable[..., str],
    dataset: Dataset,
) -> None:
    alone, straight, stopped = (make_run(group) for group in ("alone", "straight", "stopped"))
    assert attempt_at(alone) == "done"
    kept = {"micro_batch_seqs": 2, "keeps_weights": True}
    both = start([straight, stopped], 2, stop_at=11, **kept).finish()
    assert both == ["done", "preempted"]
    np.testing.assert_allclose(losses(straight), losses(alone), rtol=2e-5)
    one, two = result(alone), result(straight)
    assert two.loss_nats == pytest.approx(one.loss_nats, rel=2e-5)
    paths = [run.attempts()[-1].path / "eval_losses.npy" for run in (alone, straight)]
    first, second = (np.load(path) for path in paths)
    np.testing.assert_allclose(second, first, rtol=1e-4)
    assert (two.n_params, two.n_tokens, two.n_steps) == (one.n_params, one.n_tokens, one.n_steps)
    execution = last_note(straight)["execution"]
    assert (execution["n_devices"], execution["step"]) == (2, "eager")
    model = WeightsModel(load_weights(straight), "cpu")
    again = model.sequence_losses(dataset.eval_sequences(model.spec.seq_len), lambda done: None)
    np.testing.assert_allclose(again, second, rtol=1e-5)

    assert last_note(stopped)["ended"]["reason"] == "enough"
    assert together(stopped, 2) == "done"
    note = last_note(stopped)
    assert note["resumed_from"]["step"] >= 11
    # The resumed attempt keeps the micro-batch, because another one changes the bits.
    assert note["execution"]["micro_batch_seqs"] == 2
    assert losses(stopped).tolist() == losses(straight).tolist()
    assert result(stopped).loss_nats == two.loss_nats


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_ranks(
    make_run: MakeRun, attempt_at: Callable[..., str], together: Callable[..., str]
) -> None:
    changes = {"batch_seqs": 6, "parametrization": "mup"}
    alone, run = make_run("alone", **changes), make_run("moved", **changes)
    assert attempt_at(alone) == "done"
    assert attempt_at(run, stop_at=7) == "preempted"
    assert together(run, 3, stop_at=14, micro_batch_seqs=1) == "preempted"
    assert last_note(run)["execution"]["recomputes_blocks"]
    assert together(run, 2, stop_at=21) == "preempted"
    assert attempt_at(run) == "done"
    steps = [(a.read_note()["resumed_from"] or {"step": 0})["step"] for a in run.attempts()]
    assert steps == sorted(steps)
    assert [step // 7 for step in steps] == [0, 1, 2, 3]
    np.testing.assert_allclose(losses(run), losses(alone), rtol=5e-5)
    assert result(run).loss_nats == pytest.approx(result(alone).loss_nats, rel=5e-5)


def test_an_out_of_memory_error_of_a_rank_is_in_the_runs_note(
    make_run: MakeRun, start: Callable[..., Job]
) -> None:
    run = make_run()
    codes = start([run], 2, faulty_rank=1).exit_codes()
    assert codes == [1, 1]
    ended = last_note(run)["ended"]
    assert ended["status"] == "failed"
    assert "rank 1: OutOfMemoryError: CUDA out of memory" in ended["reason"]
    kind = classify("FAILED", last_note(run), is_accepted=False, is_first=True)
    assert kind == "oom"


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_the_run_can_resume(
    make_run: MakeRun, start: Callable[..., Job], together: Callable[..., str]
) -> None:
    run = make_run(n_steps=12)
    job = start([run], 2, pause_s=1.0, checkpoint_interval_s=0.0)
    deadline = time.monotonic() + 300
    while not run.checkpoints():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.ranks[1].kill()
    assert job.exit_codes() == [1, -signal.SIGKILL]
    ended = last_note(run)["ended"]
    assert (ended["status"], ended["reason"][:15]) == ("preempted", "RanksLostError:")
    kind = classify("FAILED", last_note(run), is_accepted=False, is_first=True)
    assert kind == "infrastructure"
    assert together(run, 2) == "done"
    assert last_note(run)["resumed_from"]["step"] > 0


def test_after_a_batch_that_ranks_cannot_share_the_next_run_is_trained(
    make_run: MakeRun, start: Callable[..., Job]
) -> None:
    odd, even = make_run(batch_seqs=5), make_run(n_steps=8)
    assert start([odd, even], 2).finish() == ["failed", "done"]
    assert "5 sequences a batch over 2 devices" in last_note(odd)["ended"]["reason"]


def test_a_single_device_imports_nothing_distributed() -> None:
    code = (
        "import sys, scalelab.train.worker\n"
        "assert 'scalelab.train.sharded.engine' not in sys.modules\n"
        "assert 'scalelab.train.sharded.group' not in sys.modules\n"
        "assert 'torch.distributed.fsdp' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_two_ranks_report_the_losses_of_one_on_named_sets(
    make_run: MakeRun,
    attempt_at: Callable[..., str],
    together: Callable[..., str],
    dataset: Dataset,
) -> None:
    tokens = np.random.default_rng(1).integers(0, 61, 311)
    sets = (add_set(dataset, "noise", tokens),)
    alone, run = (make_run(group, eval_sets=sets, eval_every=0.5) for group in ("alone", "two"))
    assert attempt_at(alone) == "done"
    assert together(run, 2) == "done"
    expected, found = rows_of(alone), rows_of(run)
    assert found.keys() == expected.keys()
    assert len(found) == 4
    for key, row in expected.items():
        assert found[key]["loss_nats"] == pytest.approx(row["loss_nats"], rel=2e-5)
        assert found[key]["n_tokens"] == row["n_tokens"]

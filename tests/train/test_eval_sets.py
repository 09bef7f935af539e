"""Named evaluation sets: each run reports its loss on them, and trains as it would without them."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalelab.corpus.dataset import Dataset, open_dataset
from scalelab.corpus.shards import ShardWriter, fingerprints
from scalelab.records.run_dir import RunDir
from scalelab.records.run_files import read_run
from scalelab.records.types import EvalRow
from scalelab.store.eval_rows import eval_rows
from scalelab.sweep.evaluation import evaluation_steps
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import EvalSetRef, RunSpec
from scalelab.train import loop
from scalelab.train.engine import Engine
from scalelab.train.session import Session
from scalelab.train.worker import run_batched
from tests.train.outcome import curve, last_note, result

MakeRun = Callable[..., RunDir]
AttemptAt = Callable[..., str]


@pytest.fixture
def sets(dataset: Dataset) -> tuple[EvalSetRef, ...]:
    """Two sets beside the training data: random tokens, and the first of its held-out tokens."""
    rng = np.random.default_rng(1)
    held_out = dataset.eval_sequences(24)[:20, :24].ravel()
    return tuple(
        add_set(dataset, name, tokens)
        for name, tokens in (("noise", rng.integers(0, 61, 300)), ("same", held_out))
    )


def add_set(dataset: Dataset, name: str, tokens: np.ndarray[Any, Any]) -> EvalSetRef:
    folder = dataset.folder.parent / "new"
    folder.mkdir()
    writer = ShardWriter(folder, "eval", np.dtype(np.uint8))
    writer.append(tokens)
    evaluation = writer.finish()
    whole, held_out = fingerprints("bytes", None, (), evaluation)
    manifest = replace(
        dataset.manifest,
        fingerprint=whole,
        eval_fingerprint=held_out,
        train=(),
        evaluation=evaluation,
        bytes_per_token=2.0,
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    shutil.rmtree(folder.parent / whole, ignore_errors=True)
    folder.rename(folder.parent / whole)
    return EvalSetRef(name, whole, len(tokens))


def rows_of(run: RunDir) -> dict[tuple[int, str], dict[str, Any]]:
    """Return the run's rows of the table ``evals`` by step and set, without where they are from."""
    rows, torn = eval_rows(read_run(str(run.path)))
    assert not torn
    assert len({(row["step"], row["set"]) for row in rows}) == len(rows)
    return {(row["step"], row["set"]): row for row in rows}


def test_a_run_reports_its_loss_on_each_set(
    make_run: MakeRun, attempt_at: AttemptAt, sets: tuple[EvalSetRef, ...], dataset: Dataset
) -> None:
    run = make_run(eval_sets=sets)
    assert attempt_at(run) == "done"
    folder = run.attempts()[0].path
    held_out = np.load(folder / "eval_losses.npy")
    same = np.load(folder / "eval_losses.same.npy")
    assert np.array_equal(same[:10], held_out[:10])  # the first tokens of the held-out set
    found = rows_of(run)
    assert set(found) == {(30, "heldout"), (30, "noise"), (30, "same")}
    row = found[30, "noise"]
    losses = np.load(folder / "eval_losses.noise.npy")
    assert losses.dtype == np.float64
    assert (row["loss_nats"], row["n_tokens"], row["n_bytes"]) == (losses.mean(), 288, 576)
    assert row["stderr"] == losses.std(ddof=1) / np.sqrt(12)
    assert row["bits_per_byte"] == pytest.approx(losses.mean() / np.log(2) / 2)
    assert row["is_final"]
    assert found[30, "heldout"]["n_tokens"] == held_out.size * 24
    assert found[30, "heldout"]["loss_nats"] == result(run).loss_nats


def test_a_run_without_sets_writes_no_more_than_before(
    make_run: MakeRun, attempt_at: AttemptAt
) -> None:
    run = make_run()
    assert attempt_at(run) == "done"
    names = {path.name for path in run.attempts()[0].path.iterdir()}
    assert names == {"attempt.json", "metrics.jsonl", "record.json", "eval_losses.npy"}


@pytest.mark.parametrize("step", ["direct", "eager"])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_evaluations_in_between_change_no_bit_of_the_training(
    make_run: MakeRun,
    attempt_at: AttemptAt,
    sets: tuple[EvalSetRef, ...],
    step: str,
    ema_decay: float,
) -> None:
    plain = make_run(ema_decay=ema_decay)
    watched = make_run(ema_decay=ema_decay, eval_sets=sets, eval_every=0.2)
    for run in (plain, watched):
        assert attempt_at(run, step=step) == "done"
    for column in ("loss_nats", "grad_norm", "lr"):
        expected, found = curve(plain, column), curve(watched, column)
        assert {number: found[number] for number in expected} == expected
    assert result(plain).loss_nats == result(watched).loss_nats
    assert result(plain).ema_loss_nats == result(watched).ema_loss_nats
    rows = rows_of(watched)
    assert {number for number, _ in rows} == {6, 12, 18, 24, 30}
    held_out = {n: row["loss_nats"] for (n, name), row in rows.items() if name == "heldout"}
    in_curve = curve(watched, "eval_loss_nats")
    assert {number: loss for number, loss in in_curve.items() if loss is not None} == held_out
    assert all((row["ema_loss_nats"] is not None) == bool(ema_decay) for row in rows.values())
    assert [row["is_final"] for (number, _), row in rows.items()] == [
        number == 30 for number, _ in rows
    ]


def test_batched_runs_report_what_they_report_alone(
    make_run: MakeRun,
    attempt_at: AttemptAt,
    sets: tuple[EvalSetRef, ...],
    dataset: Dataset,
    execution: ExecutionSpec,
) -> None:
    # The intervals and sets of batched runs differ.
    changes = (
        {"eval_every": 0.5, "eval_sets": sets},
        {"eval_every": 0.3, "eval_sets": sets[:1], "seed": 4},
        {"seed": 5, "n_steps": 20},
    )
    together = [make_run("together", **change) for change in changes]
    statuses = run_batched([run.path for run in together], dataset.folder, execution)
    assert statuses == ("done", "done", "done")
    for run, change in zip(together, changes, strict=True):
        alone = make_run("alone", **change)
        assert attempt_at(alone) == "done"
        expected, found = rows_of(alone), rows_of(run)
        assert found.keys() == expected.keys()
        for key, row in expected.items():
            assert found[key]["loss_nats"] == pytest.approx(row["loss_nats"], rel=1e-5)


@pytest.mark.parametrize("stop_at", [5, 10, 13, 20])
def test_a_resumed_run_has_the_rows_of_an_undisturbed_one(
    make_run: MakeRun, attempt_at: AttemptAt, sets: tuple[EvalSetRef, ...], stop_at: int
) -> None:
    whole = make_run("whole", eval_sets=sets, eval_every=1 / 3)
    assert attempt_at(whole) == "done"
    run = make_run("stopped", eval_sets=sets, eval_every=1 / 3)
    assert attempt_at(run, stop_at=stop_at) == "preempted"
    assert attempt_at(run) == "done"
    assert rows_of(run) == rows_of(whole)


def test_evaluations_after_the_checkpoint_of_a_killed_attempt_do_not_count(
    make_run: MakeRun,
    attempt_at: AttemptAt,
    sets: tuple[EvalSetRef, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The attempt dies between two sets of its second evaluation, with a checkpoint before it."""
    run = make_run(eval_sets=sets, eval_every=0.25)
    assert attempt_at(run, stop_at=10) == "preempted"

    def die(self: Session, evaluated: Any) -> None:
        row = self.sets.rows(self.step, evaluated)[0]
        self.attempt.append_evals([replace(row, loss_nats=99.0)])
        with (self.attempt.path / "evals.jsonl").open("a") as file:
            file.write('{"step": 15, "set": "no')  # torn by the kill
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Session, "note_evaluation", die)
        with pytest.raises(KeyboardInterrupt):
            attempt_at(run)
    for checkpoint in run.attempts()[1].checkpoints():
        shutil.rmtree(checkpoint.path)
    # After the checkpoint from which the run resumes, at a step that is not evaluated again.
    late = EvalRow(step=29, set="noise", loss_nats=99.0, stderr_nats=1.0, n_tokens=1, n_bytes=1)
    run.attempts()[0].append_evals([late])
    assert attempt_at(run) == "done"
    rows = rows_of(run)
    assert {step for step, _ in rows} == set(evaluation_steps(run.read_spec())) | {30}
    assert all(row["loss_nats"] < 10 for row in rows.values())
    killed = (run.attempts()[1].path / "evals.jsonl").read_text()
    assert "99.0" in killed


def test_a_line_that_cannot_be_read_is_counted(
    make_run: MakeRun, attempt_at: AttemptAt, sets: tuple[EvalSetRef, ...]
) -> None:
    run = make_run(eval_sets=sets)
    assert attempt_at(run) == "done"
    path = run.attempts()[0].path / "evals.jsonl"
    path.write_text(
        path.read_text() + '{"step": 30, "set"\n[]\n{"step": "x", "set": "a", "loss_nats": 1}\n'
        '{"step": 30, "set": "noise", "loss_nats": 2.0, "n_tokens": "many", "n_bytes": []}\n'
    )
    rows, torn = eval_rows(read_run(str(run.path)))
    assert torn == {1: 3}
    noise = next(row for row in rows if row["set"] == "noise")
    assert (noise["loss_nats"], noise["n_tokens"], noise["bits_per_byte"]) == (2.0, None, None)


def test_a_missing_set_and_another_one_are_refused(
    make_run: MakeRun, attempt_at: AttemptAt, sets: tuple[EvalSetRef, ...], dataset: Dataset
) -> None:
    gone = make_run(eval_sets=(EvalSetRef("gone", "f" * 16, 300),))
    assert attempt_at(gone) == "failed"
    reason = last_note(gone)["ended"]["reason"]
    assert "evaluation set gone" in reason
    assert "Run the sweep's command again" in reason
    other = make_run(eval_sets=(replace(sets[0], n_tokens=299),))
    assert attempt_at(other) == "failed"
    assert "299 tokens" in last_note(other)["ended"]["reason"]


def spec_with(**changes: Any) -> RunSpec:
    from tests.sweep.test_run_spec import SPEC

    return replace(SPEC, n_steps=100, warmup_steps=5, **changes)


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (0.0, ()),
        (1.0, ()),
        (0.25, (25, 50, 75)),
        (0.3, (30, 60, 90)),
        (0.99, (99,)),
        (0.001, tuple(range(1, 100))),
    ],
)
def test_the_steps_of_evaluations(every: float, steps: tuple[int, ...]) -> None:
    assert evaluation_steps(spec_with(eval_every=every)) == steps


def test_a_set_opens_from_the_folder_of_the_data(dataset: Dataset, tmp_path: Path) -> None:
    ref = add_set(dataset, "noise", np.arange(50) % 61)
    assert open_dataset(dataset.folder.parent / ref.fingerprint).n_eval_tokens == 50


@pytest.mark.slow
def test_a_run_killed_while_it_evaluates_ends_with_the_rows_of_an_undisturbed_one(
    make_run: MakeRun, attempt_at: AttemptAt, sets: tuple[EvalSetRef, ...], dataset: Dataset
) -> None:
    changes = {"eval_sets": sets, "eval_every": 0.1, "n_steps": 60}
    whole = make_run("whole", **changes)
    assert attempt_at(whole) == "done"
    run = make_run("killed", **changes)
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        before = len(run.attempts())
        process = context.Process(target=train_slowly, args=(run.path, dataset.folder))
        process.start()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            attempts = run.attempts()
            written = attempts[-1].path / "evals.jsonl" if len(attempts) > before else None
            if written is not None and written.exists() and written.read_text().count("\n") > 3:
                break
            time.sleep(0.005)
        process.kill()
        process.join()
        assert run.accepted() is None
    assert attempt_at(run) == "done"
    assert rows_of(run) == rows_of(whole)
    assert curve(run) == curve(whole)


def train_slowly(run: Path, data: Path) -> None:
    """Train with a checkpoint after every step, and wait in the course of an evaluation."""
    evaluate = Engine.evaluate
    n_calls = itertools.count()

    def slow(self: Engine, *args: Any) -> Any:
        time.sleep(0.05 if next(n_calls) < 10 else 600)
        return evaluate(self, *args)

    Engine.evaluate = slow  # type: ignore[method-assign]
    loop.POLL_INTERVAL_S = 0.0
    execution = ExecutionSpec(metrics_interval_steps=4, checkpoint_interval_s=1e-3)
    run_batched([run], data, execution)

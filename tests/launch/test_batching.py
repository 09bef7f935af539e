"""Batched runs of one job: grouped by a timing, resumed as they began, each with its own end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scalelab.launch.batching import batched_groups
from scalelab.launch.slurm.job import _train_batched
from scalelab.launch.worker import CANCELLED_FILE
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results
from scalelab.sweep.execution import ExecutionSpec, QualifyRequest
from scalelab.train import calibrate

NOTE = {"intent": "tiny.0", "array_index": 0}
REQUEST = ExecutionSpec(batched_runs=0)


@pytest.fixture
def gains(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], list[str]]:
    """Return a function that sets the measured gains and returns the list of timed runs."""

    def put(found: dict[int, float]) -> list[str]:
        timed: list[str] = []

        def measure(spec: Any, execution: Any, seconds: float) -> dict[int, float]:
            timed.append(spec.run_id)
            return found

        monkeypatch.setattr(calibrate, "measure_batched_runs", measure)
        return timed

    return put


def begin(run: RunDir, **execution: Any) -> None:
    """Save a checkpoint of an attempt with this execution."""
    attempt = run.claim()
    attempt.write_note({"execution": execution})
    with attempt.writing_checkpoint(3):
        pass


def test_equal_runs_of_a_job_are_timed_once_and_grouped(
    save: Any, tmp_path: Path, gains: Callable[..., list[str]]
) -> None:
    results, saved = save(tmp_path)
    timed = gains({2: 1.5, 4: 2.0})
    groups = batched_groups(saved.run_ids, results, REQUEST)
    assert [len(group) for group in groups] == [4, 4]
    assert [run_id for group in groups for run_id in group] == list(saved.run_ids)
    assert len(timed) == 1
    gains({2: 1.02})
    assert batched_groups(saved.run_ids, results, REQUEST) == [[r] for r in saved.run_ids]


def test_a_job_batches_at_most_as_many_runs_as_requested(
    save: Any, tmp_path: Path, gains: Callable[..., list[str]]
) -> None:
    results, saved = save(tmp_path)
    timed = gains({2: 1.5, 4: 2.0})
    two = replace(REQUEST, batched_runs=2)
    assert [len(group) for group in batched_groups(saved.run_ids, results, two)] == [2] * 4
    alone = replace(REQUEST, batched_runs=1)
    assert batched_groups(saved.run_ids, results, alone) == [[r] for r in saved.run_ids]
    assert len(timed) == 1


def test_a_run_resumes_with_as_many_batched_runs_as_it_began_with(
    save: Any, tmp_path: Path, gains: Callable[..., list[str]]
) -> None:
    results, saved = save(tmp_path)
    alone, batched, direct, *fresh = saved.run_ids
    begin(results.run(alone), step="eager", batched_runs=1)
    begin(results.run(batched), step="eager", batched_runs=2)
    begin(results.run(direct), step="direct", batched_runs=1)
    gains({2: 1.5, 4: 2.0})
    groups = batched_groups(saved.run_ids, results, REQUEST)
    assert groups == [[alone], [batched], [direct, *fresh[:3]], fresh[3:]]


def test_a_run_whose_attempts_are_lost_again_and_again_is_tried_alone(
    save: Any, tmp_path: Path, gains: Callable[..., list[str]]
) -> None:
    results, saved = save(tmp_path)
    bad, *rest = saved.run_ids
    results.run(bad).claim()
    gains({4: 2.0})
    groups = batched_groups(saved.run_ids, results, REQUEST)
    assert groups == [[bad, *rest[:3]], rest[3:]]
    results.run(bad).claim()
    groups = batched_groups(saved.run_ids, results, REQUEST)
    assert groups == [[bad], rest[:4], rest[4:]]


def test_a_spec_that_cannot_be_read_is_left_to_fail_by_itself(
    save: Any, tmp_path: Path, gains: Callable[..., list[str]]
) -> None:
    results, saved = save(tmp_path)
    broken, *rest = saved.run_ids
    (results.run(broken).path / "spec.json").write_text("{")
    gains({4: 2.0})
    groups = batched_groups(saved.run_ids, results, REQUEST)
    assert groups == [[broken], rest[:4], rest[4:]]


def test_a_cancelled_run_leaves_its_batch_and_the_others_continue(
    save: Any, tmp_path: Path
) -> None:
    results, saved = save(tmp_path)
    runs = [results.run(run_id) for run_id in saved.run_ids[:3]]

    class Cancels(list[str]):
        """No signals received; at the second check a run is cancelled."""

        looks = 0

        def __contains__(self, word: object) -> bool:
            Cancels.looks += 1
            if Cancels.looks == 2:
                (runs[1].path / CANCELLED_FILE).touch()
            return super().__contains__(word)

    statuses = _train_batched(
        runs,
        Results(results.path),
        ExecutionSpec(step="direct"),
        NOTE,
        Cancels(),
        time.monotonic() + 1000,
        None,
        QualifyRequest(tmp_path, ()),
    )
    assert statuses == ["done", "preempted", "done"]
    reasons = [run.attempts()[0].read_note()["ended"]["reason"] for run in runs]
    assert reasons == [f"{runs[1].run_id} of the batched runs cancelled"] * 3
    assert [len(run.attempts()) for run in runs] == [2, 1, 2]
    assert runs[0].attempts()[1].read_note()["execution"]["batched_runs"] == 2

"""Live status: run folders merged with the SLURM queue."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from scalelab.launch.cancel import cancel_runs
from scalelab.launch.live_status import LiveStatus, merged_state
from scalelab.launch.slurm.intents import JobGroup, Outcome, write_intent
from scalelab.launch.slurm.queue import QueuedJob
from scalelab.records.sweep_dir import Results
from scalelab.records.types import MetricRow
from scalelab.sweep.execution import ExecutionSpec
from tests.launch.slurm.replayed import finish, make_runs

STEP = MetricRow(step=1, tokens=128, loss_nats=5.0, lr=0.1, grad_norm=1.0, tokens_per_s=1.0)


class Cluster:
    """A queue set by the test; None for a controller that does not answer."""

    def __init__(self) -> None:
        self.queue: dict[tuple[int, int], QueuedJob] | None = {}
        self.n_calls = 0

    def read_queue(self) -> dict[tuple[int, int], QueuedJob] | None:
        self.n_calls += 1
        return self.queue

    def cancel(self, elements: list[tuple[int, int]]) -> bool:
        return True


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[Results, tuple[str, ...]]:
    return make_runs(tmp_path / "results", 5)


def test_states_of_a_sweep_in_the_queue(sweep: tuple[Results, tuple[str, ...]]) -> None:
    results, run_ids = sweep
    job_groups = [
        JobGroup(run_ids=runs, execution=ExecutionSpec(), seconds=1.0)
        for runs in (run_ids[:2], run_ids[2:3], run_ids[3:4])
    ]
    intent = write_intent(
        results.sweep("crash"), job_groups, throttle=3, gpus=0, time_min=5, memory_gb=1
    )
    intent.note_job(7, 3)

    def job(index: int, state: str) -> QueuedJob:
        return QueuedJob(job_id=7, index=index, state=state, elapsed_s=5, name=intent.job_name)

    cluster = Cluster()
    cluster.queue = {(7, 0): job(0, "RUNNING"), (7, 1): job(1, "PENDING"), (7, 2): job(2, "FAILED")}
    for number in (0, 3):
        attempt = results.run(run_ids[number]).claim()
        attempt.write_note(
            {"host": socket.gethostname(), "pid": 1, "pid_start": -1, "started_s": 1}
        )
        attempt.append_metrics([STEP])
    elsewhere = results.run(run_ids[0]).attempts()[0]
    elsewhere.write_note({**elsewhere.read_note(), "host": "another-machine"})
    live = LiveStatus(results.path, "crash", slurm=cluster)  # type: ignore[arg-type]
    words = dict(
        zip(run_ids, ("running", "queued", "queued", "interrupted", "planned"), strict=True)
    )
    assert {run.run_id: run.state for run in live.read().runs} == words
    # The controller does not answer: states from the files; the jobs may still run.
    cluster.queue = None
    assert live.read().counts == {"running": 1, "queued": 2, "planned": 1, "interrupted": 1}
    cluster.queue = {}
    cancel_runs(results, "crash", run_ids, slurm=cluster)  # type: ignore[arg-type]
    intent.append_outcomes(
        [
            Outcome(index=index, state="CANCELLED", elapsed_s=1, ended_s=1, kinds={}, steps={})
            for index in range(3)
        ]
    )
    n_calls = cluster.n_calls
    counts = live.read().counts
    assert counts == {"running": 1, "cancelled": 4}
    assert cluster.n_calls == n_calls, "nothing of the sweep is in the queue"
    for run_id in run_ids:
        finish(results.run(run_id))
    assert live.read().counts == {"done": 5}


@pytest.mark.parametrize("state", ["done", "diverged", "failed", "broken"])
@pytest.mark.parametrize("held", ["queued", "running", "unknown", None])
def test_the_queue_changes_no_end(state: str, held: str | None) -> None:
    assert merged_state(state, held, is_cancelled=True) == state


def test_repeated_steps_count_as_wasted(sweep: tuple[Results, tuple[str, ...]]) -> None:
    results, (first, *_) = sweep
    run = results.run(first)
    lost = run.claim()
    rows = [
        MetricRow(**{**_fields(STEP), "step": step, "time_s": 1000.0 + step})
        for step in range(10, 70, 10)
    ]
    lost.write_note({"started_s": 1000.0})
    lost.append_metrics(rows)
    newer = run.claim()
    newer.write_note(
        {
            "started_s": 2000.0,
            "resumed_from": {"attempt": 1, "step": 40},
            "ended": {"status": "preempted", "reason": "x", "time_s": 2100.0},
        }
    )
    found = LiveStatus(results.path, "crash").read()
    (state,) = (one for one in found.runs if one.run_id == first)
    assert (state.spent_s, state.wasted_s) == (160.0, 20.0)
    assert found.worker_hours == pytest.approx(160 / 3600)
    assert found.wasted_hours == pytest.approx(20 / 3600)


def _fields(row: MetricRow) -> dict[str, float]:
    return {name: getattr(row, name) for name in MetricRow.__slots__}

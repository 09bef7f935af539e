"""Retry classes, grace periods, job groups and the cap over arrays, checked as properties."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.errors import UsageError
from scalelab.launch.slurm.intents import settle
from scalelab.launch.slurm.job_groups import make_job_groups
from scalelab.launch.slurm.queue import ENDED_STATES, QueuedJob, Slurm, parse_queue
from scalelab.launch.slurm.retries import (
    GONE_GRACE_S,
    KINDS,
    MAX_INFRASTRUCTURE_RETRIES,
    TIME_LIMIT_REASON,
    JobFailure,
    classify,
    decide_retry,
    settled_state,
    share_out,
)
from scalelab.sweep.execution import ExecutionSpec

losses = st.lists(
    st.builds(JobFailure, kind=st.sampled_from(KINDS[1:]), step=st.integers(0, 40)), max_size=9
)


def lost(kind: str, *steps: int) -> list[JobFailure]:
    return [JobFailure(kind=kind, step=step) for step in steps]


@pytest.mark.parametrize(
    ("found", "is_allowed"),
    [
        ([], True),
        (lost("infrastructure", 0, 0, 0), True),
        (lost("infrastructure", 0, 0, 0, 0), False),
        (lost("infrastructure", 10, 10, 10, 20, 20, 20), True),
        (lost("infrastructure", 10, 10, 10, 10), False),
        (lost("exception", 100), False),
        (lost("timeout", 0), False),
        (lost("timeout", 10, 20, 30, 40, 50), True),
        (lost("timeout", 10, 20, 20), False),
        (lost("not_reached", *range(30)), True),
    ],
)
def test_retry_classes(found: list[JobFailure], is_allowed: bool) -> None:
    retry = decide_retry(found, batch_seqs=8)
    assert retry.is_allowed == is_allowed
    assert bool(retry.reason) != is_allowed


def test_out_of_memory_halves_the_micro_batch_down_to_one() -> None:
    sizes = [decide_retry(lost("oom", *[0] * n), 8).micro_batch_seqs for n in range(1, 4)]
    assert sizes == [4, 2, 1]
    assert not decide_retry(lost("oom", 0, 0, 0, 0), 8).is_allowed
    assert decide_retry(lost("oom", 0), 8, micro_batch_seqs=2).micro_batch_seqs == 1


@given(found=losses, batch=st.integers(1, 64))
def test_a_refused_retry_stays_refused(found: list[JobFailure], batch: int) -> None:
    decisions = [decide_retry(found[:n], batch).is_allowed for n in range(len(found) + 1)]
    assert decisions == sorted(decisions, reverse=True)


@given(found=losses, batch=st.integers(1, 64))
def test_no_run_without_progress_is_resubmitted_forever(
    found: list[JobFailure], batch: int
) -> None:
    stuck = [JobFailure(kind=loss.kind, step=0) for loss in found if loss.kind != "not_reached"]
    bound = MAX_INFRASTRUCTURE_RETRIES + batch.bit_length()
    if len(stuck) > bound:
        assert not decide_retry(stuck, batch).is_allowed


@pytest.mark.parametrize(
    ("state", "ended", "kind"),
    [
        ("COMPLETED", {"status": "failed", "reason": "ValueError: bad"}, "exception"),
        (
            "COMPLETED",
            {"status": "failed", "reason": "OutOfMemoryError: CUDA out of memory"},
            "oom",
        ),
        ("OUT_OF_MEMORY", None, "oom"),
        ("TIMEOUT", None, "timeout"),
        ("FAILED", {"status": "preempted", "reason": TIME_LIMIT_REASON}, "timeout"),
        ("TIMEOUT", {"status": "preempted", "reason": "received SIGTERM"}, "timeout"),
        ("CANCELLED", {"status": "preempted", "reason": "received SIGTERM"}, "infrastructure"),
        ("NODE_FAIL", None, "infrastructure"),
        ("GONE", None, "infrastructure"),
        ("FAILED", None, "infrastructure"),
    ],
)
def test_the_kind_of_an_end(state: str, ended: dict[str, str] | None, kind: str) -> None:
    note = {"ended": ended} if ended else {}
    assert classify(state, note, is_accepted=False, is_first=True) == kind
    assert classify(state, note, is_accepted=True, is_first=True) == "finished"
    assert classify(state, None, is_accepted=False, is_first=True) == "infrastructure"
    assert classify(state, None, is_accepted=False, is_first=False) == "not_reached"


@given(state=st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", min_size=1), seconds=st.floats(0, 1e9))
def test_an_unknown_state_is_never_an_end(state: str, seconds: float) -> None:
    job = QueuedJob(job_id=1, index=0, state=state, elapsed_s=0, name="x")
    assert (settled_state(job, seconds) is None) or state in ENDED_STATES


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED"])
def test_jobs_that_slurm_requeues_get_a_grace_period(state: str) -> None:
    job = QueuedJob(job_id=1, index=0, state=state, elapsed_s=0, name="x")
    assert settled_state(job, 10.0) is None
    assert settled_state(job, 20.0) == state


def test_absence_counts_after_a_grace_period_only() -> None:
    assert settled_state(None, GONE_GRACE_S - 1) is None
    assert settled_state(None, GONE_GRACE_S) == "GONE"


@given(cap=st.integers(-3, 200), remaining=st.lists(st.integers(0, 90), max_size=8))
def test_shares_fill_the_cap_and_never_exceed_it(cap: int, remaining: list[int]) -> None:
    shares = share_out(cap, remaining)
    assert sum(shares) == max(min(cap, sum(remaining)), 0)
    assert all(0 <= share <= left for share, left in zip(shares, remaining, strict=True))
    unfilled = [s for s, left in zip(shares, remaining, strict=True) if s < left]
    assert not unfilled or max(unfilled) - min(unfilled) <= 1


def test_the_queues_lines() -> None:
    text = (
        "12|3|PENDING|0:00|Resources|scalelab.demo.0a1b2c3d\n"
        "12|4|CANCELLED+|1-02:03:04|None|scalelab.demo.0a1b2c3d\n"
        "12|5|PENDING|0:00|launch failed requeued held|scalelab.demo.0a1b2c3d\n"
        "13|N/A|RUNNING|5:01|None|somebody's; `job`|x\n"
        "slurm_load_jobs error: nonsense\n"
        "14|0|NODE_FAIL|INVALID||a|b\n"
    )
    found = parse_queue(text)
    assert sorted(found) == [(12, 3), (12, 4), (12, 5), (14, 0)]
    assert found[12, 4].state == "CANCELLED"
    assert found[12, 4].elapsed_s == ((24 + 2) * 60 + 3) * 60 + 4
    assert [job.is_held_by_slurm for job in found.values()] == [False, False, True, False]
    assert found[14, 0].name == "a|b"


@given(text=st.text())
def test_no_answer_of_the_queue_is_an_error(text: str) -> None:
    parse_queue(text)


def test_the_error_of_squeue_is_kept_and_a_machine_without_slurm_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 'squeue: fatal: no  controller' >&2; exit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = Slurm()
    assert slurm.read_queue() is None
    assert slurm.error == "squeue: fatal: no controller"
    with pytest.raises(UsageError, match="without sbatch, scancel, scontrol"):
        Slurm.here()


def test_job_groups_hold_every_run_once_and_fill_the_target() -> None:
    seconds = {f"r{i}": 7.0 + 3 * (i % 5) for i in range(40)} | {"long": 1000.0}
    gpus = dict.fromkeys(seconds, 1)
    job_groups = make_job_groups(list(seconds), seconds, ExecutionSpec(), target_s=60.0, gpus=gpus)
    assert [run_id for group in job_groups for run_id in group.run_ids] == list(seconds)
    for group in job_groups:
        assert group.seconds == sum(seconds[run_id] for run_id in group.run_ids)
        assert group.seconds <= 60 or group.run_ids == ("long",)
    full = [group.seconds for group in job_groups if group.run_ids != ("long",)]
    assert min(full[:-1]) > 60 - max(7.0 + 3 * 4, 0)
    (small,) = make_job_groups(
        ["r1"], seconds, ExecutionSpec(), target_s=60, gpus=gpus, micro_batches={"r1": 2}
    )
    assert small.execution.micro_batch_seqs == 2


def test_the_verdict_is_decided_once(tmp_path: Path) -> None:
    assert settle(tmp_path, "started 7") == "started 7"
    assert settle(tmp_path, "abandoned") == "started 7"

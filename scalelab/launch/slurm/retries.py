"""Deciding whether to resubmit a run that its job left unfinished; pure functions.

==============  ====================================================================================
kind            next attempt
==============  ====================================================================================
finished        none: there is an accepted record
infrastructure  killed, cancelled outside or node lost: retry, 3 times without a new checkpoint
oom             out of memory: retry with half the micro-batch (same batch), down to 1
timeout         time limit reached: retry if there is a new checkpoint
exception       error of the program: no retry
not_reached     the job ended during an earlier run: retry, not counted
==============  ====================================================================================

Jobs that SLURM requeues by itself do not appear here: the job stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scalelab.launch.slurm.queue import QueuedJob
from scalelab.units import plural

KINDS = ("finished", "infrastructure", "oom", "timeout", "exception", "not_reached")
MAX_INFRASTRUCTURE_RETRIES = 3
TIME_LIMIT_REASON = "the job's time limit is near"

ENDED_GRACE_S = {"COMPLETED": 0.0, "NODE_FAIL": 15.0, "PREEMPTED": 15.0, "BOOT_FAIL": 15.0}
OTHER_ENDED_GRACE_S = 3.0
GONE_GRACE_S = 10.0
GONE = "GONE"

_OOM_WORDS = ("OutOfMemoryError", "out of memory", "MemoryError", "can't allocate memory")
_TIMEOUT_WORDS = ("SIGUSR2", TIME_LIMIT_REASON)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFailure:
    """One job that ended without a run's record.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    step : int
        Step of the run's latest checkpoint at that time.
    """

    kind: str
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """The decision that follows from a run's job failures.

    Attributes
    ----------
    is_allowed : bool
        Whether the run may be resubmitted.
    micro_batch_seqs : int or None
        Micro-batch of the next attempt after running out of memory, else None.
    reason : str
        Why not, in words; empty if allowed.
    """

    is_allowed: bool
    micro_batch_seqs: int | None = None
    reason: str = ""


def decide_retry(
    failures: Sequence[JobFailure], batch_seqs: int, *, micro_batch_seqs: int = 0
) -> Retry:
    """Return whether to resubmit a run after these job failures, oldest first.

    Parameters
    ----------
    failures : sequence of JobFailure
        Since the last ``scalelab retry`` of the run.
    batch_seqs : int
        Sequences per device in a step.
    micro_batch_seqs : int
        Sequences per forward pass in the first attempt; 0 means the whole batch.
    """
    micro = micro_batch_seqs or batch_seqs
    changed: int | None = None
    n_infrastructure = 0
    furthest = 0
    for failure in failures:
        has_advanced = failure.step > furthest
        furthest = max(furthest, failure.step)
        if failure.kind == "exception":
            return Retry(is_allowed=False, reason="the training program failed")
        if failure.kind == "timeout" and not has_advanced:
            return Retry(is_allowed=False, reason="no new checkpoint within the time limit")
        if failure.kind == "oom":
            if micro == 1:
                return Retry(is_allowed=False, reason="out of memory at a micro-batch of 1")
            micro = changed = micro // 2
        if has_advanced:
            n_infrastructure = 0
        if failure.kind == "infrastructure":
            n_infrastructure += 1
            if n_infrastructure > MAX_INFRASTRUCTURE_RETRIES:
                return Retry(
                    is_allowed=False, reason=f"{plural(n_infrastructure, 'job failure')} in a row"
                )
    return Retry(is_allowed=True, micro_batch_seqs=changed)


def classify(
    state: str, note: Mapping[str, Any] | None, *, is_accepted: bool, is_first: bool
) -> str:
    """Return what the end of a job means for one of its runs, one of `KINDS`.

    Parameters
    ----------
    state : str
        SLURM's last state of the job, or ``GONE``.
    note : Mapping or None
        ``attempt.json`` of this job's newest attempt at the run; None if there is none.
    is_accepted : bool
        Whether the run has an accepted record.
    is_first : bool
        Whether this is the first unfinished run of the job, which the job's end is charged to.
    """
    if is_accepted:
        return "finished"
    if note is None:
        return "infrastructure" if is_first else "not_reached"
    ended = note.get("ended") or {}
    reason = str(ended.get("reason") or "")
    if ended.get("status") == "failed":
        # A program's own attempts have tried a smaller micro-batch.
        is_oom = any(word in reason for word in _OOM_WORDS) and not ended.get("kind")
        # The trainer itself reduces the micro-batch where it can: at 1 there is nothing to try.
        is_smallest = (note.get("execution") or {}).get("micro_batch_seqs") == 1
        return "oom" if is_oom and not is_smallest else "exception"
    if state == "OUT_OF_MEMORY" and not ended:
        return "oom"
    if state == "TIMEOUT" or any(word in reason for word in _TIMEOUT_WORDS):
        return "timeout"
    return "infrastructure"


def settled_state(job: QueuedJob | None, seen_for_s: float) -> str | None:
    """Return the final state of an element, or None while it may still run.

    SLURM requeues preempted jobs and jobs of failed nodes, and a restarted controller may not list
    its jobs yet. An end therefore counts only after a grace period.

    Parameters
    ----------
    job : QueuedJob or None
        The element in the queue; None if the queue does not list it.
    seen_for_s : float
        How long the queue has shown this, seconds.
    """
    if job is None:
        return GONE if seen_for_s >= GONE_GRACE_S else None
    if not job.has_ended:
        return None
    grace = ENDED_GRACE_S.get(job.state, OTHER_ENDED_GRACE_S)
    return job.state if seen_for_s >= grace else None


def share_out(n_running: int, remaining: Sequence[int]) -> list[int]:
    """Return how many elements each array may run at once, so that all stay within the cap.

    Parameters
    ----------
    n_running : int
        Cap over all arrays.
    remaining : sequence of int
        Unfinished elements of each array, oldest array first.

    Returns
    -------
    list of int
        At most ``remaining`` for each array, at most the cap in total; 0 means wait.
    """
    shares = [0] * len(remaining)
    left = n_running
    while left > 0:
        wanting = [i for i, count in enumerate(remaining) if shares[i] < count]
        if not wanting:
            break
        for i in wanting[:left]:
            shares[i] += 1
        left -= min(left, len(wanting))
    return shares

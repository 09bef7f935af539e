"""Whether a run that its job left unfinished is submitted again. Pure.

==============  =================================================================================
kind            what it means for the next attempt
==============  =================================================================================
finished        nothing: there is an accepted record
infrastructure  killed, cancelled from outside, node gone: again, 3 times without a new checkpoint
oom             out of memory: again with half the micro-batch (the batch stays), until it is 1
timeout         the time limit came: again if a checkpoint was written, else never
exception       the program's own error: never
not_reached     a companion in the same job came first: again, without being charged
==============  =================================================================================

What SLURM requeues by itself never comes here: it is the same job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scalelab.launch.slurm.queue import QueuedJob

KINDS = ("finished", "infrastructure", "oom", "timeout", "exception", "not_reached")
MAX_INFRASTRUCTURE_RETRIES = 3
TIME_LIMIT_REASON = "the job's time limit is near"
CANCELLED_REASON = "cancelled"

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
        The run's furthest checkpoint then.
    """

    kind: str
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """What follows from a run's losses.

    Attributes
    ----------
    is_allowed : bool
        Whether the run may be submitted again.
    micro_batch_seqs : int or None
        Micro-batch of the next attempt where memory ran out, else None.
    reason : str
        Why not, in words; empty when allowed.
    """

    is_allowed: bool
    micro_batch_seqs: int | None = None
    reason: str = ""


def decide_retry(
    losses: Sequence[JobFailure], batch_seqs: int, *, micro_batch_seqs: int = 0
) -> Retry:
    """Return whether a run is submitted again after these losses, oldest first.

    Parameters
    ----------
    losses : sequence of JobFailure
        Since the run was last forgiven (``scalelab retry``).
    batch_seqs : int
        Sequences of each device in its step.
    micro_batch_seqs : int
        Sequences in a forward pass at first; 0 means the whole batch.
    """
    micro = micro_batch_seqs or batch_seqs
    changed: int | None = None
    n_infrastructure = 0
    furthest = 0
    for loss in losses:
        has_advanced = loss.step > furthest
        furthest = max(furthest, loss.step)
        if loss.kind == "exception":
            return Retry(is_allowed=False, reason="its program failed")
        if loss.kind == "timeout" and not has_advanced:
            return Retry(is_allowed=False, reason="a whole time limit brought no new checkpoint")
        if loss.kind == "oom":
            if micro == 1:
                return Retry(is_allowed=False, reason="out of memory at a micro-batch of 1")
            micro = changed = micro // 2
        if has_advanced:
            n_infrastructure = 0
        if loss.kind == "infrastructure":
            n_infrastructure += 1
            if n_infrastructure > MAX_INFRASTRUCTURE_RETRIES:
                return Retry(
                    is_allowed=False, reason=f"lost its job {n_infrastructure} times on end"
                )
    return Retry(is_allowed=True, micro_batch_seqs=changed)


def classify(
    state: str, note: Mapping[str, Any] | None, *, is_accepted: bool, is_first: bool
) -> str:
    """Return what the end of a job meant for one of its runs, one of `KINDS`.

    Parameters
    ----------
    state : str
        SLURM's last word on the job, or ``GONE``.
    note : Mapping or None
        ``attempt.json`` of the newest attempt that this job made at the run; None if none.
    is_accepted : bool
        Whether the run has an accepted record.
    is_first : bool
        Whether no companion before it was left unfinished, so that the job's end is its own.
    """
    if is_accepted:
        return "finished"
    if note is None:
        return "infrastructure" if is_first else "not_reached"
    ended = note.get("ended") or {}
    reason = str(ended.get("reason") or "")
    if ended.get("status") == "failed":
        is_oom = any(word in reason for word in _OOM_WORDS)
        # The trainer itself goes down to one sequence where it can: then nothing is left to try.
        is_smallest = (note.get("execution") or {}).get("micro_batch_seqs") == 1
        return "oom" if is_oom and not is_smallest else "exception"
    if state == "OUT_OF_MEMORY" and not ended:
        return "oom"
    if state == "TIMEOUT" or any(word in reason for word in _TIMEOUT_WORDS):
        return "timeout"
    return "infrastructure"


def settled_state(job: QueuedJob | None, seen_for_s: float) -> str | None:
    """Return the word for an element that has ended for good, None while it may live.

    SLURM brings a job that lost its node or was preempted back by itself, and a controller that was
    just revived may not know its jobs yet; so an end counts only after a grace period.

    Parameters
    ----------
    job : QueuedJob or None
        What the queue shows; None when the queue answered without it.
    seen_for_s : float
        How long it has shown this.
    """
    if job is None:
        return GONE if seen_for_s >= GONE_GRACE_S else None
    if not job.has_ended:
        return None
    grace = ENDED_GRACE_S.get(job.state, OTHER_ENDED_GRACE_S)
    return job.state if seen_for_s >= grace else None


def share_out(n_running: int, remaining: Sequence[int]) -> list[int]:
    """Return how many elements each array may run at once, so that all together stay in the cap.

    Parameters
    ----------
    n_running : int
        The cap over all arrays.
    remaining : sequence of int
        Elements of each array that have not ended, oldest array first.

    Returns
    -------
    list of int
        At most what remains of each; together at most the cap. A zero means: not yet.
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

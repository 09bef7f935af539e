"""What a SLURM job runs: it reads its job group from the sweep folder and trains the runs."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from scalelab.errors import ScalelabError
from scalelab.launch.attempts import attempt_runs
from scalelab.launch.batching import batched_groups
from scalelab.launch.slurm.intents import read_job_group, settle
from scalelab.launch.slurm.retries import TIME_LIMIT_REASON
from scalelab.launch.source import source_note
from scalelab.launch.worker import (
    BATCH_CANCELLED,
    EXIT_FAILED,
    EXIT_STOPPED,
    cancel_reason,
    forget_ranks,
    is_stopped,
    log_to_first,
)
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results
from scalelab.sweep.execution import ExecutionSpec, QualifyRequest

END_MARGIN_S = 60.0
END_MARGIN_SHARE = 0.1
PROGRAM_START_S = 120.0
"""A user's program that was stopped is not started again with less time than this, seconds."""
LOOPBACK = "127.0.0.1"


def train_job_group(sweep_path: str, intent_id: str, time_min: int) -> None:
    """Train the runs of one array element, one after the other or several in one step.

    If the launcher has given up this submission, the job exits at once. At USR2, which SLURM may
    send up to a minute early, the job saves a checkpoint and continues. At SIGTERM, or shortly
    before the time limit, it saves a checkpoint and ends. Only the launcher resubmits jobs. For a
    run on several GPUs the first task does all this and the other tasks follow it; a job of a
    user's program has one task, which starts the program on all its devices.

    Parameters
    ----------
    sweep_path : str
        Folder of the sweep.
    intent_id : str
        Identifies the array; ``SLURM_ARRAY_TASK_ID`` is the element.
    time_min : int
        Time limit of the job, minutes.
    """
    n_tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if n_tasks == 1:
        forget_ranks()
    elif _export_ranks() > 0:
        _follow(Path(sweep_path), intent_id)
        return

    ends_s = time.monotonic() + 60 * time_min
    sweep = Path(sweep_path)
    job, index = os.environ["SLURM_ARRAY_JOB_ID"], int(os.environ["SLURM_ARRAY_TASK_ID"])
    with _recorded_signals() as received:
        verdict = settle(sweep / "intents" / intent_id, f"started {job}")
        if verdict != f"started {job}":
            print(f"scalelab: job {job} is not needed: {verdict}", file=sys.stderr)
            sys.exit(EXIT_STOPPED if n_tasks > 1 else 0)
        job_group = read_job_group(sweep, intent_id, index)
        run_ids, execution = job_group.run_ids, job_group.execution
        results = Results(sweep.parent.parent)
        stop_s = ends_s - end_margin_s(execution, time_min)
        note = {
            "intent": intent_id,
            "array_index": index,
            "sweep": sweep.name,
            "deadline_s": time.time() + stop_s - time.monotonic(),
            **source_note(results.path),
        }
        broken_group = broken_group_errors(execution)
        trunks = results.trunks if len(run_ids) > 1 else None
        qualify = qualify_request(results, job_group.qualify)
        streams = os.dup(1), os.dup(2)
        has_stopped = is_broken = False
        alone = [[run_id] for run_id in run_ids]
        for group in alone if n_tasks > 1 else batched_groups(run_ids, results, execution):
            runs = [results.run(run_id) for run_id in group]
            statuses = ["failed"] * len(group)
            try:
                log_to_first(runs)
                statuses = _train_batched(
                    runs, results, execution, note, received, stop_s, trunks, qualify
                )
            except (OSError, ScalelabError) as error:
                # A run folder was removed or edited; the job continues with its other runs.
                print(f"scalelab: {error}", file=sys.stderr, flush=True)
            except broken_group as error:
                is_broken = True
                print(f"scalelab: {error.__cause__}", file=sys.stderr, flush=True)
            finally:
                for stream, saved in zip((1, 2), streams, strict=True):
                    os.dup2(saved, stream)
            for run_id, status in zip(group, statuses, strict=True):
                print(f"scalelab: run {run_id} {status}", flush=True)
            has_stopped = has_stopped or "preempted" in statuses
            if is_broken or "SIGTERM" in received or time.monotonic() >= stop_s:
                break
        if n_tasks > 1 and not is_broken:
            from scalelab.train.sharded.group import dismiss

            dismiss(execution)
            exit_directly(EXIT_STOPPED if has_stopped else 0)
    if is_broken:
        sys.exit(EXIT_FAILED)
    if has_stopped:
        sys.exit(EXIT_STOPPED)


def end_margin_s(execution: ExecutionSpec, time_min: int) -> float:
    """Return how long before the time limit a job stops its run, seconds.

    A user's program gets its ``grace_s`` to save, at most half of the time.
    """
    margin = min(END_MARGIN_S, END_MARGIN_SHARE * 60 * time_min)
    if execution.program is None:
        return margin
    return min(margin + execution.program.grace_s, 60 * time_min / 2)


def broken_group_errors(execution: ExecutionSpec) -> tuple[type[Exception], ...]:
    """Return the errors of a broken process group of the built-in trainer; a program has none."""
    if execution.program is not None:
        return ()
    from scalelab.train.sharded.ranks import BrokenGroupError

    return (BrokenGroupError,)


def qualify_request(results: Results, run_ids: Sequence[str]) -> QualifyRequest:
    """Return the request for the runs that the launcher chose; a broken run folder is left out."""
    specs = []
    for run_id in run_ids:
        with contextlib.suppress(ScalelabError, OSError):
            specs.append(results.run(run_id).read_spec())
    return QualifyRequest(results.qualification, tuple(specs))


def _train_batched(
    runs: Sequence[RunDir],
    results: Results,
    execution: ExecutionSpec,
    note: Mapping[str, Any],
    received: list[str],
    stop_s: float,
    trunks: Path | None,
    qualify: QualifyRequest,
) -> list[str]:
    """Train batched runs until each has ended or the job must end; return their statuses."""
    statuses = dict.fromkeys(runs, "preempted")
    left = [run for run in runs if not is_stopped(run)]

    def should_stop() -> str | None:
        if "SIGTERM" in received:
            return "received SIGTERM"
        if time.monotonic() >= stop_s:
            return TIME_LIMIT_REASON
        return cancel_reason(left)

    while left and should_stop() is None:
        found = attempt_runs(
            [run.path for run in left],
            results.dataset(left[0].read_spec().data_fingerprint),
            execution,
            host_note=note,
            should_stop=should_stop,
            trunks=trunks,
            qualify=qualify,
        )
        statuses |= dict(zip(left, found, strict=True))
        reasons = {run: _stop_reason(run, note) for run in left if statuses[run] == "preempted"}
        if any("SIGTERM" in reason for reason in reasons.values()):
            received.append("SIGTERM")
        continued = [run for run, reason in reasons.items() if reason and "SIGTERM" not in reason]
        left = [run for run in continued if not is_stopped(run)]
        if execution.program is not None and stop_s - time.monotonic() < PROGRAM_START_S:
            break
    return [statuses[run] for run in runs]


def _stop_reason(run: RunDir, note: Mapping[str, Any]) -> str:
    """Return why this process stopped a run; empty if the run does not continue in this job.

    A run continues after USR2, and after a run batched with it was cancelled.
    """
    own = run.attempts()[-1].read_note()
    reason = str((own.get("ended") or {}).get("reason"))
    is_passing = "SIGUSR2" in reason or BATCH_CANCELLED in reason
    if "SIGTERM" in reason or (is_passing and _is_own(own, note)):
        return reason
    return ""


def _is_own(attempt_note: Mapping[str, Any], note: Mapping[str, Any]) -> bool:
    return all(attempt_note.get(key) == note[key] for key in ("intent", "array_index")) and (
        attempt_note.get("pid") == os.getpid()
    )


@contextlib.contextmanager
def _recorded_signals() -> Iterator[list[str]]:
    """Yield the list of stop signals received; during training the trainer receives them."""
    received: list[str] = []

    def record(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    numbers = (signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.signal(number, record) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _export_ranks() -> int:
    """Set torchrun's variables for a SLURM task; return the task's rank.

    Tasks on one machine connect through its loopback address. All GPUs of the machine stay visible,
    so that they can reach each other; the trainer picks the task's GPU.
    """
    from submitit.helpers import TorchDistributedEnvironment

    environment = TorchDistributedEnvironment()
    if environment.local_world_size == environment.world_size:
        environment.master_addr = LOOPBACK
    environment.export(set_cuda_visible_devices=False, overwrite=True)
    return int(environment.rank)


def _follow(sweep: Path, intent_id: str) -> None:
    """Train the runs that the first task announces, until there are no more."""
    from scalelab.train.sharded.group import follow

    execution = read_job_group(sweep, intent_id, int(os.environ["SLURM_ARRAY_TASK_ID"])).execution
    while follow(execution) is not None:
        pass
    exit_directly(0)


def exit_directly(code: int) -> None:
    """Make this process end with a code after Python's own exit, skipping its libraries' exit.

    Threads of gloo sometimes outlive their group and abort a finished process; SLURM would then
    report the job as failed.
    """

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)

"""The callable that a job runs: the only place of the launch room that reaches the trainer.

It is thin on purpose: everything that it needs it reads from the run folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing.connection
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from scalelab.errors import ScalelabError
from scalelab.launch.batching import batched_groups
from scalelab.launch.slurm.intents import read_job_group, settle
from scalelab.launch.slurm.retries import CANCELLED_REASON, TIME_LIMIT_REASON
from scalelab.launch.slurm.tasks import (
    dismiss_others,
    exit_directly,
    export_ranks,
    follow_the_first,
    forget_ranks,
)
from scalelab.launch.source import source_note
from scalelab.records.run_dir import LOG_FILE, RunDir
from scalelab.records.sweep_dir import Results
from scalelab.sweep.run_spec import ExecutionSpec, build, run_spec_from_mapping

EXIT_BY_STATUS = {"done": 0, "diverged": 0, "preempted": 75}
EXIT_FAILED = 1
EXIT_STOPPED = 75
END_MARGIN_S = 60.0
END_MARGIN_SHARE = 0.1
TIMED_STEPS_MAX = 1_000_000
CANCELLED_FILE = "cancelled"
OF_THE_PACK = "of the pack cancelled"


def work_locally(
    run_paths: Sequence[Path],
    dataset: Path,
    execution: ExecutionSpec,
    slot: int | str,
    lifeline: multiprocessing.connection.Connection,
    host_note: Mapping[str, Any],
    trunks: Path | None,
) -> None:
    """Train one run, or a pack, in a worker process of the local pool; leave with an exit code.

    Parameters
    ----------
    run_paths : sequence of Path
        Folders of the runs; several share every step. What is printed goes to the first one's log.
    dataset : Path
        Folder of their tokens.
    execution : ExecutionSpec
        How to execute it.
    slot : int or str
        The CPU core to stay on, or the GPU to see.
    lifeline : Connection
        Closed when the launcher is gone: the worker then saves a checkpoint and ends, so that no
        orphan trains on.
    host_note : Mapping
        Facts that ``attempt.json`` should hold too.
    trunks : Path or None
        Where runs of one trunk leave and find their states.
    """
    # Ctrl-C reaches the whole terminal group; only the launcher answers it, with a SIGTERM to us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _log_to_first([RunDir(path) for path in run_paths])
    if isinstance(slot, int):
        os.sched_setaffinity(0, {slot})
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot

    forget_ranks()

    from scalelab.train.worker import run_batched

    statuses = run_batched(
        run_paths,
        dataset,
        execution,
        host_note=host_note,
        should_stop=_stop_when_orphaned(lifeline, run_paths),
        trunks=trunks,
    )
    sys.exit(max(EXIT_BY_STATUS.get(status, EXIT_FAILED) for status in statuses))


def _log_to_first(runs: Sequence[RunDir]) -> None:
    """Let what is printed go to the log of the first of some runs; the others' logs say so."""
    for run in runs[1:]:
        _log_to(run.path / LOG_FILE)
        print(f"scalelab: packed with {runs[0].run_id}; see its log", flush=True)
    _log_to(runs[0].path / LOG_FILE)


def _log_to(path: Path) -> None:
    """Append what this process and its libraries print to a file."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)


def _stop_when_orphaned(
    lifeline: multiprocessing.connection.Connection, run_paths: Sequence[Path]
) -> Callable[[], str | None]:
    def should_stop() -> str | None:
        # Nothing is ever sent: readable means that the other end was closed.
        gone = "the launcher is gone" if lifeline.poll() else None
        return _why_cancelled(run_paths) or gone

    return should_stop


def work_on_slurm(sweep_path: str, intent_id: str, time_min: int) -> None:
    """Train the runs of one array element, one after the other or several in a step.

    The verdict comes first: a job whose submission the launcher gave up for lost leaves at once.
    USR2 brings a checkpoint forward and the run goes on (SLURM may send it a minute early); SIGTERM
    and the end of the time limit stop it after a checkpoint. The queue is never asked: who is
    submitted again is the launcher's to say. Of the tasks of a run on several GPUs the first does
    all this, and the others follow it.

    Parameters
    ----------
    sweep_path : str
        Folder of the sweep.
    intent_id : str
        Which array this is; the element is in ``SLURM_ARRAY_TASK_ID``.
    time_min : int
        Time limit of the job, minutes.
    """
    n_tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if n_tasks == 1:
        forget_ranks()
    elif export_ranks() > 0:
        follow_the_first(Path(sweep_path), intent_id)
        return

    from scalelab.train.sharded.ranks import BrokenGroupError

    stop_s = time.monotonic() + 60 * time_min - min(END_MARGIN_S, END_MARGIN_SHARE * 60 * time_min)
    sweep = Path(sweep_path)
    job, index = os.environ["SLURM_ARRAY_JOB_ID"], int(os.environ["SLURM_ARRAY_TASK_ID"])
    with _noting_signals() as heard:
        verdict = settle(sweep / "intents" / intent_id, f"started {job}")
        if verdict != f"started {job}":
            print(f"scalelab: job {job} is not the one that counts: {verdict}", file=sys.stderr)
            sys.exit(EXIT_STOPPED if n_tasks > 1 else 0)
        pack = read_job_group(sweep, intent_id, index)
        results = Results(sweep.parent.parent)
        note = {"intent": intent_id, "pack_index": index, **source_note(results.path)}
        trunks = results.trunks if len(pack.run_ids) > 1 else None
        streams = os.dup(1), os.dup(2)
        has_stopped = is_broken = False
        alone = [[run_id] for run_id in pack.run_ids]
        for group in (
            alone if n_tasks > 1 else batched_groups(pack.run_ids, results, pack.execution)
        ):
            runs = [results.run(run_id) for run_id in group]
            statuses = ["failed"] * len(group)
            try:
                _log_to_first(runs)
                statuses = _work_on_runs(runs, results, pack.execution, note, heard, stop_s, trunks)
            except (OSError, ScalelabError) as error:
                # A folder removed or edited by hand; its companions in the job go on.
                print(f"scalelab: {error}", file=sys.stderr, flush=True)
            except BrokenGroupError as error:
                is_broken = True
                print(f"scalelab: {error.__cause__}", file=sys.stderr, flush=True)
            finally:
                for stream, saved in zip((1, 2), streams, strict=True):
                    os.dup2(saved, stream)
            for run_id, status in zip(group, statuses, strict=True):
                print(f"scalelab: run {run_id} {status}", flush=True)
            has_stopped = has_stopped or "preempted" in statuses
            if is_broken or "SIGTERM" in heard or time.monotonic() >= stop_s:
                break
        if n_tasks > 1 and not is_broken:
            dismiss_others(pack.execution)
            exit_directly(EXIT_STOPPED if has_stopped else 0)
    if is_broken:
        sys.exit(EXIT_FAILED)
    if has_stopped:
        sys.exit(EXIT_STOPPED)


def _work_on_runs(
    runs: Sequence[RunDir],
    results: Results,
    execution: ExecutionSpec,
    note: Mapping[str, Any],
    heard: list[str],
    stop_s: float,
    trunks: Path | None,
) -> list[str]:
    """Train runs that share their steps, or one, until each has ended or the job must."""
    statuses = dict.fromkeys(runs, "preempted")
    left = [run for run in runs if not _is_cancelled(run)]

    def should_stop() -> str | None:
        if "SIGTERM" in heard:
            return "received SIGTERM"
        if time.monotonic() >= stop_s:
            return TIME_LIMIT_REASON
        return _why_cancelled([run.path for run in left])

    while left and should_stop() is None:
        from scalelab.train.worker import run_batched

        found = run_batched(
            [run.path for run in left],
            results.dataset(left[0].read_spec().data_fingerprint),
            execution,
            host_note=note,
            should_stop=should_stop,
            trunks=trunks,
        )
        statuses |= dict(zip(left, found, strict=True))
        reasons = {run: _stop_reason(run, note) for run in left if statuses[run] == "preempted"}
        if any("SIGTERM" in reason for reason in reasons.values()):
            heard.append("SIGTERM")
        goes_on = [run for run, reason in reasons.items() if reason and "SIGTERM" not in reason]
        left = [run for run in goes_on if not _is_cancelled(run)]
    return [statuses[run] for run in runs]


def _is_cancelled(run: RunDir) -> bool:
    return (run.path / CANCELLED_FILE).exists()


def _why_cancelled(run_paths: Sequence[Path]) -> str | None:
    """Return the reason to stop runs that share their steps when one of them was cancelled."""
    cancelled = [path.name for path in run_paths if (path / CANCELLED_FILE).exists()]
    if not cancelled:
        return None
    return CANCELLED_REASON if len(run_paths) == 1 else f"{', '.join(cancelled)} {OF_THE_PACK}"


def _stop_reason(run: RunDir, note: Mapping[str, Any]) -> str:
    """Return why this process stopped a run, empty where it goes on no more.

    After a hint it goes on, and so it does when a companion was cancelled.
    """
    own = run.attempts()[-1].read_note()
    reason = str((own.get("ended") or {}).get("reason"))
    is_passing = "SIGUSR2" in reason or OF_THE_PACK in reason
    if "SIGTERM" in reason or (is_passing and _is_own(own, note)):
        return reason
    return ""


def _is_own(attempt_note: Mapping[str, Any], note: Mapping[str, Any]) -> bool:
    keys = ("intent", "pack_index")
    return all(attempt_note.get(key) == note[key] for key in keys) and (
        attempt_note.get("pid") == os.getpid()
    )


@contextlib.contextmanager
def _noting_signals() -> Iterator[list[str]]:
    """Give the list of stop signals heard; while a run is trained, the trainer hears them."""
    heard: list[str] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(signal.Signals(number).name)

    numbers = (signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def calibrate() -> None:
    """Measure this process's training speed: a JSON request on stdin, the answer on stdout.

    The request holds ``slot`` (a core, or None), ``execution``, ``specs`` (runs whose own steps are
    timed), ``is_packed`` (of each, whether packs of it are timed too), ``is_general`` (whether the
    general points are measured) and ``seconds`` for each measurement.
    """
    request = json.load(sys.stdin)
    if request["slot"] is not None:
        os.sched_setaffinity(0, {request["slot"]})

    from scalelab.train.calibrate import WIDTHS, measure_batched_runs, measure_run, measure_speed

    execution = build(ExecutionSpec, request["execution"])
    widths = WIDTHS if request["is_general"] else ()
    answer = measure_speed(execution, widths=widths, seconds_per_point=request["seconds"])
    answer["exact"] = []
    for content, is_packed in zip(request["specs"], request["is_packed"], strict=True):
        spec = dataclasses.replace(run_spec_from_mapping(content), n_steps=TIMED_STEPS_MAX)
        point = measure_run(spec, execution, request["seconds"])
        gains = measure_batched_runs(spec, execution, request["seconds"]) if is_packed else {}
        answer["exact"].append({**point, "batching_gains": gains})
    json.dump(answer, sys.stdout)

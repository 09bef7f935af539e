"""What a job runs: one attempt at one run, from the folder's spec to the accepted record.

`run_attempt` may be called in a fresh process, in a forked one with torch loaded, or in place. It
writes only into the run's folder. Status words are those of `scalelab.records.types.RUN_STATUSES`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from scalelab.corpus.dataset import open_dataset
from scalelab.errors import DataError
from scalelab.records.run_dir import RunDir
from scalelab.sweep.run_spec import ExecutionSpec
from scalelab.train import direct
from scalelab.train.attention import MEASURED, fastest_attention
from scalelab.train.engine import Engine
from scalelab.train.loop import train
from scalelab.train.session import Session

BEGUN_FIELDS = ("step", "kernels", "attention")
"""Of the execution, what a run keeps to the end because its bits depend on it."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""SLURM and submitit announce the end of an allocation by these."""


def run_attempt(
    run_path: Path,
    dataset_path: Path,
    execution: ExecutionSpec,
    *,
    host_note: Mapping[str, Any] | None = None,
    should_stop: Callable[[], str | None] | None = None,
    trunks: Path | None = None,
) -> str:
    """Make one attempt at a run and return how it ended.

    Parameters
    ----------
    run_path : Path
        Folder of the run, with its ``spec.json``; named by the run's id.
    dataset_path : Path
        Folder of the tokens.
    execution : ExecutionSpec
        How to execute the steps.
    host_note : Mapping
        Facts of the launcher that ``attempt.json`` should hold too.
    should_stop : Callable
        Asked a few times a second; a text is the reason to checkpoint and end as preempted. SIGTERM
        and SIGUSR2 do the same.
    trunks : Path
        Folder where runs of one trunk leave and find their states; None keeps to the run's own.

    Returns
    -------
    str
        ``done`` or ``diverged`` (recorded), ``preempted`` (go on later) or ``failed`` (the reason
        is in ``attempt.json``). A run that was accepted before is not trained again.
    """
    (status,) = run_pack(
        [run_path],
        dataset_path,
        execution,
        host_note=host_note,
        should_stop=should_stop,
        trunks=trunks,
    )
    return status


def run_ladder(
    run_paths: Sequence[Path],
    dataset_path: Path,
    execution: ExecutionSpec,
    *,
    trunks: Path,
    host_note: Mapping[str, Any] | None = None,
    should_stop: Callable[[], str | None] | None = None,
) -> tuple[str, ...]:
    """Train the branches of a trunk one after the other, the shortest first; return how each ended.

    Every branch begins where the one before left the trunk. Once a branch is preempted, the longer
    ones are not begun and count as preempted too. Arguments as in `run_attempt`.
    """
    runs = {path: RunDir(path.resolve()).read_spec() for path in run_paths}
    statuses: dict[Path, str] = {}
    for path in sorted(runs, key=lambda path: runs[path].n_steps):
        if "preempted" in statuses.values():
            statuses[path] = "preempted"
            continue
        statuses[path] = run_attempt(
            path,
            dataset_path,
            execution,
            host_note=host_note,
            should_stop=should_stop,
            trunks=trunks,
        )
    return tuple(statuses[path] for path in run_paths)


def run_pack(
    run_paths: Sequence[Path],
    dataset_path: Path,
    execution: ExecutionSpec,
    *,
    host_note: Mapping[str, Any] | None = None,
    should_stop: Callable[[], str | None] | None = None,
    trunks: Path | None = None,
) -> tuple[str, ...]:
    """Make one attempt at each of several runs that share a step; return how each ended.

    The runs have one shape, sequence length, batch, optimizer and precision; seeds, learning rates
    and other constants, lengths and progress may differ. Each keeps its own claim, curve,
    checkpoints and record, and none depends on its companions: a run that ends or diverges leaves
    the pack, and the others go on in a smaller one. Arguments as in `run_attempt`.
    """
    runs = [RunDir(path.resolve()) for path in run_paths]
    statuses: dict[RunDir, str] = {}
    for run in runs:
        accepted = run.accept_finished()
        if accepted is not None and (record := accepted.read_record()) is not None:
            statuses[run] = record.status
    todo = [run for run in runs if run not in statuses]
    execution = replace(possible_execution(todo, execution), pack_size=max(len(todo), 1))
    with torch_switches(execution):
        note = {**(host_note or {}), "companions": [run.run_id for run in todo]}
        if todo and execution.attention == MEASURED:
            path, times = fastest_attention(todo[0].read_spec(), execution, len(todo))
            execution = replace(execution, attention=path)
            note["attention_ms"] = times
        sessions = [Session(run, execution, note, trunks) for run in todo]
        try:
            _train_all(sessions, dataset_path, should_stop)
        except Exception as error:
            for session in sessions:
                if session.status is None:
                    session.fail(error)
    for session in sessions:
        statuses[session.run] = session.status or "failed"
    return tuple(statuses[run] for run in runs)


def possible_execution(runs: Sequence[RunDir], execution: ExecutionSpec) -> ExecutionSpec:
    """Return how the runs are executed: as asked, but as they were begun where they go on.

    A run that goes on from a checkpoint keeps the step, the operations and the attention of the
    attempt that wrote it, so that a change of the defaults changes no bit of it. ``direct`` becomes
    ``eager`` for models whose gradients are not written out.
    """
    for run in runs:
        for found in run.checkpoints()[:1]:
            (writer,) = (a for a in run.attempts() if a.number == found.attempt)
            begun = writer.read_note().get("execution") or {}
            if begun.get("device") == execution.device:
                kept = {name: begun[name] for name in BEGUN_FIELDS if name in begun}
                execution = replace(execution, **kept)
    if execution.step == "direct" and not all(
        direct.is_possible(run.read_spec(), execution) for run in runs
    ):
        return replace(execution, step="eager")
    return execution


def _train_all(
    sessions: Sequence[Session],
    dataset_path: Path,
    should_stop: Callable[[], str | None] | None,
) -> None:
    dataset = open_dataset(dataset_path)
    states: dict[str, Any] = {}
    for session in sessions:
        try:
            session.use(dataset)
        except DataError as error:
            session.fail(error)
            continue
        states[session.run.run_id] = session.restore()
    with listening_for_signals() as signalled:
        while active := [session for session in sessions if session.status is None]:
            engine = Engine([session.spec for session in active], active[0].execution)
            for index, session in enumerate(active):
                state = states[session.run.run_id]
                if state is None:
                    engine.initialize(index)
                else:
                    engine.load_state(index, state)
            train(engine, active, lambda: signalled() or (should_stop and should_stop()) or None)
            states = {
                session.run.run_id: engine.state(index)
                for index, session in enumerate(active)
                if session.status is None
            }


@contextlib.contextmanager
def torch_switches(execution: ExecutionSpec) -> Iterator[None]:
    """Set the process-wide switches that the numbers depend on, and set them back."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(execution.n_threads)
    # Moments of rarely used weights decay into denormals, which are 100 times slower on a CPU.
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(n_threads)


@contextlib.contextmanager
def listening_for_signals() -> Iterator[Callable[[], str | None]]:
    """Give a function that names the stop signal received so far, or None.

    Outside the main thread signals cannot be heard, and stopping is the caller's.
    """
    heard: list[str] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(signal.Signals(number).name)

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, hear) for number in STOP_SIGNALS} if is_main else {}
    try:
        yield lambda: f"received {heard[0]}" if heard else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

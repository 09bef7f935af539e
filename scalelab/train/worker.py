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

from scalelab.corpus.dataset import open_dataset
from scalelab.errors import DataError, ScalelabError
from scalelab.records.run_dir import RunDir
from scalelab.sweep.run_spec import ExecutionSpec, RunSpec
from scalelab.train.attention import MEASURED, fastest_attention
from scalelab.train.direct import step as direct
from scalelab.train.engine import Engine
from scalelab.train.loop import RunsEngine, train
from scalelab.train.micro_batch import fitting_execution, is_out_of_memory, smaller_micro_batch
from scalelab.train.session import Session
from scalelab.train.sharded.ranks import BrokenGroupError, RanksLostError, own_ranks
from scalelab.train.switches import torch_switches

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
    (status,) = run_batched(
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


def run_batched(
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
    ranks = own_ranks()
    if ranks.rank:
        from scalelab.train.sharded.group import follow

        return follow(execution) or ("preempted",) * len(run_paths)
    runs = [RunDir(path.resolve()) for path in run_paths]
    statuses: dict[RunDir, str] = {}
    for run in runs:
        accepted = run.accept_finished()
        if accepted is not None and (record := accepted.read_record()) is not None:
            statuses[run] = record.status
    todo = [run for run in runs if run not in statuses]
    while todo:
        sessions, smaller = _attempt(todo, dataset_path, execution, host_note, should_stop, trunks)
        statuses |= {session.run: session.status or "failed" for session in sessions}
        todo = [run for run in todo if smaller is not None and statuses[run] == "failed"]
        execution = smaller or execution
    found = tuple(statuses[run] for run in runs)
    if ranks.n_ranks > 1:
        from scalelab.train.sharded.group import end_run

        end_run(found, execution)
    return found


def _attempt(
    runs: Sequence[RunDir],
    dataset_path: Path,
    execution: ExecutionSpec,
    host_note: Mapping[str, Any] | None,
    should_stop: Callable[[], str | None] | None,
    trunks: Path | None,
) -> tuple[list[Session], ExecutionSpec | None]:
    """Attempt runs in one step; return their sessions, and how to try what ran out of memory.

    Raises
    ------
    BrokenGroupError
        When the run was spread over several processes and it, or one of them, failed.
    """
    execution = possible_execution(runs, execution)
    specs = [run.read_spec() for run in runs]
    is_spread = execution.n_devices > 1
    smaller: ExecutionSpec | None = None
    with torch_switches(execution):
        note = {**(host_note or {}), "companions": [run.run_id for run in runs]}
        if execution.attention == MEASURED:
            path, times = fastest_attention(specs[0], execution, len(runs))
            execution = replace(execution, attention=path)
            note["attention_ms"] = times
        if execution.device == "cuda" and not is_spread:
            execution = fitting_execution(specs, execution)
        sessions = [Session(run, execution, note, trunks) for run in runs]
        try:
            _train_all(sessions, dataset_path, should_stop)
        except Exception as error:
            if is_out_of_memory(error):
                smaller = smaller_micro_batch(
                    execution, specs[0].batch_seqs // execution.n_data_parallel
                )
            for session in sessions:
                if session.status is not None:
                    continue
                if isinstance(error, RanksLostError):
                    session.end("preempted", f"{type(error).__name__}: {error}")
                else:
                    session.fail(error)
            if is_spread and not isinstance(error, ScalelabError):
                raise BrokenGroupError from error
    return sessions, smaller


def possible_execution(runs: Sequence[RunDir], execution: ExecutionSpec) -> ExecutionSpec:
    """Return how the runs are executed: as asked, but as they were begun where they go on.

    A run that goes on from a checkpoint keeps the step, the operations and the attention of the
    attempt that wrote it, so that a change of the defaults changes no bit of it; its micro-batch
    may become smaller, where memory ran out, and never larger. At one sequence a run on several
    devices computes activations again instead of keeping them. ``direct`` becomes ``eager`` for
    models whose gradients are not written out and over several devices.
    """
    n_ranks = own_ranks().n_ranks
    execution = replace(execution, batched_runs=len(runs), n_devices=n_ranks)
    for run in runs:
        begun = run.begun_execution()
        if begun.get("device") == execution.device:
            kept = {name: begun[name] for name in BEGUN_FIELDS if name in begun}
            sizes = (execution.micro_batch_seqs, begun.get("micro_batch_seqs", 0))
            micro = min((size for size in sizes if size), default=0)
            execution = replace(execution, **kept, micro_batch_seqs=micro)
    if n_ranks > 1:
        is_short = execution.micro_batch_seqs == 1
        return replace(execution, step="eager", recomputes_blocks=is_short)
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
            engine = _engine([session.spec for session in active], active[0].execution)
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


def _engine(specs: Sequence[RunSpec], execution: ExecutionSpec) -> RunsEngine:
    """Return what takes the steps: this process's device, or all ranks together."""
    if execution.n_devices == 1:
        return Engine(specs, execution)
    from scalelab.train.sharded.group import GroupEngine

    (spec,) = specs
    return GroupEngine(spec, execution)


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

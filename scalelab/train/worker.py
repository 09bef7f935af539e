"""One attempt at one or more batched runs, from the spec in the run folder to the accepted record.

`run_batched` works in a new process, in a forked one with torch loaded, or in the caller's. It
writes only into the run folders. Its statuses are in `scalelab.records.states.FILE_STATES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scalelab.corpus.mixed import open_data
from scalelab.errors import DataError, ScalelabError, UsageError
from scalelab.records.machine import listening_for_signals
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec, QualifyRequest, planned_execution
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.engine import Engine
from scalelab.train.execution import (
    fitting_execution,
    is_out_of_memory,
    smaller_micro_batch,
)
from scalelab.train.host import torch_settings
from scalelab.train.loop import RunsEngine, train
from scalelab.train.precision import has_fast_bf16, require_precision_here
from scalelab.train.qualify.attempt import attempt_execution
from scalelab.train.qualify.measure import StoppedError
from scalelab.train.session import Session
from scalelab.train.sharded.ranks import BrokenGroupError, RanksLostError, own_ranks

SLOW_BF16 = (
    "this CPU multiplies bf16 matrices slowly: the direct step takes longer than the eager one, "
    "and its bits can differ from those of a CPU with AMX"
)
"""Warning of a run that was asked to take, or began with, the direct step in bf16."""


def run_batched(
    run_paths: Sequence[Path],
    dataset_path: Path,
    execution: ExecutionSpec,
    *,
    host_note: Mapping[str, Any] | None = None,
    should_stop: Callable[[], str | None] | None = None,
    trunks: Path | None = None,
    qualify: QualifyRequest | None = None,
) -> tuple[str, ...]:
    """Make one attempt at each of several batched runs and return how each ended.

    The runs have the same shape, sequence length, batch, optimizer and precision. Seeds, learning
    rates, other constants, lengths and progress can differ. Each run has its own claim, curve,
    checkpoints and record. When a run ends or diverges, the others continue without it, with the
    same bits.

    Parameters
    ----------
    run_paths : sequence of Path
        Run folders, each with its ``spec.json`` and named by the run's id.
    dataset_path : Path
        Folder of the tokens.
    execution : ExecutionSpec
        How to execute the steps. ``step``, ``kernels`` and ``attention`` may be ``auto``.
    host_note : Mapping
        Facts of the launcher to add to ``attempt.json``.
    should_stop : Callable
        Called a few times a second. If it returns a text, the runs save a checkpoint and end as
        preempted, with that text as the reason. SIGTERM and SIGUSR2 do the same.
    trunks : Path
        Folder in which the runs of a trunk share their states (`scalelab.train.trunk`); None
        disables sharing.
    qualify : QualifyRequest
        Where the workers of the sweep keep what they found out about this GPU, and at which shapes
        they check it; None keeps it in the user's cache and uses the shape of these runs.

    Returns
    -------
    tuple of str
        For each run ``done`` or ``diverged`` (recorded), ``preempted`` (resume later) or ``failed``
        (the reason is in ``attempt.json``). A run that was accepted before is not trained again.
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
        sessions, smaller = _attempt(
            todo, dataset_path, execution, host_note, should_stop, trunks, qualify
        )
        statuses |= {session.run: session.status or "failed" for session in sessions}
        todo = [run for run in todo if smaller is not None and statuses[run] == "failed"]
        if smaller is not None:
            execution = replace(execution, micro_batch_seqs=smaller.micro_batch_seqs)
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
    qualify: QualifyRequest | None,
) -> tuple[list[Session], ExecutionSpec | None]:
    """Attempt runs together; return their sessions, and a smaller execution if memory ran out.

    Raises
    ------
    BrokenGroupError
        When a run on several processes failed, or one of its processes did.
    """
    specs = [run.read_spec() for run in runs]
    note = {**(host_note or {}), "companions": [run.run_id for run in runs]}
    request = execution
    try:
        require_precision_here(specs[0], execution.device)
        execution, chosen = attempt_execution(runs, request, qualify, should_stop)
    except (UsageError, StoppedError) as error:
        # The attempt ends before it begins; its note says why.
        planned = planned_execution(request, specs[0])
        sessions = [Session(run, planned, note, trunks) for run in runs]
        for session in sessions:
            if isinstance(error, StoppedError):
                session.end("preempted", str(error))
            else:
                session.fail(error)
        return sessions, None
    if chosen:
        note["qualification"] = chosen
    is_sharded = execution.n_devices > 1
    smaller: ExecutionSpec | None = None
    with torch_settings(execution):
        if execution.device == "cuda" and not is_sharded:
            execution = fitting_execution(specs, execution)
        sessions = [Session(run, execution, note, trunks) for run in runs]
        if execution.step == "direct" and specs[0].precision == "bf16" and not has_fast_bf16():
            for session in sessions:
                session.warn(SLOW_BF16)
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
            if is_sharded and not isinstance(error, ScalelabError):
                raise BrokenGroupError from error
    return sessions, smaller


def _train_all(
    sessions: Sequence[Session],
    dataset_path: Path,
    should_stop: Callable[[], str | None] | None,
) -> None:
    dataset = open_data(dataset_path)
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
    """Return an engine for this process's device, or one for all ranks."""
    if execution.n_devices == 1:
        return Engine(specs, execution)
    from scalelab.train.sharded.group import GroupEngine

    (spec,) = specs
    return GroupEngine(spec, execution)

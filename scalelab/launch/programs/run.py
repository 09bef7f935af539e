"""Train one run with a user's program: attempts until it has a result or may not be repeated.

The counterpart of `scalelab.train.worker.run_batched`; it needs no torch. Each attempt is in
`scalelab.launch.programs.attempt`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scalelab.launch.programs.attempt import ProgramAttempt
from scalelab.launch.programs.failures import OUT_OF_MEMORY, RetryRule
from scalelab.records.machine import listening_for_signals
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.program_render import used_placeholders


def run_program(
    run_path: Path,
    execution: ExecutionSpec,
    *,
    dataset: Path | None = None,
    host_note: Mapping[str, Any] | None = None,
    should_stop: Callable[[], str | None] | None = None,
) -> str:
    """Train a run with its program and return how it ended.

    Parameters
    ----------
    run_path : Path
        Run folder, with its ``spec.json`` and named by the run's id.
    execution : ExecutionSpec
        With the execution of the program.
    dataset : Path, optional
        Folder of prepared tokens for the placeholders ``{train_data}`` and ``{eval_data}``.
    host_note : Mapping
        Facts of the launcher to add to ``attempt.json``; ``sweep`` is the name of the sweep and
        ``deadline_s`` the Unix time at which the worker will stop the program.
    should_stop : Callable
        Called several times a second. If it returns a text, the program gets its stop signal and
        the attempt ends as preempted. SIGTERM and SIGUSR2 do the same.

    Returns
    -------
    str
        ``done`` or ``diverged`` (recorded), ``preempted`` (resume later) or ``failed`` (the reason
        is in ``attempt.json``). A run that was accepted before is not started again.
    """
    run = RunDir(run_path.resolve())
    accepted = run.accept_finished()
    if accepted is not None and (record := accepted.read_record()) is not None:
        return record.status
    rule, start = RetryRule(), "resume"
    with listening_for_signals() as signalled:

        def stop_reason() -> str | None:
            return signalled() or (should_stop() if should_stop is not None else None)

        while True:
            attempt = ProgramAttempt(
                run, execution, host_note or {}, dataset, stop_reason, is_fresh=start == "fresh"
            )
            ending = attempt.make()
            print(f"scalelab: attempt {attempt.attempt.number}: {ending.status}", flush=True)
            if ending.reason:
                print(f"scalelab: {ending.reason}", flush=True)
            if ending.status != "failed" or stop_reason() is not None:
                return ending.status
            if ending.kind == OUT_OF_MEMORY and (smaller := _smaller_micro_batch(attempt)):
                execution, start = replace(execution, micro_batch_seqs=smaller), "resume"
                continue
            start = rule.next_start(ending.kind, attempt.checkpoint_step)
            if start == "none":
                return ending.status


def _smaller_micro_batch(attempt: ProgramAttempt) -> int:
    """Return half the micro-batch if the command uses it and it can be halved, else 0."""
    spec, execution = attempt.spec, attempt.execution
    assert spec.program is not None
    used = used_placeholders(spec.program, attempt.program)
    share = spec.batch_seqs // execution.n_devices
    micro = execution.micro_batch_seqs or share
    is_used = not used.isdisjoint(("micro_batch_seqs", "grad_accum"))
    return micro // 2 if is_used and micro % 2 == 0 else 0

"""One attempt of a user's program at one run: start, follow, stop, and record how it ended."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scalelab.errors import ScalelabError, UsageError
from scalelab.launch.devices import gpu_names
from scalelab.launch.programs.checkpoints import (
    FRESH_START,
    CheckpointPattern,
    clone,
    newest_checkpoint,
    out_dir_of,
    remove_checkpoints,
    wall_s_at,
)
from scalelab.launch.programs.curve import ProgramCurve
from scalelab.launch.programs.data import PreparedData, place_of, prepared_data
from scalelab.launch.programs.environment import own_variables, program_environment
from scalelab.launch.programs.failures import (
    DIVERGED,
    EARLY_EXIT,
    EXCEPTION,
    HUNG,
    INFRASTRUCTURE,
    NO_RESULT,
    OUTSIDE_SIGNALS,
    TIMEOUT,
    USAGE,
    Ending,
    code_words,
    failure_kind,
    output_tail,
    with_tail,
)
from scalelab.launch.programs.launcher import (
    devices_of,
    end_step,
    ignored_signals,
    is_step,
    launched,
)
from scalelab.launch.programs.logs import output_of
from scalelab.launch.programs.output import OwnOutput, ProgramOutput
from scalelab.launch.programs.process import (
    ENDED_FILE,
    ProcessTree,
    kill_all_of,
    unproven_end,
)
from scalelab.launch.programs.result import ProgramResult, record_of, result_of, size_problem
from scalelab.launch.programs.watch import CheckpointWatch
from scalelab.records.attempt_note import first_note
from scalelab.records.machine import cpu_name
from scalelab.records.run_dir import PROGRAM_OUTPUT_FILE, Attempt, RunDir, end_of
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.program import ProgramExecution
from scalelab.sweep.program_render import Place, rendered, used_placeholders, values
from scalelab.sweep.run_spec import RunSpec
from scalelab.units import plural

POLL_S = 0.1
FENCE_INTERVAL_S = 1.0
CHECKPOINT_INTERVAL_S = 2.0
ASKED_WAIT_S = 0.5
"""Seconds in which a stop request may follow the signal that the program got directly."""
FENCED = Ending(status="preempted", reason="a newer attempt has claimed the run")
NOT_ENDED = "processes of the program do not end, although they were killed"


class ProgramAttempt:
    """A running attempt; the constructor claims the run.

    Parameters
    ----------
    run : RunDir
    execution : ExecutionSpec
        With the execution of the program.
    host_note : Mapping
        Facts of the launcher; ``sweep`` and ``deadline_s`` are used here.
    dataset : Path or None
        Folder of prepared tokens, for a program that declares no data of its own.
    stop_reason : Callable
        Returns why the attempt must stop, or None.
    is_fresh : bool
        Whether to leave the earlier checkpoints.
    """

    def __init__(
        self,
        run: RunDir,
        execution: ExecutionSpec,
        host_note: Mapping[str, Any],
        dataset: Path | None,
        stop_reason: Callable[[], str | None],
        *,
        is_fresh: bool = False,
    ) -> None:
        assert execution.program is not None, "a run of a program needs its execution"
        self.run = run
        self.spec: RunSpec = run.read_spec()
        self.execution = execution
        self.program: ProgramExecution = execution.program
        self.dataset = dataset
        self.data = PreparedData()
        self.stop_reason = stop_reason
        self.attempt: Attempt = run.claim()
        name = next(iter(gpu_names()), "") if execution.device == "cuda" else cpu_name()
        self.curve = ProgramCurve(self.attempt, self.spec, execution.n_devices, name)
        self.note = first_note(
            self.attempt, self.spec, execution, host_note, device_name=name, versions={}
        )
        if is_fresh:
            self.note[FRESH_START] = True
        self.attempt.write_note(self.note)
        self.out_dir = out_dir_of(self.attempt, in_place=self.program.in_place)
        self.output_path = self.attempt.path / PROGRAM_OUTPUT_FILE
        self.started_s = time.monotonic()
        self.earlier_wall_s = 0.0
        self._watch: CheckpointWatch | None = None

    @property
    def checkpoint_step(self) -> int | None:
        """Step of the newest checkpoint, None without one."""
        newest = None if self._watch is None else self._watch.newest
        return None if newest is None else newest.step

    def make(self) -> Ending:
        """Make the attempt, record how it ended and return it."""
        try:
            ending = self._make()
        except (OSError, ScalelabError) as error:
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, OSError):
                ending = Ending(status="preempted", kind=INFRASTRUCTURE, reason=reason)
            else:
                kind = USAGE if isinstance(error, UsageError) else EXCEPTION
                ending = Ending(status="failed", kind=kind, reason=reason)
        if self.note.get("ended") is None:
            self._end(ending)
        return ending

    def _make(self) -> Ending:
        if self.program.in_place and (reason := unproven_end(self.attempt, self.stop_reason)):
            return Ending(status="preempted", kind=INFRASTRUCTURE, reason=reason)
        self.out_dir.mkdir(parents=True, exist_ok=True)
        self.data = prepared_data(self.dataset, self.spec)
        sweep = str(self.note.get("sweep") or "")
        place = place_of(self.attempt, self.out_dir, self.execution, self.data, sweep)
        found = values(self.spec, self.program, place)
        pattern = CheckpointPattern(self.program.checkpoint, found)
        watch = CheckpointWatch(self.attempt, pattern, in_place=self.program.in_place)
        self._watch = watch
        if ending := self._finished_before():
            return ending
        place = self._with_checkpoint(place, watch)
        command = rendered(self.spec, self.program, place)
        for name, text in command.files.items():
            path = self.out_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        self.note["command"] = list(command.argv)
        self.attempt.write_note(self.note)
        output = output_of(self.attempt, self.out_dir, self.spec)
        devices = devices_of(self.execution.n_devices)
        argv = launched(command.argv, self.program, devices, self.attempt.token)
        is_a_step = is_step(self.program, devices)
        own = own_variables(self.attempt, place, self.note.get("deadline_s"))
        environment = program_environment(self.program, command.env, own, is_step=is_a_step)
        print(f"scalelab: attempt {self.attempt.number}: output in {self.output_path}", flush=True)
        cwd = self.program.cwd or str(self.out_dir)
        ignored = () if is_a_step else ignored_signals(self.program)
        tree = ProcessTree(argv, environment, cwd, self.output_path, ignored=ignored)
        try:
            ending, asked, hung = self._follow(tree, output, watch)
        finally:
            tree.close()
            has_ended = tree.has_ended and (not is_a_step or end_step(self.attempt.token))
            if has_ended:
                (self.attempt.path / ENDED_FILE).touch()
        watch.look(self.note, self._wall_s(), is_last=True)
        if not has_ended:
            return Ending(status="preempted", kind=INFRASTRUCTURE, reason=NOT_ENDED)
        if ending is None:
            ending = self._observe(output, is_last=True) or self._ending(tree, output, asked, hung)
        return self._diverged(ending.reason) if ending.status == "diverged" else ending

    def _follow(
        self, tree: ProcessTree, output: ProgramOutput, watch: CheckpointWatch
    ) -> tuple[Ending | None, str, str]:
        """Follow the program to the end of its processes.

        Returns
        -------
        ending : Ending or None
            How the attempt ended, if that was decided while the program ran.
        asked, hung : str
            Why it was asked to stop, by the launcher or because it showed nothing; or empty.
        """
        asked, hung, kill_at_s = "", "", math.inf
        fenced_s = checkpoint_s = active_s = time.monotonic()
        idle_s = 60 * self.program.idle_min or math.inf
        size = -1
        while not tree.wait(POLL_S):
            now_s = time.monotonic()
            if ending := self._observe(output):
                return ending, "", ""
            if now_s - fenced_s >= FENCE_INTERVAL_S:
                fenced_s = now_s
                if self.attempt.is_fenced():
                    return FENCED, "", ""
            if now_s - checkpoint_s >= CHECKPOINT_INTERVAL_S:
                watch.look(self.note, self._wall_s())
                checkpoint_s = time.monotonic()
            grown = self.output_path.stat().st_size + (output.last_step or 0)
            if grown != size:
                size, active_s = grown, now_s
            was_stopping = bool(asked or hung)
            asked = asked or self.stop_reason() or ""
            if not asked and now_s - active_s >= idle_s:
                hung = f"no row and no output for {self.program.idle_min:g} minutes"
            if (asked or hung) and not was_stopping:
                tree.ask_to_stop(self.program.stop_signal)
                kill_at_s = now_s + self.program.grace_s
            if now_s >= kill_at_s:
                break
        return None, asked, hung

    def _ending(self, tree: ProcessTree, output: ProgramOutput, asked: str, hung: str) -> Ending:
        """Return what the end of the program means."""
        n_left = tree.n_killed
        if n_left and not asked and not hung:
            self._warn(
                f"{plural(n_left, 'process', 'processes')} of the program ran on after its end; "
                "scalelab killed them"
            )
        if isinstance(output, OwnOutput) and output.n_unreadable:
            lines = plural(output.n_unreadable, "line")
            self._warn(f"{lines} that the program wrote to its metrics cannot be read")
        if self.attempt.is_fenced():
            return FENCED
        newest = None if self._watch is None else self._watch.newest
        result = result_of(self.spec, output, self.out_dir, newest)
        if result.is_complete:
            if tree.code:
                self._warn(f"the program ended with {code_words(tree.code)} after its result")
            return self._record(result)
        tail = output_tail(self.output_path)
        by_signal = tree.code is not None and -tree.code in OUTSIDE_SIGNALS
        if not asked and not hung and (by_signal or tree.code == 0):
            # SLURM sends its signals to every process of a job, in any order.
            ends_s = time.monotonic() + ASKED_WAIT_S
            while not asked and time.monotonic() < ends_s:
                asked = self.stop_reason() or ""
                time.sleep(POLL_S / 4)
        if asked:
            is_limit = "time limit" in asked
            return Ending(status="preempted", kind=TIMEOUT if is_limit else "", reason=asked)
        if hung:
            return Ending(status="failed", kind=HUNG, reason=with_tail(hung, tail))
        words = code_words(tree.code)
        has_row = self.curve.has_row or output.final is not None
        is_resumed = self.note["resumed_from"] is not None
        kind = failure_kind(tree.code, tail, has_row=has_row, is_resumed=is_resumed)
        if kind == EARLY_EXIT and result.is_at_end:
            kind = NO_RESULT
        status = "preempted" if kind == INFRASTRUCTURE else "failed"
        sentence = f"the program ended with {words}: {result.problem}"
        return Ending(status=status, kind=kind, reason=with_tail(sentence, tail))

    def _observe(self, output: ProgramOutput, *, is_last: bool = False) -> Ending | None:
        """Append new rows to the curve; return the end of the attempt if they decide it."""
        rows = [row for row in output.read(is_last=is_last) if row.step > 0]
        if rows and not self.curve.last_step:
            self._correct_resumed_step(rows[0].step - 1, output)
        if reason := self.curve.add(rows):
            return Ending(status="diverged", kind=DIVERGED, reason=reason)
        if problem := output.problem or size_problem(self.spec, output):
            return Ending(status="failed", kind=NO_RESULT, reason=problem)
        return None

    def _record(self, result: ProgramResult) -> Ending:
        """Write the record of a run that is complete, and accept it."""
        status, reason = "done", None
        if not math.isfinite(result.loss_nats):
            status, reason = "diverged", f"the held-out loss is {result.loss_nats}"
        return self._write_record(status, reason, result)

    def _diverged(self, reason: str) -> Ending:
        return FENCED if self.attempt.is_fenced() else self._write_record("diverged", reason, None)

    def _write_record(
        self, status: str, reason: str | None, result: ProgramResult | None
    ) -> Ending:
        record = record_of(
            self.attempt,
            self.spec,
            status,
            reason,
            result,
            last_step=self.curve.last_step,
            unique_tokens=self.data.unique_tokens or self.program.unique_tokens,
            wall_s=self._wall_s(),
        )
        self.attempt.write_record(record)
        is_accepted = self.attempt.accept()
        if is_accepted and not self.execution.keeps_weights and self._watch is not None:
            remove_checkpoints(self.run, self._watch.pattern, in_place=self.program.in_place)
        kind = "" if status == "done" else DIVERGED
        ending = Ending(status=status, kind=kind, reason=reason or "")
        evals = dict(result.evals) if result is not None else {}
        self._end(ending, is_accepted=is_accepted, **({"evals": evals} if evals else {}))
        return ending

    def _finished_before(self) -> Ending | None:
        """Record the result of the attempt before, if its worker was killed before it could.

        Starting such a run again would train it beyond its end.
        """
        earlier = [other for other in self.run.attempts() if other.number < self.attempt.number]
        source = earlier[-1] if earlier else None
        if source is None or end_of(source.read_note()) or "command" not in source.read_note():
            return None
        out_dir = out_dir_of(source, in_place=self.program.in_place)
        output = output_of(source, out_dir, self.spec)
        rows = output.read(is_last=True)
        result = result_of(self.spec, output, out_dir, None)
        if not result.is_complete:
            return None
        kill_all_of(source.token)
        last = source.last_metrics()
        step = 0 if last is None else last.step
        self.note["resumed_from"] = {"attempt": source.number, "step": step}
        self._warn(f"records the result of attempt {source.number}, whose worker was killed")
        started_s = source.read_note()["started_s"]
        self.earlier_wall_s = max((started_s if last is None else last.time_s) - started_s, 0.0)
        self.curve.resume(self.run, source.number, step)
        if reason := self.curve.add(rows):
            return self._diverged(reason)
        return FENCED if self.attempt.is_fenced() else self._record(result)

    def _with_checkpoint(self, place: Place, watch: CheckpointWatch) -> Place:
        """Return the place with the newest checkpoint, cloned where the command needs it."""
        if self.note.get(FRESH_START) or not self.program.checkpoint:
            return place
        in_place = self.program.in_place
        found = newest_checkpoint(self.run, watch.pattern, in_place=in_place)
        if found is None:
            return place
        self.earlier_wall_s = wall_s_at(self.run, found)
        assert self.spec.program is not None
        is_named = "checkpoint" in used_placeholders(self.spec.program, self.program)
        is_cloned = not in_place and not is_named
        paths = clone(found, self.out_dir) if is_cloned else found.paths
        own = replace(found, attempt=self.attempt.number, paths=paths, out_dir=self.out_dir)
        watch.start_from(own if is_cloned else found, self.earlier_wall_s, is_own=is_cloned)
        self.curve.resume(self.run, found.attempt, found.step)
        self.note["resumed_from"] = {"attempt": found.attempt, "step": found.step}
        self.attempt.write_note(self.note)
        return replace(place, checkpoint=str(paths[0]), checkpoint_step=found.step)

    def _correct_resumed_step(self, step: int, output: ProgramOutput) -> None:
        """Set the step of the resumed checkpoint to that before the first row.

        The name of a checkpoint may not tell its step, and a program may start over. Logs that
        are not written for scalelab may begin with rows of the attempt that was resumed.
        """
        source = self.note["resumed_from"]
        is_named = "{step}" in self.program.checkpoint
        is_lower = step < self.curve.resumed_step and isinstance(output, OwnOutput)
        if source is not None and (is_lower or (not is_named and step != self.curve.resumed_step)):
            source["step"] = self.curve.resumed_step = step
            self.attempt.write_note(self.note)

    def _wall_s(self) -> float:
        return self.earlier_wall_s + time.monotonic() - self.started_s

    def _warn(self, message: str) -> None:
        self.note["warnings"].append({"time_s": time.time(), "message": message})
        self.attempt.write_note(self.note)

    def _end(self, ending: Ending, **extra: Any) -> None:
        """Write to the note how and why the attempt ended."""
        self.note["ended"] = {
            "status": ending.status,
            "kind": ending.kind or None,
            "reason": ending.reason or None,
            "time_s": time.time(),
            **extra,
        }
        with contextlib.suppress(OSError):  # a full disk may have no room for the note
            self.attempt.write_note(self.note)

"""One attempt of a user's program at one run: start, follow, stop, and record how it ended."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scalelab.errors import ScalelabError, UsageError
from scalelab.launch.devices import gpu_names
from scalelab.launch.program_checkpoints import (
    FRESH_START,
    CheckpointPattern,
    ProgramCheckpoint,
    clone,
    newest_checkpoint,
    note_checkpoint,
    out_dir_of,
    remove_checkpoints,
    wall_s_at,
)
from scalelab.launch.program_environment import program_environment
from scalelab.launch.program_failures import (
    DIVERGED,
    EARLY_EXIT,
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
from scalelab.launch.program_launcher import devices_of, end_step, is_step, launched
from scalelab.launch.program_logs import LogOutput
from scalelab.launch.program_output import OwnOutput, ProgramOutput
from scalelab.launch.program_process import TOKEN_VARIABLE, ProcessTree, kill_all_of
from scalelab.launch.program_result import ProgramResult, result_of, size_problem
from scalelab.records.attempt_note import first_note
from scalelab.records.divergence import DivergenceDetector
from scalelab.records.machine import cpu_name
from scalelab.records.run_dir import Attempt, RunDir
from scalelab.records.types import MetricRow, RunRecord
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.program import OWN_READER, ProgramExecution
from scalelab.sweep.program_render import Place, rendered, used_placeholders, values
from scalelab.sweep.run_size import run_size
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.hardware import match_hardware
from scalelab.units import plural

POLL_S = 0.1
FENCE_INTERVAL_S = 1.0
CHECKPOINT_INTERVAL_S = 2.0
ASKED_WAIT_S = 0.5
"""Seconds in which a stop request may follow the signal that the program got directly."""
MOST_NOT_FINITE = 2
"""Rows in a row without a finite loss at which a run has diverged: one may be a skipped step."""
OUTPUT_FILE = "output.txt"
"""Output of the program, in the attempt's folder."""
REPORTED_FILE = "reported.jsonl"
"""Rows that the program writes for scalelab, in the attempt's folder; its curve is made of them."""
ENDED_FILE = "processes-ended"
"""Mark in the attempt's folder that no process of the program is left."""
PROOF_S = 30.0
TERA = 1e12


class ProgramAttempt:
    """A running attempt; the constructor claims the run.

    Parameters
    ----------
    run : RunDir
    execution : ExecutionSpec
        With the execution of the program.
    host_note : Mapping
        Facts of the launcher; ``sweep`` and ``deadline_s`` are used here.
    data : Mapping
        ``train_data`` and ``eval_data`` of prepared tokens, where the program declares none.
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
        data: Mapping[str, str],
        stop_reason: Callable[[], str | None],
        *,
        is_fresh: bool = False,
    ) -> None:
        assert execution.program is not None, "a run of a program needs its execution"
        self.run = run
        self.spec: RunSpec = run.read_spec()
        self.execution = execution
        self.program: ProgramExecution = execution.program
        self.data = data
        self.stop_reason = stop_reason
        self.attempt: Attempt = run.claim()
        self.device_name = next(iter(gpu_names()), "") if execution.device == "cuda" else cpu_name()
        self.note = first_note(
            self.attempt, self.spec, execution, host_note, device_name=self.device_name, versions={}
        )
        if is_fresh:
            self.note[FRESH_START] = True
        self.attempt.write_note(self.note)
        self.out_dir = out_dir_of(self.attempt, in_place=self.program.in_place)
        self.output_path = self.attempt.path / OUTPUT_FILE
        self.started_s = time.monotonic()
        self.earlier_wall_s = 0.0
        self.resumed_step = 0
        self.last_step = 0
        self.checkpoint_step: int | None = None
        self._pattern: CheckpointPattern | None = None
        self._checkpoint_stamp: object = None
        self._noted_stamp: object = None
        self._detector = DivergenceDetector()
        self._n_not_finite = 0
        self._since_rows: tuple[float, int] | None = None

    def make(self) -> Ending:
        """Make the attempt, record how it ended and return it."""
        try:
            ending = self._make()
        except UsageError as error:
            ending = Ending(status="failed", kind=USAGE, reason=f"UsageError: {error}")
        except (OSError, ScalelabError) as error:
            ending = Ending(
                status="failed", kind=INFRASTRUCTURE, reason=f"{type(error).__name__}: {error}"
            )
        if self.note.get("ended") is None:
            self._end(ending)
        return ending

    def _make(self) -> Ending:
        if self.program.in_place and (problem := self._unproven()):
            return Ending(status="preempted", kind=INFRASTRUCTURE, reason=problem)
        self.out_dir.mkdir(parents=True, exist_ok=True)
        place = self._place()
        found = values(self.spec, self.program, place)
        self._pattern = CheckpointPattern(self.program.checkpoint, found)
        place = self._with_checkpoint(place)
        command = rendered(self.spec, self.program, place)
        for name, text in command.files.items():
            path = self.out_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        self.note["command"] = list(command.argv)
        self.attempt.write_note(self.note)
        output: ProgramOutput
        if self.spec.program is not None and self.spec.program.reader != OWN_READER:
            output = LogOutput(self.out_dir, self.output_path, self.spec)
        else:
            output = OwnOutput(Path(place.metrics), self.spec)
        devices = devices_of(self.execution.n_devices)
        argv = launched(command.argv, self.program, devices, self.attempt.token)
        is_a_step = is_step(self.program, devices)
        environment = program_environment(
            self.program, command.env, self._own_variables(place), is_step=is_a_step
        )
        print(f"scalelab: attempt {self.attempt.number}: output in {self.output_path}", flush=True)
        cwd = self.program.cwd or str(self.out_dir)
        tree = ProcessTree(argv, environment, cwd, self.output_path)
        try:
            ending = self._follow(tree, output)
        finally:
            tree.close()
            if tree.has_ended and (not is_a_step or end_step(self.attempt.token)):
                (self.attempt.path / ENDED_FILE).touch()
        self._look_for_checkpoint(is_last=True)
        return ending

    def _follow(self, tree: ProcessTree, output: ProgramOutput) -> Ending:
        """Follow the program to the end of its last process; return how the attempt ended."""
        asked, cause, kill_at_s = "", "", math.inf
        fenced_s = checkpoint_s = active_s = time.monotonic()
        size = -1
        while not tree.wait(POLL_S):
            now_s = time.monotonic()
            if problem := self._observe(output):
                tree.kill()
                return self._ended_by(problem)
            if now_s - fenced_s >= FENCE_INTERVAL_S:
                fenced_s = now_s
                if self.attempt.is_fenced():
                    tree.kill()
                    return Ending(status="preempted", reason="a newer attempt has claimed the run")
            if now_s - checkpoint_s >= CHECKPOINT_INTERVAL_S:
                self._look_for_checkpoint()
                checkpoint_s = time.monotonic()
            grown = self.output_path.stat().st_size + (output.last_step or 0)
            if grown != size:
                size, active_s = grown, now_s
            if not asked and (asked := self.stop_reason() or ""):
                tree.ask_to_stop(self.program.stop_signal)
                kill_at_s = now_s + self.program.grace_s
            idle_s = 60 * self.program.idle_min
            if not asked and not cause and idle_s and now_s - active_s >= idle_s:
                cause = f"no row and no output for {self.program.idle_min:g} minutes"
                tree.ask_to_stop(self.program.stop_signal)
                kill_at_s = now_s + self.program.grace_s
            if now_s >= kill_at_s and not tree.kill():
                return Ending(
                    status="preempted",
                    kind=INFRASTRUCTURE,
                    reason="processes of the program do not end, although they were killed",
                )
        if problem := self._observe(output, is_last=True):
            return self._ended_by(problem)
        return self._ending(tree, output, asked, cause)

    def _ending(self, tree: ProcessTree, output: ProgramOutput, asked: str, hung: str) -> Ending:
        """Return what the end of the program means."""
        n_left = tree.n_killed
        if n_left and not asked and not hung:
            self._warn(
                f"{plural(n_left, 'process', 'processes')} of the program ran on after its end; "
                "scalelab killed them"
            )
        if self.attempt.is_fenced():
            return Ending(status="preempted", reason="a newer attempt has claimed the run")
        result = result_of(self.spec, output, self.out_dir)
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
        has_row = self.last_step > self.resumed_step or output.final is not None
        kind = failure_kind(
            tree.code, tail, has_row=has_row, is_resumed=self.note["resumed_from"] is not None
        )
        if kind == EARLY_EXIT and result.is_at_end:
            kind = NO_RESULT
        status = "preempted" if kind == INFRASTRUCTURE else "failed"
        sentence = f"the program ended with {words}: {result.problem}"
        return Ending(status=status, kind=kind, reason=with_tail(sentence, tail))

    def _observe(self, output: ProgramOutput, *, is_last: bool = False) -> Ending | None:
        """Append new rows to the curve; return the end of the attempt if they decide it."""
        rows = [row for row in output.read(is_last=is_last) if row.step > 0]
        now_s = time.monotonic()
        if rows and not self.last_step:
            self._correct_resumed_step(rows[0].step - 1, output)
        new = []
        for row in rows:
            if row.step > max(self.last_step, self.resumed_step):
                self.last_step = row.step
                new.append(row)
        if new:
            self.attempt.append_metrics([self._with_speed(row, new, now_s) for row in new])
            self._since_rows = (now_s, new[-1].tokens)
        if reason := self._divergence(rows):
            return Ending(status="diverged", kind=DIVERGED, reason=reason)
        problem = output.problem or size_problem(self.spec, output)
        if problem:
            tail = () if output.problem else output_tail(self.output_path)
            return Ending(status="failed", kind=NO_RESULT, reason=with_tail(problem, tail))
        return None

    def _with_speed(self, row: MetricRow, rows: list[MetricRow], now_s: float) -> MetricRow:
        """Return a row with the speed since the rows read before, and what follows from it."""
        speed = row.tokens_per_s
        if speed is None and self._since_rows is not None:
            since_s, tokens = self._since_rows
            if now_s > since_s and rows[-1].tokens > tokens:
                speed = (rows[-1].tokens - tokens) / (now_s - since_s)
        if speed is None or not math.isfinite(speed):
            return replace(row, tokens_per_s=None)
        size = run_size(self.spec)
        each_per_s = speed / self.execution.n_devices
        hardware = match_hardware(self.device_name)
        palm = size.flops_per_token.get("palm")
        return replace(
            row,
            tokens_per_s=speed,
            tflops_per_s=each_per_s * size.planned_per_token / TERA,
            mfu=None
            if hardware is None or palm is None
            else each_per_s * palm / hardware.peak_flops_per_s,
        )

    def _divergence(self, rows: list[MetricRow]) -> str | None:
        for row in rows:
            if not math.isfinite(row.loss_nats):
                self._n_not_finite += 1
                if self._n_not_finite >= MOST_NOT_FINITE:
                    return f"the training loss is {row.loss_nats} at step {row.step}"
                continue
            self._n_not_finite = 0
            if reason := self._detector.observe(row.loss_nats, 0.0):
                return reason
        return None

    def _record(self, result: ProgramResult) -> Ending:
        """Write the record of a run that is complete, and accept it."""
        status, reason = "done", None
        if not math.isfinite(result.loss_nats):
            status, reason = "diverged", f"the held-out loss is {result.loss_nats}"
        return self._write_record(status, reason, result)

    def _ended_by(self, ending: Ending) -> Ending:
        if ending.status != "diverged":
            return ending
        if self.attempt.is_fenced():
            return Ending(status="preempted", reason="a newer attempt has claimed the run")
        return self._write_record("diverged", ending.reason, None)

    def _write_record(
        self, status: str, reason: str | None, result: ProgramResult | None
    ) -> Ending:
        is_done = status == "done"
        size = run_size(self.spec)
        steps = self.spec.n_steps if result is not None else max(self.last_step, 0)
        n_tokens = result.n_tokens if result is not None else steps * self.spec.tokens_per_step
        flops = {name: per * n_tokens for name, per in size.flops_per_token.items()}
        n_params = dict(size.n_params)
        if result is not None:
            n_params |= result.n_params
            if result.flops_per_token:
                flops["reported"] = result.flops_per_token * n_tokens
        unique = self.program.unique_tokens or n_tokens
        self.attempt.write_record(
            RunRecord(
                run_id=self.run.run_id,
                attempt=self.attempt.number,
                token=self.attempt.token,
                status=status,
                loss_nats=result.loss_nats if is_done and result is not None else None,
                loss_se_nats=result.loss_se_nats if is_done and result is not None else None,
                n_params=n_params,
                flops=flops,
                n_tokens=n_tokens,
                unique_tokens=min(unique, n_tokens),
                n_steps=steps,
                wall_s=self._wall_s(),
                diverged_at_step=None if is_done else steps,
                reason=reason,
            )
        )
        is_accepted = self.attempt.accept()
        if is_accepted and not self.execution.keeps_weights and self._pattern is not None:
            remove_checkpoints(self.run, self._pattern, in_place=self.program.in_place)
        ending = Ending(status=status, kind="" if is_done else DIVERGED, reason=reason or "")
        evals = dict(result.evals) if result is not None else {}
        self._end(ending, is_accepted=is_accepted, **({"evals": evals} if evals else {}))
        return ending

    def _place(self) -> Place:
        devices = devices_of(self.execution.n_devices)
        return Place(
            run_id=self.run.run_id,
            sweep=str(self.note.get("sweep") or ""),
            out_dir=str(self.out_dir),
            metrics=str(self.attempt.path / REPORTED_FILE),
            run_json=str(self.run.path / "spec.json"),
            python=sys.executable,
            n_devices=devices.n_devices,
            n_nodes=devices.n_nodes,
            gpus_per_node=devices.per_node,
            micro_batch_seqs=self.execution.micro_batch_seqs,
            train_data=self.data.get("train_data", ""),
            eval_data=self.data.get("eval_data", ""),
        )

    def _with_checkpoint(self, place: Place) -> Place:
        """Return the place with the newest checkpoint, cloned where the command needs it."""
        assert self._pattern is not None
        if self.note.get(FRESH_START) or not self.program.checkpoint:
            return place
        in_place = self.program.in_place
        found = newest_checkpoint(self.run, self._pattern, in_place=in_place)
        if found is None:
            return place
        self.earlier_wall_s = wall_s_at(self.run, found)
        assert self.spec.program is not None
        is_named = "checkpoint" in used_placeholders(self.spec.program, self.program)
        paths = found.paths if in_place or is_named else clone(found, self.out_dir)
        self.resumed_step = self.checkpoint_step = found.step
        own = tuple(path for path in paths if path.is_relative_to(self.out_dir))
        if own and not in_place:
            cloned = replace(found, attempt=self.attempt.number, paths=own, out_dir=self.out_dir)
            self._noted_stamp = cloned.stamp()
            note_checkpoint(self.attempt, cloned, self.earlier_wall_s)
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
        is_lower = step < self.resumed_step and isinstance(output, OwnOutput)
        if source is not None and (is_lower or (not is_named and step != self.resumed_step)):
            source["step"] = self.resumed_step = step
            self.attempt.write_note(self.note)

    def _look_for_checkpoint(self, *, is_last: bool = False) -> None:
        """Record a new checkpoint of the program; while it runs, only one that stopped changing."""
        if self._pattern is None or self.note.get("ended") is not None:
            return
        found: list[ProgramCheckpoint] = []
        with contextlib.suppress(OSError):
            found = self._pattern.find(self.attempt, self.out_dir)
        if not found:
            return
        stamp, before = found[0].stamp(), self._checkpoint_stamp
        self._checkpoint_stamp = stamp
        if stamp == self._noted_stamp or (stamp != before and not is_last):
            return
        self._noted_stamp = stamp
        self.checkpoint_step = found[0].step
        with contextlib.suppress(OSError):
            note_checkpoint(self.attempt, found[0], self._wall_s())
            self.note["checkpoint"] = {"step": found[0].step, "time_s": time.time()}
            self.attempt.write_note(self.note)

    def _own_variables(self, place: Place) -> dict[str, str]:
        own = {
            "SCALELAB_RUN_ID": self.run.run_id,
            "SCALELAB_RUN_JSON": place.run_json,
            "SCALELAB_METRICS": place.metrics,
            "SCALELAB_OUT_DIR": place.out_dir,
            "SCALELAB_CHECKPOINT": place.checkpoint,
            "SCALELAB_ATTEMPT": str(self.attempt.number),
            TOKEN_VARIABLE: self.attempt.token,
        }
        if (deadline_s := self.note.get("deadline_s")) is not None:
            own["SCALELAB_DEADLINE"] = str(int(deadline_s))
        return own

    def _unproven(self) -> str:
        """Return why an earlier attempt may still write into the shared folder; empty if none."""
        ends_s = time.monotonic() + PROOF_S
        for attempt in self.run.attempts():
            note, mark = attempt.read_note(), attempt.path / ENDED_FILE
            if attempt.token == self.attempt.token or "command" not in note:
                continue
            while not mark.exists() and time.monotonic() < ends_s:
                if note.get("host") == self.note["host"] and kill_all_of(attempt.token):
                    mark.touch()
                elif self.stop_reason() is not None:
                    break
                else:
                    time.sleep(POLL_S)
            if not mark.exists():
                return (
                    f"in_place = true, and processes of attempt {attempt.number} on "
                    f"{note.get('host')} may still write into {self.out_dir}. If none is left, "
                    f"type: touch {shlex.quote(str(mark))}"
                )
        return ""

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

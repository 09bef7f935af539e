"""The folder of one run: claim attempts, write their files, read them back.

::

    spec.json                          the RunSpec, written once before launch
    claims/<k>                         the token of attempt k, created with O_EXCL
    attempts/<k>-<token>/attempt.json  host, execution and end of the attempt
    attempts/<k>-<token>/metrics.jsonl training curve; only lines that end in a newline count
    attempts/<k>-<token>/evals.jsonl   losses on evaluation sets, written in the same way
    attempts/<k>-<token>/eval_losses.<set>.npy  final losses of its sequences; heldout has no .<set>
    attempts/<k>-<token>/checkpoint-<step>/  complete or absent, by rename
    attempts/<k>-<token>/out/          files of a user's program, if one trains the run
    attempts/<k>-<token>/output.txt    its output
    attempts/<k>-<token>/record.json   the result, by rename
    accepted                           name of the accepted attempt, created with O_EXCL

A worker writes only inside its own attempt folder, and creates the two O_EXCL files. If the
launcher replaces an attempt that is still alive, the old attempt cannot damage the new one or be
counted as well.

Use `scalelab.records.run_files` to read many run folders fast.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from scalelab.errors import SpecError
from scalelab.records.files import append_lines, fsync, list_entries, read_json, write_atomically
from scalelab.records.states import FINAL, PRUNED
from scalelab.records.types import EvalRow, MetricRow, RunRecord
from scalelab.sweep.run_spec import RunSpec, run_spec_from_mapping, to_json

KEPT_CHECKPOINTS = 2
TAIL_BYTES = 8192

_ATTEMPT_NAME = re.compile(r"(?P<number>\d+)-(?P<token>[0-9a-f]{16})")
_RECORD_FIELDS = tuple(item.name for item in fields(RunRecord))
_REQUIRED_RECORD_FIELDS = {item.name for item in fields(RunRecord) if item.default is MISSING}
_RECORD_NUMBERS = ("n_tokens", "unique_tokens", "n_steps", "wall_s")
PRUNED_FILE = "pruned.json"
"""Mark of a run that was stopped as hopeless, in the run folder: step, reason and time."""

EVALS_FILE = "evals.jsonl"
"""Losses on evaluation sets, in the attempt folder; only runs with named sets or ``eval_every``."""

LOG_FILE = "log.txt"
"""Output of the run's worker, in the run folder."""

PROGRAM_OUTPUT_FILE = "output.txt"
"""Output of the user's program, in the attempt folder."""

PARTIAL_CHECKPOINT = ".partial-"
_CHECKPOINT_NAME = re.compile(r"checkpoint-(?P<step>\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint: number of the attempt that wrote it, step, and folder."""

    attempt: int
    step: int
    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One attempt at a run, identified by its number and its claim token."""

    run: RunDir
    number: int
    token: str

    @property
    def path(self) -> Path:
        """Folder of the attempt."""
        return self.run.path / "attempts" / f"{self.number}-{self.token}"

    @property
    def metrics_path(self) -> Path:
        """File of the training curve."""
        return self.path / "metrics.jsonl"

    def is_fenced(self) -> bool:
        """Return whether this attempt must stop.

        True if a newer attempt has claimed the run, or the attempt's own claim is gone because the
        run folder was removed (and perhaps created again).
        """
        try:
            is_own = (self.run.path / "claims" / str(self.number)).read_text() == self.token
        except FileNotFoundError:
            is_own = False
        return not is_own or self.run.newest_claim() > self.number

    def write_note(self, note: Mapping[str, Any]) -> None:
        """Replace ``attempt.json``."""
        write_atomically(self.path / "attempt.json", json.dumps(note, indent=1, sort_keys=True))

    def read_note(self) -> dict[str, Any]:
        """Return ``attempt.json``, empty if the attempt died before it wrote one."""
        return read_json(self.path / "attempt.json") or {}

    def append_metrics(self, rows: list[MetricRow]) -> None:
        """Append rows to the training curve; readers ignore an incomplete last line."""
        append_lines(self.metrics_path, map(asdict, rows))

    def append_evals(self, rows: list[EvalRow]) -> None:
        """Append losses on evaluation sets, as `append_metrics` does."""
        append_lines(self.path / EVALS_FILE, map(asdict, rows))

    def last_metrics(self) -> MetricRow | None:
        """Return the newest complete row of the training curve; reads only the end of the file."""
        try:
            with self.metrics_path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - TAIL_BYTES, 0))
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return None
        with contextlib.suppress(ValueError, TypeError):
            return MetricRow(**json.loads(whole.rpartition(b"\n")[2]))
        return None

    @contextlib.contextmanager
    def writing_checkpoint(self, step: int) -> Iterator[Path]:
        """Yield an empty folder; it becomes ``checkpoint-<step>`` if the block succeeds.

        On an error (full disk), removes the folder and keeps the earlier checkpoints. On success,
        keeps the newest two checkpoints.
        """
        final = self.path / f"checkpoint-{step}"
        partial = self.path / f"{PARTIAL_CHECKPOINT}{step}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            for file in partial.rglob("*"):
                fsync(file)
            fsync(partial)
            if not final.exists():
                partial.rename(final)
                fsync(self.path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for old in self.checkpoints()[KEPT_CHECKPOINTS:]:
            shutil.rmtree(old.path, ignore_errors=True)

    def checkpoints(self) -> list[Checkpoint]:
        """Return the complete checkpoints of this attempt, newest first."""
        checkpoints = [
            Checkpoint(attempt=self.number, step=int(match["step"]), path=entry)
            for entry in list_entries(self.path)
            if (match := _CHECKPOINT_NAME.fullmatch(entry.name))
        ]
        return sorted(checkpoints, key=lambda item: item.step, reverse=True)

    def remove_checkpoints(self, *, kept: Path | None = None) -> None:
        """Remove the checkpoints of this attempt but ``kept``, incomplete ones included."""
        for entry in [each for each in list_entries(self.path) if each != kept]:
            if _CHECKPOINT_NAME.fullmatch(entry.name) or entry.name.startswith(PARTIAL_CHECKPOINT):
                shutil.rmtree(entry, ignore_errors=True)

    def write_record(self, record: RunRecord) -> None:
        """Write ``record.json``: the result of the attempt."""
        content = {**asdict(record), "n_params": dict(record.n_params), "flops": dict(record.flops)}
        write_atomically(
            self.path / "record.json", json.dumps(content, indent=1, sort_keys=True), durable=True
        )

    def read_record(self) -> RunRecord | None:
        """Return the record, None if it is missing, torn or of another attempt."""
        content = read_json(self.path / "record.json")
        return parse_record(content, self.run.run_id, self.number, self.token)

    def accept(self) -> bool:
        """Try to accept this attempt; return whether it is the accepted one.

        The first attempt with a valid record wins; later ones are superseded.
        """
        if self.read_record() is None:
            return False
        # Linking a complete file ensures that no reader sees `accepted` empty. The file name is
        # unique because the worker and its launcher may accept at the same time.
        partial = self.path / f".accepted.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            write_atomically(partial, f"{self.number}-{self.token}", durable=True)
            with contextlib.suppress(FileExistsError):
                os.link(partial, self.run.path / "accepted")
                fsync(self.run.path)
        finally:
            partial.unlink(missing_ok=True)
        accepted = self.run.accepted()
        return accepted is not None and accepted.token == self.token


@dataclass(frozen=True, slots=True)
class RunDir:
    """The folder of one run, ``<results>/runs/<run_id>``."""

    path: Path

    @property
    def run_id(self) -> str:
        """Name of the folder."""
        return self.path.name

    def write_spec(self, spec: RunSpec) -> None:
        """Write ``spec.json`` if it is missing.

        Raises
        ------
        SpecError
            If the folder belongs to another spec, or its spec was edited.
        """
        if spec.run_id != self.run_id:
            raise SpecError(
                f"the spec of run {spec.run_id} in the folder of run {self.run_id}",
                "a folder named by the run_id of the spec",
                f"Write it to runs/{spec.run_id}.",
            )
        if self.has_spec():
            self.read_spec()
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "spec.json", to_json(spec), durable=True)

    def has_spec(self) -> bool:
        """Return whether ``spec.json`` exists."""
        return (self.path / "spec.json").exists()

    def read_spec(self) -> RunSpec:
        """Return the run's spec.

        Raises
        ------
        SpecError
            If it is missing, torn or edited.
        """
        content = read_json(self.path / "spec.json")
        if content is None:
            raise SpecError(
                f"run {self.run_id} without a readable spec.json",
                "the spec.json that the sweep command wrote",
                "Run the sweep's command again, or the `scalelab retry` that added the run: both "
                "write missing specs.",
            )
        spec = run_spec_from_mapping(content)
        if spec.run_id != self.run_id:
            raise SpecError(
                f"spec.json of run {self.run_id}, which was edited: it describes run {spec.run_id}",
                "the unedited spec.json",
                f"Undo the edit, or remove the folder {self.path} to train the run again.",
            )
        return spec

    def claim(self) -> Attempt:
        """Claim the next attempt; all older attempts must then stop (`Attempt.is_fenced`)."""
        claims = self.path / "claims"
        claims.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(8)
        number = self.newest_claim()
        while True:
            number += 1
            try:
                descriptor = os.open(claims / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                continue
            with os.fdopen(descriptor, "w") as file:
                file.write(token)
            attempt = Attempt(run=self, number=number, token=token)
            attempt.path.mkdir(parents=True)
            return attempt

    def newest_claim(self) -> int:
        """Return the highest claimed attempt number, 0 if there is none."""
        numbers = (int(e.name) for e in list_entries(self.path / "claims") if e.name.isdecimal())
        return max(numbers, default=0)

    def attempts(self) -> list[Attempt]:
        """Return all attempts, oldest first."""
        return [Attempt(run=self, number=n, token=token) for n, token in attempt_keys(self.path)]

    def accepted(self) -> Attempt | None:
        """Return the accepted attempt, or None."""
        try:
            name = (self.path / "accepted").read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None
        key = parse_attempt_name(name)
        return Attempt(run=self, number=key[0], token=key[1]) if key else None

    def accept_finished(self) -> Attempt | None:
        """Return the accepted attempt; if none is, accept the first one with a valid record.

        This saves the result of an attempt that was killed between its record and acceptance.
        """
        accepted = self.accepted()
        if accepted is None and any(attempt.accept() for attempt in self.attempts()):
            return self.accepted()
        return accepted

    def checkpoints(self) -> list[Checkpoint]:
        """Return the complete checkpoints of all attempts, highest step first."""
        found = [c for attempt in self.attempts() for c in attempt.checkpoints()]
        return sorted(found, key=lambda item: (item.step, item.attempt), reverse=True)

    def begun_execution(self) -> dict[str, Any]:
        """Return the execution of the attempt whose checkpoint the run resumes; empty if none.

        The settings that affect the bits of the result must stay the same until the run ends.
        """
        for found in self.checkpoints()[:1]:
            (writer,) = (a for a in self.attempts() if a.number == found.attempt)
            return execution_of(writer.read_note())
        return {}

    def status(self) -> str:
        """Return the state recorded in the files, one of `scalelab.records.states.FILE_STATES`.

        ``running`` means that the newest attempt has recorded no end; its process may be dead. A
        run whose accepted attempt has no valid record is ``failed``.
        """
        accepted = self.accepted()
        if accepted is not None:
            record = accepted.read_record()
            return record.status if record else "failed"
        if (self.path / PRUNED_FILE).exists():
            return PRUNED
        attempts = self.attempts()
        if not attempts:
            return "planned"
        return str(end_of(attempts[-1].read_note()).get("status") or "running")


def attempt_keys(folder: str | Path) -> list[tuple[int, str]]:
    """Return number and token of the attempts in a run folder, oldest first."""
    entries = list_entries(Path(folder, "attempts"))
    return sorted(key for entry in entries if (key := parse_attempt_name(entry.name)))


def parse_attempt_name(name: str) -> tuple[int, str] | None:
    """Return number and token of an attempt from its folder's name, None for another name."""
    match = _ATTEMPT_NAME.fullmatch(name)
    return (int(match["number"]), match["token"]) if match else None


def end_of(note: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the recorded end of an attempt from its ``attempt.json``, empty if it has none."""
    end = note.get("ended")
    return end if isinstance(end, dict) else {}


def execution_of(note: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ExecutionSpec` from an ``attempt.json``, empty if it has none."""
    execution = note.get("execution")
    if not isinstance(execution, dict) or not execution:
        return {}
    # scalelab 0.1 wrote `pack_size`; the oldest files have neither field.
    return {"batched_runs": execution.get("pack_size", 1), **execution}


def parse_record(
    content: Mapping[str, Any] | None, run_id: str, number: int, token: str
) -> RunRecord | None:
    """Return the record of this attempt from the content of its ``record.json``; None without.

    Ignores unknown fields and uses the default of missing new ones, so that other versions of
    scalelab can read a result. Returns None if the record is of another attempt or not valid: a
    required field is missing, a number is not finite, or ``done`` has no loss.
    """
    content = content or {}
    values = {name: content[name] for name in _RECORD_FIELDS if name in content}
    if not (
        values.keys() >= _REQUIRED_RECORD_FIELDS
        and (values["run_id"], values["attempt"], values["token"]) == (run_id, number, token)
        and values["status"] in FINAL
        and isinstance(values["n_params"], dict)
        and isinstance(values["flops"], dict)
    ):
        return None
    numbers = [values[name] for name in _RECORD_NUMBERS]
    numbers += [*values["n_params"].values(), *values["flops"].values()]
    if values["status"] == "done":
        numbers.append(values["loss_nats"])
    is_valid = {int, float}.issuperset(map(type, numbers)) and all(map(math.isfinite, numbers))
    return RunRecord(**values) if is_valid else None

"""The files of a run: what the trainer writes and the store reads.

::

    spec.json                          the RunSpec, written once before launch
    claims/<k>                         created with O_EXCL: the token of attempt k
    attempts/<k>-<token>/attempt.json  how it is executed, by whom, and why it ended
    attempts/<k>-<token>/metrics.jsonl appended; only lines that end in a newline count
    attempts/<k>-<token>/checkpoint-<step>/  whole or absent, by rename
    attempts/<k>-<token>/record.json   the result, by rename
    accepted                           created with O_EXCL: which attempt counts

A worker writes only inside its own attempt folder, plus the two O_EXCL files, so an attempt that
was given up for dead and is not (a zombie) can neither harm its successor nor count twice.
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
from scalelab.records.files import fsync, list_entries, read_json, write_atomically
from scalelab.records.states import FINAL
from scalelab.records.types import MetricRow, RunRecord
from scalelab.sweep.run_spec import RunSpec, run_spec_from_mapping, to_json

KEPT_CHECKPOINTS = 2
TAIL_BYTES = 8192

_ATTEMPT_NAME = re.compile(r"(?P<number>\d+)-(?P<token>[0-9a-f]{16})")
_RECORD_FIELDS = tuple(item.name for item in fields(RunRecord))
_REQUIRED_RECORD_FIELDS = {item.name for item in fields(RunRecord) if item.default is MISSING}
_RECORD_NUMBERS = ("n_tokens", "unique_tokens", "n_steps", "wall_s")
LOG_FILE = "log.txt"
"""What the worker of a run prints, beside its attempts."""

_PARTIAL = ".partial-"
_CHECKPOINT_NAME = re.compile(r"checkpoint-(?P<step>\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A whole checkpoint: the attempt that wrote it, the step after which, and where it lies."""

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
        """Where the training curve is appended."""
        return self.path / "metrics.jsonl"

    def is_fenced(self) -> bool:
        """Say whether this attempt must stop.

        A newer one has claimed the run, or its own claim is gone: the folder was removed (and
        perhaps made anew).
        """
        try:
            is_own = (self.run.path / "claims" / str(self.number)).read_text() == self.token
        except FileNotFoundError:
            is_own = False
        return not is_own or self.run.newest_claim() > self.number

    def write_note(self, note: Mapping[str, Any]) -> None:
        """Replace ``attempt.json`` whole."""
        write_atomically(self.path / "attempt.json", json.dumps(note, indent=1, sort_keys=True))

    def read_note(self) -> dict[str, Any]:
        """Return ``attempt.json``; empty when the attempt died before writing it."""
        return read_json(self.path / "attempt.json") or {}

    def append_metrics(self, rows: list[MetricRow]) -> None:
        """Append rows to the training curve; a torn last line is not counted by readers.

        A line that an earlier call tore (the disk was full) is closed first, so that it does not
        take the next one with it.
        """
        text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
        with self.metrics_path.open("a+b", buffering=0) as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                text = "\n" + text
            data = memoryview(text.encode())
            while data:
                data = data[file.write(data) :]

    def last_metrics(self) -> MetricRow | None:
        """Return the newest whole row of the training curve, reading only the end of the file."""
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
        """Give an empty folder to fill; it becomes ``checkpoint-<step>`` when the block ends well.

        On an error (a full disk) the half-written folder is removed and earlier ones stay. After
        success only the newest two remain.
        """
        final = self.path / f"checkpoint-{step}"
        partial = self.path / f"{_PARTIAL}{step}"
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
        """Return this attempt's whole checkpoints, newest first."""
        found = (
            (match, entry)
            for entry in list_entries(self.path)
            if (match := _CHECKPOINT_NAME.fullmatch(entry.name))
        )
        checkpoints = [
            Checkpoint(attempt=self.number, step=int(match["step"]), path=entry)
            for match, entry in found
        ]
        return sorted(checkpoints, key=lambda item: item.step, reverse=True)

    def remove_checkpoints(self) -> None:
        """Remove this attempt's checkpoints, and what is left of one whose writer was killed."""
        for entry in list_entries(self.path):
            if _CHECKPOINT_NAME.fullmatch(entry.name) or entry.name.startswith(_PARTIAL):
                shutil.rmtree(entry, ignore_errors=True)

    def write_record(self, record: RunRecord) -> None:
        """Write ``record.json`` whole; until it is there, the attempt has no result."""
        content = {**asdict(record), "n_params": dict(record.n_params), "flops": dict(record.flops)}
        write_atomically(
            self.path / "record.json", json.dumps(content, indent=1, sort_keys=True), durable=True
        )

    def read_record(self) -> RunRecord | None:
        """Return the record, or None when it is missing, torn or not this attempt's."""
        content = read_json(self.path / "record.json")
        return (
            None
            if content is None
            else parse_record(content, self.run.run_id, self.number, self.token)
        )

    def accept(self) -> bool:
        """Try to make this attempt the one that counts; say whether it is.

        The first attempt with a whole record wins; a later one stays as superseded.
        """
        if self.read_record() is None:
            return False
        # The content is linked into place, so that `accepted` is never seen empty. The name is this
        # call's own: the worker and a launcher that cleans up after it may both be here.
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
        """Identity of the run: the folder's name."""
        return self.path.name

    def write_spec(self, spec: RunSpec) -> None:
        """Write ``spec.json`` unless it is there already.

        Raises
        ------
        SpecError
            When the folder is named by another spec, or holds one that was edited.
        """
        if spec.run_id != self.run_id:
            raise SpecError(
                f"the spec of run {spec.run_id} for the folder of run {self.run_id}",
                "the folder that the spec names",
                "Write it to runs/<run_id>.",
            )
        if self.has_spec():
            self.read_spec()
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "spec.json", to_json(spec), durable=True)

    def has_spec(self) -> bool:
        """Say whether the run's spec was written here."""
        return (self.path / "spec.json").exists()

    def read_spec(self) -> RunSpec:
        """Return the run's spec.

        Raises
        ------
        SpecError
            When it is missing, torn, or was edited after the run was named.
        """
        content = read_json(self.path / "spec.json")
        if content is None:
            raise SpecError(
                f"no readable spec.json in run {self.run_id}",
                "the spec that the planner wrote",
                "Run the sweep's command again, or the `retry` that made the run: each writes "
                "missing specs.",
            )
        spec = run_spec_from_mapping(content)
        if spec.run_id != self.run_id:
            raise SpecError(
                f"spec.json of run {self.run_id}, whose content is that of run {spec.run_id}",
                "the spec as it was when the run was named",
                f"Undo the edit, or remove the folder {self.path} to train the run anew.",
            )
        return spec

    def claim(self) -> Attempt:
        """Claim the next attempt; every older one is fenced from then on."""
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
        """Return the highest attempt number claimed so far, 0 when there is none."""
        numbers = (int(e.name) for e in list_entries(self.path / "claims") if e.name.isdecimal())
        return max(numbers, default=0)

    def attempts(self) -> list[Attempt]:
        """Return all attempts, oldest first."""
        names = (parse_attempt_name(entry.name) for entry in list_entries(self.path / "attempts"))
        attempts = [Attempt(run=self, number=key[0], token=key[1]) for key in names if key]
        return sorted(attempts, key=lambda item: (item.number, item.token))

    def accepted(self) -> Attempt | None:
        """Return the attempt that counts, or None."""
        try:
            name = (self.path / "accepted").read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None
        key = parse_attempt_name(name)
        return Attempt(run=self, number=key[0], token=key[1]) if key else None

    def accept_finished(self) -> Attempt | None:
        """Return the attempt that counts, accepting the first whole record of one that died before.

        An attempt may be killed between its record and the acceptance; its result is not lost.
        """
        accepted = self.accepted()
        if accepted is not None:
            return accepted
        for attempt in self.attempts():
            if attempt.accept():
                return attempt
        return self.accepted()

    def checkpoints(self) -> list[Checkpoint]:
        """Return the whole checkpoints of all attempts, furthest step first."""
        found = [c for attempt in self.attempts() for c in attempt.checkpoints()]
        return sorted(found, key=lambda item: (item.step, item.attempt), reverse=True)

    def begun_execution(self) -> dict[str, Any]:
        """Return how the attempt was executed whose checkpoint the run goes on from; empty if none.

        What its bits depend on must stay so to the end.
        """
        for found in self.checkpoints()[:1]:
            (writer,) = (a for a in self.attempts() if a.number == found.attempt)
            return execution_of(writer.read_note())
        return {}

    def status(self) -> str:
        """Return the state recorded in the files, one of `scalelab.records.states.FILE_STATES`.

        ``running`` means that the newest attempt has not said that it ended; whether its process
        still lives is for the launcher to know. An accepted attempt whose record is no longer whole
        makes the run ``failed``.
        """
        accepted = self.accepted()
        if accepted is not None:
            record = accepted.read_record()
            return record.status if record else "failed"
        attempts = self.attempts()
        if not attempts:
            return "planned"
        ended = attempts[-1].read_note().get("ended") or {}
        return str(ended.get("status") or "running")


def parse_attempt_name(name: str) -> tuple[int, str] | None:
    """Return the number and token that an attempt's folder is named by, None for another name."""
    match = _ATTEMPT_NAME.fullmatch(name)
    return (int(match["number"]), match["token"]) if match else None


def execution_of(note: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ExecutionSpec` from an ``attempt.json``, empty if it has none."""
    execution = note.get("execution")
    if not isinstance(execution, dict) or not execution:
        return {}
    # scalelab 0.1 wrote `pack_size`; the oldest files have neither field.
    return {"batched_runs": execution.get("pack_size", 1), **execution}


def parse_record(
    content: Mapping[str, Any], run_id: str, number: int, token: str
) -> RunRecord | None:
    """Return the record of this attempt from the content of its ``record.json``.

    Fields that this version does not know are passed over and ones that it added take their
    default, so that results outlive versions. None when it is not whole (a required field is
    missing, a number is not one, ``done`` without a finite loss) or not this attempt's.
    """
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
    is_whole = {int, float}.issuperset(map(type, numbers)) and all(map(math.isfinite, numbers))
    return RunRecord(**values) if is_whole else None

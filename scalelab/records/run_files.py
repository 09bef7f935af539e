"""Read run folders in bulk: `read_run` reads one folder, `is_unchanged` detects later changes.

`is_unchanged` takes three system calls for a finished run and about six for another one, so 10,000
runs are checked in a fraction of a second. `read_run` opens four files of a new finished run and
lists no folder.

Use `scalelab.records.run_dir` to write a run folder, or to read one part of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from scalelab.errors import SpecError
from scalelab.records.evaluations import Evaluation, read_evaluations
from scalelab.records.files import read_file, read_json, stamp_of, stat_of
from scalelab.records.run_dir import (
    PRUNED_FILE,
    Attempt,
    RunDir,
    attempt_keys,
    end_of,
    parse_attempt_name,
    parse_record,
)
from scalelab.records.states import PRUNED
from scalelab.records.types import RunRecord
from scalelab.sweep.program import ProgramSpec
from scalelab.sweep.run_spec import HASHED_DIGITS, PARTS, RUN_ID_LENGTH, RunSpec, to_json
from scalelab.theory.shape import ModelShape
from scalelab.units import round_significant

SETTLED = "settled "
"""Start of the signature of a run that has an accepted attempt and no open one."""

_HEAD = ("spec.json", "accepted", "attempts", ".")
"""What is checked of a finished run. Marks and evaluations are replaced by rename, which changes
the run folder itself."""
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode

RUN_DEFAULTS = {
    f.name: [] if f.default == () else f.default
    for f in fields(RunSpec)
    if f.default is not MISSING
}
SHAPE_DEFAULTS = {f.name: f.default for f in fields(ModelShape) if f.default is not MISSING}
PROGRAM_DEFAULTS = {
    f.name: [] if f.default == () else f.default
    for f in fields(ProgramSpec)
    if f.default is not MISSING
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptFiles:
    """The files of one attempt.

    Attributes
    ----------
    number : int
    token : str
    folder : str
    note : Mapping
        Content of ``attempt.json``; empty if the attempt died before it wrote one.
    record : RunRecord or None
    metrics_bytes : int
        Size of ``metrics.jsonl``.
    """

    number: int
    token: str
    folder: str
    note: Mapping[str, Any]
    record: RunRecord | None
    metrics_bytes: int

    @property
    def end(self) -> Mapping[str, Any]:
        """How the attempt ended, empty if it recorded no end."""
        return end_of(self.note)

    @property
    def resumed_from(self) -> tuple[int | None, int | None]:
        """Attempt and step of the checkpoint from which this attempt started, else two None."""
        source = self.note.get("resumed_from")
        if not isinstance(source, dict):
            return None, None
        number, step = source.get("attempt"), source.get("step")
        is_valid = type(number) is int and type(step) is int
        return (number, step) if is_valid else (None, None)

    def handle(self) -> Attempt:
        """Return the attempt for reading its other files."""
        run = RunDir(Path(self.folder).parents[1])
        return Attempt(run=run, number=self.number, token=self.token)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """The files of one run, training curves excluded.

    Attributes
    ----------
    run_id : str
        Name of the folder.
    spec : Mapping
        Content of ``spec.json``, whose hash is the run_id.
    attempts : tuple of AttemptFiles
        Oldest first.
    accepted : AttemptFiles or None
        The accepted attempt; it has a record.
    pruned : Mapping or None
        Content of the mark of a pruned run, whose ``reason`` says why it was stopped; None if an
        attempt is accepted.
    evaluations : tuple of Evaluation
        Of the kept weights.
    signature : str
        Identities of the files, for `is_unchanged`.
    """

    run_id: str
    spec: Mapping[str, Any]
    attempts: tuple[AttemptFiles, ...]
    accepted: AttemptFiles | None
    signature: str
    pruned: Mapping[str, Any] | None = None
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def status(self) -> str:
        """State of the run, as in `scalelab.records.run_dir.RunDir.status`."""
        if self.accepted is not None and self.accepted.record is not None:
            return self.accepted.record.status
        if self.pruned is not None:
            return PRUNED
        if not self.attempts:
            return "planned"
        return str(self.attempts[-1].end.get("status") or "running")

    def curve_segments(self) -> dict[int, tuple[int, int | None]]:
        """Return the steps of each attempt that form the run's curve, ``{attempt: (after, to)}``.

        The accepted attempt counts from the step at which it resumed; before that step the attempt
        it resumed from counts, and so on. Empty until an attempt is accepted.
        """
        by_number = {attempt.number: attempt for attempt in self.attempts}
        segments: dict[int, tuple[int, int | None]] = {}
        attempt, to = self.accepted, None
        while attempt is not None and attempt.number not in segments:
            source, step = attempt.resumed_from
            segments[attempt.number] = (step or 0, to)
            attempt = by_number.get(source) if source is not None else None
            to = step if to is None or step is None else min(to, step)
        return segments


def is_unchanged(folder: str, signature: str) -> bool:
    """Return whether the run folder still has the signature that `read_run` returned.

    Files are replaced by rename, so new content has a new inode; curves only grow. The attempts of
    a settled run are not checked: a new attempt changes the folder above them.
    """
    head = " ".join([stamp_of(stat_of(f"{folder}/{name}")) for name in _HEAD])
    if signature.startswith(SETTLED):
        return signature == SETTLED + head
    return signature == " ".join([head, *_attempt_stamps(folder, attempt_keys(folder))])


def read_run(folder: str) -> RunFiles:
    """Return the content of a run folder, training curves excluded.

    If an attempt was killed after it wrote its record and before acceptance, accepts it.

    Raises
    ------
    SpecError
        If ``spec.json`` is missing, torn or edited, or ``accepted`` names an attempt without a
        valid record.
    OSError
        If a file exists and cannot be read.
    """
    run_id = os.path.basename(folder)
    # Status before content: a change in between is then detected by the next check.
    head = [stat_of(f"{folder}/{name}") for name in _HEAD]
    spec = read_json(f"{folder}/spec.json")
    if spec is None or quick_run_id(spec) != run_id:
        # The slow path accepts every spelling of the numbers and raises the exact error.
        spec = json.loads(to_json(RunDir(Path(folder)).read_spec()))
    name = read_file(f"{folder}/accepted")
    stamps: list[str] = []
    attempts: tuple[AttemptFiles, ...] = ()
    if name is not None and head[2] is not None and head[2].st_nlink == 3:
        # One attempt folder, and two links of the parent itself: no need to list it.
        key = _accepted_key(name)
        attempts = (_read_attempt(folder, run_id, *key),) if key else ()
    if not (attempts and attempts[0].record and attempts[0].end):
        keys = attempt_keys(folder)
        stamps = _attempt_stamps(folder, keys)
        attempts = tuple(_read_attempt(folder, run_id, *key) for key in keys)
        if not os.path.exists(f"{folder}/accepted") and any(a.record for a in attempts):
            # Without permission to write, acceptance is left to the owner of the folder.
            with contextlib.suppress(OSError):
                if RunDir(Path(folder)).accept_finished() is not None:
                    head[3] = stat_of(f"{folder}/.")
        head[1] = stat_of(f"{folder}/accepted")
        name = read_file(f"{folder}/accepted")
    accepted = None if name is None else _accepted(folder, name, attempts)
    signature = " ".join([*map(stamp_of, head)])
    if accepted is not None and all(attempt.end for attempt in attempts):
        signature = SETTLED + signature
    else:
        signature = " ".join([signature, *stamps])
    return RunFiles(
        run_id=run_id,
        spec=spec,
        attempts=attempts,
        accepted=accepted,
        signature=signature,
        pruned=None if accepted is not None else read_json(f"{folder}/{PRUNED_FILE}"),
        evaluations=() if accepted is None else read_evaluations(folder),
    )


def quick_run_id(spec: Mapping[str, Any]) -> str | None:
    """Return `RunSpec.run_id` for the content of a ``spec.json``, None if it is not a spec.

    Ten times as fast as building the dataclasses. Equal to them for content as
    `scalelab.sweep.run_spec.to_json` writes it.
    """
    shape = spec.get("shape")
    if not isinstance(shape, dict):
        return None
    content = _without_defaults(spec, RUN_DEFAULTS)
    content["shape"] = _without_defaults(shape, SHAPE_DEFAULTS)
    for name in PARTS.keys() & content.keys():
        parts = content[name]
        if not (isinstance(parts, list) and all(isinstance(part, dict) for part in parts)):
            return None
        content[name] = [_without_defaults(part, {}) for part in parts]
    if isinstance(program := spec.get("program"), dict):
        content["program"] = _without_defaults(program, PROGRAM_DEFAULTS)
    return hashlib.sha256(_encode(content).encode()).hexdigest()[:RUN_ID_LENGTH]


def _without_defaults(content: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    given = {n: v for n, v in content.items() if n not in defaults or v != defaults[n]}
    for name, value in [(n, v) for n, v in given.items() if type(v) is float]:
        given[name] = round_significant(value, HASHED_DIGITS)
        if name in defaults and given[name] == defaults[name]:
            del given[name]
    return given


def _accepted_key(name: bytes) -> tuple[int, str] | None:
    return parse_attempt_name(name.decode("utf-8", "replace").strip())


def _accepted(folder: str, name: bytes, attempts: tuple[AttemptFiles, ...]) -> AttemptFiles:
    key = _accepted_key(name)
    found = next((a for a in attempts if (a.number, a.token) == key), None)
    if found is None or found.record is None:
        raise SpecError(
            f"run {os.path.basename(folder)}, whose accepted attempt has no valid record.json",
            "a file `accepted` that names an attempt with one",
            f"Remove the folder {folder} to train the run again.",
        )
    return found


def _read_attempt(folder: str, run_id: str, number: int, token: str) -> AttemptFiles:
    path = f"{folder}/attempts/{number}-{token}"
    content = read_json(f"{path}/record.json")
    metrics = stat_of(f"{path}/metrics.jsonl")
    return AttemptFiles(
        number=number,
        token=token,
        folder=path,
        note=read_json(f"{path}/attempt.json") or {},
        record=parse_record(content, run_id, number, token),
        metrics_bytes=0 if metrics is None else metrics.st_size,
    )


def _attempt_stamps(folder: str, keys: list[tuple[int, str]]) -> list[str]:
    return [
        stamp_of(stat_of(f"{folder}/attempts/{number}-{token}/{file}"))
        for number, token in keys
        for file in ("attempt.json", "record.json", "metrics.jsonl")
    ]

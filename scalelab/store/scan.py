"""Read run folders fast: what their files say, and a signature that tells when that changes.

A finished run in which nothing happened costs three calls to the file system, another one about
six, so that ten thousand are passed over in a fraction of a second; one that is new and finished
costs four files, without a look at the folders between. Files are read with plain calls
and parsed by the JSON parser that comes with pydantic, in a third of the standard one's time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from scalelab.errors import SpecError
from scalelab.records.run_dir import RunDir, parse_attempt_name, parse_record
from scalelab.records.types import RunRecord
from scalelab.sweep.run_spec import HASHED_DIGITS, RUN_ID_LENGTH, RunSpec
from scalelab.theory.shape import ModelShape
from scalelab.units import round_significant

SETTLED = "settled "
ABSENT = "-"
READ_BYTES = 1 << 13

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode

RUN_DEFAULTS = {f.name: f.default for f in fields(RunSpec) if f.default is not MISSING}
SHAPE_DEFAULTS = {f.name: f.default for f in fields(ModelShape) if f.default is not MISSING}


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptFiles:
    """One attempt as its files tell it; ``note`` is empty when it died before writing one."""

    number: int
    token: str
    folder: str
    note: Mapping[str, Any]
    record: RunRecord | None
    metrics_bytes: int
    stamps: tuple[str, ...]

    @property
    def end(self) -> Mapping[str, Any]:
        """What the note says about its end, empty when it has not said that it ended."""
        end = self.note.get("ended")
        return end if isinstance(end, dict) else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """One run as its files tell it.

    Attributes
    ----------
    run_id : str
        The folder's name.
    spec : Mapping
        Content of ``spec.json``, which is what the run was named by.
    attempts : tuple of AttemptFiles
        Oldest first.
    accepted : AttemptFiles or None
        The attempt that counts, with a whole record.
    signature : str
        For `is_unchanged`.
    """

    run_id: str
    spec: Mapping[str, Any]
    attempts: tuple[AttemptFiles, ...]
    accepted: AttemptFiles | None
    signature: str

    @property
    def status(self) -> str:
        """State of the run, as `scalelab.records.run_dir.RunDir.status` has it."""
        if self.accepted is not None and self.accepted.record is not None:
            return self.accepted.record.status
        if not self.attempts:
            return "planned"
        return str(self.attempts[-1].end.get("status") or "running")


def run_names(runs: str) -> list[str]:
    """Return the names of the run folders, sorted; hidden ones and plain files are left out."""
    try:
        with os.scandir(runs) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_unchanged(folder: str, signature: str) -> bool:
    """Say whether the run is as it was when it was read with this signature.

    Files are replaced by rename, so a new content has a new inode; curves only grow. Once a run has
    an accepted attempt and all its attempts have ended, their files are not looked at again: a new
    attempt would show in the folder above them.
    """
    head = _head(folder)
    if signature.startswith(SETTLED):
        return signature == SETTLED + head
    stamps = [
        _stamp(f"{folder}/attempts/{name}/{file}")
        for name in _attempt_names(folder)
        for file in ("attempt.json", "record.json", "metrics.jsonl")
    ]
    return signature == " ".join([head, *stamps])


def read_run(folder: str) -> RunFiles:
    """Return everything but the curves of the run in ``folder``.

    A run whose attempt was killed between its whole record and the acceptance is accepted now, so
    that the result is not lost.

    Raises
    ------
    SpecError
        When ``spec.json`` is missing, torn, or not what the run was named by, or ``accepted`` names
        an attempt without a whole record.
    OSError
        When a file is there and cannot be read.
    """
    run_id = os.path.basename(folder)
    # What is stamped is what was read, or was there before: a change in between shows next time.
    data, spec_stamp = _read(f"{folder}/spec.json")
    spec = _parse(data)
    if spec is None or quick_run_id(spec) != run_id:
        # The slow way round accepts every spelling, and says exactly what is wrong.
        spec = asdict(RunDir(Path(folder)).read_spec())
    name, accepted_stamp = _read(f"{folder}/accepted")
    attempts_stamp, n_folders = _stamp_and_folders(f"{folder}/attempts")
    if name is not None and n_folders == 1:
        only = _read_finished(folder, run_id, name)
        if only is not None:
            head = f"{spec_stamp} {accepted_stamp} {attempts_stamp}"
            return RunFiles(
                run_id=run_id,
                spec=spec,
                attempts=(only,),
                accepted=only,
                signature=SETTLED + head,
            )
    attempts = tuple(_read_attempt(folder, run_id, name) for name in _attempt_names(folder))
    name, accepted_stamp = _read(f"{folder}/accepted")
    if name is None and any(attempt.record for attempt in attempts):
        # Where we may not write, its owner will.
        with contextlib.suppress(OSError):
            RunDir(Path(folder)).accept_finished()
        name, accepted_stamp = _read(f"{folder}/accepted")
    accepted = None if name is None else _named_attempt(folder, name, attempts)
    head = f"{spec_stamp} {accepted_stamp} {attempts_stamp}"
    is_settled = accepted is not None and all(attempt.end for attempt in attempts)
    stamps = [stamp for attempt in attempts for stamp in attempt.stamps]
    return RunFiles(
        run_id=run_id,
        spec=spec,
        attempts=attempts,
        accepted=accepted,
        signature=SETTLED + head if is_settled else " ".join([head, *stamps]),
    )


def read_json(path: str) -> dict[str, Any] | None:
    """Return the JSON object in a file, None when it is missing, torn or no object."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _parse(_read_all(descriptor))
    finally:
        os.close(descriptor)


def quick_run_id(spec: Mapping[str, Any]) -> str | None:
    """Return `RunSpec.run_id` from the content of a ``spec.json``, None when it is no spec.

    Ten times as fast as building the dataclasses, and equal to it wherever the content is as
    `scalelab.sweep.run_spec.to_json` writes it.
    """
    shape = spec.get("shape")
    if not isinstance(shape, dict):
        return None
    content = _without_defaults(spec, RUN_DEFAULTS)
    content["shape"] = _without_defaults(shape, SHAPE_DEFAULTS)
    return hashlib.sha256(_encode(content).encode()).hexdigest()[:RUN_ID_LENGTH]


def _without_defaults(content: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    given = {n: v for n, v in content.items() if n not in defaults or v != defaults[n]}
    for name, value in [(n, v) for n, v in given.items() if type(v) is float]:
        given[name] = round_significant(value, HASHED_DIGITS)
        if name in defaults and given[name] == defaults[name]:
            del given[name]
    return given


def _named_attempt(folder: str, name: bytes, attempts: tuple[AttemptFiles, ...]) -> AttemptFiles:
    key = parse_attempt_name(name.decode("utf-8", "replace").strip())
    found = next((a for a in attempts if (a.number, a.token) == key), None)
    if found is None or found.record is None:
        raise SpecError(
            f"run {os.path.basename(folder)}, whose file `accepted` names no whole record",
            "the name of an attempt with a record.json of its own",
            f"Remove the folder {folder} to train the run anew.",
        )
    return found


def _read_attempt(folder: str, run_id: str, name: str) -> AttemptFiles:
    number, token = parse_attempt_name(name) or (0, "")
    path = f"{folder}/attempts/{name}"
    note, note_stamp = _read(f"{path}/attempt.json")
    record, record_stamp = _read(f"{path}/record.json")
    metrics_stamp = _stamp(f"{path}/metrics.jsonl")
    content = _parse(record)
    return AttemptFiles(
        number=number,
        token=token,
        folder=path,
        note=_parse(note) or {},
        record=None if content is None else parse_record(content, run_id, number, token),
        metrics_bytes=0 if metrics_stamp == ABSENT else int(metrics_stamp.rpartition(".")[2]),
        stamps=(note_stamp, record_stamp, metrics_stamp),
    )


def _read_finished(folder: str, run_id: str, name: bytes) -> AttemptFiles | None:
    """Return the only attempt of a run when it is accepted and has ended, else None.

    Its files will not be looked at again, so they need no stamps: three calls for each are saved.
    """
    key = parse_attempt_name(name.decode("utf-8", "replace").strip())
    if key is None:
        return None
    path = f"{folder}/attempts/{key[0]}-{key[1]}"
    note = read_json(f"{path}/attempt.json")
    content = read_json(f"{path}/record.json")
    record = None if content is None else parse_record(content, run_id, *key)
    if note is None or record is None or not isinstance(note.get("ended"), dict):
        return None
    try:
        metrics_bytes = os.stat(f"{path}/metrics.jsonl").st_size
    except FileNotFoundError:
        metrics_bytes = 0
    return AttemptFiles(
        number=key[0],
        token=key[1],
        folder=path,
        note=note,
        record=record,
        metrics_bytes=metrics_bytes,
        stamps=(),
    )


def _attempt_names(folder: str) -> list[str]:
    try:
        names = os.listdir(f"{folder}/attempts")
    except (FileNotFoundError, NotADirectoryError):
        return []
    keyed = [(key, name) for name in names if (key := parse_attempt_name(name)) is not None]
    return [name for _, name in sorted(keyed)]


def _head(folder: str) -> str:
    return " ".join([_stamp(f"{folder}/{name}") for name in ("spec.json", "accepted", "attempts")])


def _parse(data: bytes | None) -> dict[str, Any] | None:
    try:
        content = None if data is None else from_json(data)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _read(path: str) -> tuple[bytes | None, str]:
    """Return a file's content and its stamp, None and `ABSENT` when it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None, ABSENT
    try:
        stamp = _as_stamp(os.fstat(descriptor))
        return _read_all(descriptor), stamp
    finally:
        os.close(descriptor)


def _read_all(descriptor: int) -> bytes:
    data = os.read(descriptor, READ_BYTES)
    if len(data) < READ_BYTES:
        return data
    parts = [data]
    while len(parts[-1]) == READ_BYTES:
        parts.append(os.read(descriptor, READ_BYTES))
    return b"".join(parts)


def _stamp(path: str) -> str:
    return _stamp_and_folders(path)[0]


def _stamp_and_folders(path: str) -> tuple[str, int | None]:
    """Return a path's stamp and how many folders are in it, None where that is not counted."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT, None
    return _as_stamp(found), found.st_nlink - 2 if found.st_nlink > 2 else None


def _as_stamp(found: os.stat_result) -> str:
    return f"{found.st_ino}.{found.st_mtime_ns}.{found.st_size}"

"""Notes of people about runs, sweeps and imports: ``<results>/notes/<id>.json``, one file each."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from scalelab.errors import UsageError, did_you_mean, listed, unwritable
from scalelab.records.files import fsync, list_entries, list_folders, read_json, write_atomically
from scalelab.records.parts import FOLDERS, IMPORT, NOTE, RUN, SWEEP

FOLDER = FOLDERS[NOTE]
ENDING = ".json"
MAX_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A note.

    Attributes
    ----------
    id : str
        Eight hexadecimal digits.
    about : str
        The run, sweep or import.
    kind : str
        ``run``, ``sweep`` or ``import``.
    text : str
    time_s : float
        When it was written, Unix seconds.
    """

    id: str
    about: str
    kind: str
    text: str
    time_s: float

    @property
    def file_name(self) -> str:
        """Name of its file."""
        return f"{self.id}{ENDING}"


def add_note(results: Path, about: str, text: str) -> Note:
    """Write a note about a run, sweep or import of a results folder.

    Raises
    ------
    UsageError
        If the folder has no such run, sweep or import, or the text is empty or too long.
    DataError
        If it cannot be written.
    """
    words = text.strip()
    if not words or len(words) > MAX_CHARACTERS:
        raise UsageError(
            "an empty note" if not words else f"a note of {len(words):,} characters",
            f"a text of 1 to {MAX_CHARACTERS:,} characters",
            f'Write for example: scalelab note {about} "loss spike at step 300".',
        )
    kind = _kind(results, about)
    now = time.time()
    digest = hashlib.sha256(f"{about}\n{words}\n{now}\n{os.getpid()}".encode()).hexdigest()[:8]
    note = Note(id=digest, about=about, kind=kind, text=words, time_s=now)
    path = results / FOLDER / note.file_name
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(asdict(note), indent=1) + "\n")
        fsync(path.parent)
    except OSError as error:
        raise unwritable(path.parent, "notes", error) from None
    return note


def read_notes(results: Path, about: Iterable[str] | None = None) -> tuple[Note, ...]:
    """Return the notes of a results folder, oldest first; ``about``: only those about these."""
    wanted = None if about is None else set(about)
    found = []
    for path in list_entries(results / FOLDER):
        if path.suffix != ENDING or path.name.startswith("."):
            continue
        content = read_json(path)
        try:
            note = Note(**content)  # type: ignore[arg-type]
        except TypeError:
            continue  # not one of our files
        if wanted is None or note.about in wanted:
            found.append(note)
    return tuple(sorted(found, key=lambda each: (each.time_s, each.id)))


def renamed_note(path: Path, renames: Mapping[str, str]) -> dict[str, str]:
    """Return the text of a note about a renamed sweep or import as `Write.texts`, else nothing."""
    content = read_json(path) or {}
    about = content.get("about")
    if not isinstance(about, str) or about not in renames or content.get("kind") == RUN:
        return {}
    return {"": json.dumps({**content, "about": renames[about]}, indent=1) + "\n"}


def notes_about(results: Path, about: str) -> tuple[Note, ...]:
    """Return the notes about one run, sweep or import.

    Raises
    ------
    UsageError
        If there is neither such a note nor such a run, sweep or import.
    """
    found = read_notes(results, [about])
    if not found:
        _kind(results, about)
    return found


def remove_note(results: Path, note_id: str) -> Note:
    """Remove a note; return it.

    Raises
    ------
    UsageError
        If there is no note with this ID.
    """
    known = {note.id: note for note in read_notes(results)}
    if note_id not in known:
        raise UsageError(
            f"note {note_id!r}",
            f"the ID of a note: {listed(known, note_id)}" if known else "a note, and there is none",
            f"{did_you_mean(note_id, known)}List them with `scalelab note`.",
        )
    path = results / FOLDER / f"{note_id}{ENDING}"
    try:
        path.unlink(missing_ok=True)
        fsync(path.parent)
    except OSError as error:
        raise unwritable(path.parent, "notes", error) from None
    return known[note_id]


def _kind(results: Path, about: str) -> str:
    """Return what a name is; UsageError with the likely name if it is nothing."""
    names = {kind: list_folders(str(results / FOLDERS[kind])) for kind in (SWEEP, IMPORT, RUN)}
    for kind, known in names.items():
        if about in known:
            return kind
    named = [*names[SWEEP], *names[IMPORT]]
    near = did_you_mean(about, [*named, *names[RUN]])
    raise UsageError(
        f"{about!r}, which is not a run, sweep or import of {results}",
        f"a sweep or import ({listed(named, about) or 'there is none'}), or one of "
        f"{len(names[RUN]):,} run IDs",
        near or "List the runs of a sweep with `scalelab export --table runs`.",
    )

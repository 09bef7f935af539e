"""``scalelab note``: write, list and remove notes about runs and sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from scalelab.cli.options import DEFAULT_RESULTS, JsonOption, ResultsOption
from scalelab.cli.output import console, emit_json, runnable
from scalelab.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from scalelab.records.notes import Note


def note(
    about: Annotated[
        str | None,
        typer.Argument(metavar="[RUN|SWEEP]", help="Run ID, sweep or import; none lists all."),
    ] = None,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="The note; without it, notes are listed.")
    ] = None,
    remove: Annotated[
        str | None, typer.Option("--remove", metavar="ID", help="Remove the note with this ID.")
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Write a note about a run or a sweep, or list notes.

    `scalelab status`, the dashboard and the report show them. They are files in the results folder.

    Example: scalelab note demo "budgets above 1e17 need more sizes"
    """
    from scalelab.records.notes import add_note, notes_about, read_notes, remove_note

    if remove is not None and about is not None:
        raise UsageError(
            f"--remove {remove} with {about}",
            "one of them",
            f"Write: scalelab note --remove {remove}",
        )
    if remove is not None:
        shown: Sequence[Note] = (remove_note(results, remove),)
        done = "Removed"
    elif about is not None and text is not None:
        shown, done = (add_note(results, about, text),), "Saved"
    else:
        shown = read_notes(results) if about is None else notes_about(results, about)
        done = ""
    if as_json:
        emit_json({"schema": 1, "command": "note", "notes": [asdict(each) for each in shown]})
        return EXIT_OK
    if done:
        console().print(f"{done}: {note_line(shown[0])}", markup=False, soft_wrap=True)
    for each in () if done else shown:
        console().print(note_line(each), markup=False, soft_wrap=True)
    if not shown:
        name = about or "SWEEP"
        console().print(runnable(f'No notes. Write one: scalelab note {name} "text"'))
    return EXIT_OK


def note_line(each: Note) -> str:
    """Return a note as one line: ID, date, what it is about, and its text."""
    day = datetime.fromtimestamp(each.time_s).strftime("%Y-%m-%d %H:%M")
    return f"{each.id}  {day}  {each.kind} {each.about}: {' '.join(each.text.split())}"

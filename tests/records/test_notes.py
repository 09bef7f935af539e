"""Notes about runs and sweeps: written, listed where they belong, removed, and wrong names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scalelab.cli.main import main
from scalelab.errors import UsageError
from scalelab.records.notes import MAX_CHARACTERS, add_note, notes_about, read_notes, remove_note


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for folder in ("sweeps/demo", "imports/olmo", "runs/f1b73a84f43a"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def test_a_note_is_found_by_what_it_is_about_until_it_is_removed(results: Path) -> None:
    sweep = add_note(results, "demo", " two sizes\nmore  ")
    run = add_note(results, "f1b73a84f43a", "loss spike")
    assert [each.kind for each in read_notes(results)] == ["sweep", "run"]
    assert sweep.text == "two sizes\nmore"
    assert notes_about(results, "demo") == (sweep,)
    assert notes_about(results, "olmo") == ()
    assert remove_note(results, run.id) == run
    assert read_notes(results) == (sweep,)
    with pytest.raises(UsageError, match=f"the ID of a note: {sweep.id}"):
        remove_note(results, run.id)


def test_wrong_names_and_texts_say_what_was_meant(results: Path) -> None:
    for wrong, meant in (("dmeo", "demo"), ("f1b73a84f43b", "f1b73a84f43a"), ("Olmo", "olmo")):
        with pytest.raises(UsageError) as caught:
            add_note(results, wrong, "text")
        assert f"Did you mean {meant}?" in caught.value.do
    for text in ("  ", "x" * (MAX_CHARACTERS + 1)):
        with pytest.raises(UsageError, match="a text of 1 to"):
            add_note(results, "demo", text)
    with pytest.raises(UsageError):
        notes_about(results, "nothing")


def test_a_file_that_is_no_note_is_left_alone(results: Path) -> None:
    note = add_note(results, "demo", "text")
    (results / "notes" / "other.json").write_text('{"a": 1}')
    (results / "notes" / "broken.json").write_text("{")
    assert read_notes(results) == (note,)


def test_the_command_writes_lists_and_removes(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--results", str(results)]
    assert main(["note", "demo", "[bold]not markup[/bold]", *where]) == 0
    assert "sweep demo: [bold]not markup[/bold]" in capsys.readouterr().out
    assert main(["note", *where, "--json"]) == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert main(["note", "demo", "--remove", note["id"], *where]) == UsageError.exit_code
    assert main(["note", "--remove", note["id"], *where]) == 0
    capsys.readouterr()
    assert main(["note", *where]) == 0
    assert "No notes" in capsys.readouterr().out

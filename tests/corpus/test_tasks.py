"""Task files: items, and what is wrong with a line."""

import json

import pytest

from scalelab.corpus.tasks import read_task, require_name
from scalelab.errors import DataError, UsageError

GOOD = {"context": "2 + 2 =", "choices": ["4", "5"], "answer": 0}


def write(folder, *lines):
    file = folder / "sums.jsonl"
    file.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return file


def test_an_answer_is_a_place_or_the_text_of_a_choice(tmp_path):
    found = read_task(write(tmp_path, GOOD, "", {**GOOD, "answer": "5", "id": 7}), "sums")
    assert found.kind == "task"
    assert [item.answer for item in found.items] == [0, 1]
    assert found.items[0].choices == ("4", "5")


def test_texts_are_a_task_of_perplexity(tmp_path):
    found = read_task(write(tmp_path, {"text": "one"}, {"text": "two "}), "sums")
    assert (found.kind, [item.choices for item in found.items]) == ("text", [("one",), ("two ",)])


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "line 2 of .*: no JSON"),
        ("[1]", "no JSON object"),
        ({"context": "a", "answer": 0}, "an item without choices"),
        (
            {"context": "a", "choise": ["b", "c"], "answer": 0},
            "without choices. Did you mean choic",
        ),
        ({**GOOD, "choices": []}, "an item with 0 choices"),
        ({**GOOD, "choices": ["4"]}, "an item with 1 choice"),
        ({**GOOD, "choices": ["4", ""]}, "no list of texts"),
        ({**GOOD, "answer": 2}, "answer 2, with choices from 0 to 1"),
        ({**GOOD, "answer": -1}, "answer -1, with choices from 0 to 1"),
        ({**GOOD, "answer": "6"}, "not exactly one of the choices"),
        ({**GOOD, "answer": True}, "answer True"),
        ({"context": "a", "choices": ["b", "c"]}, "an item without answer"),
        ({**GOOD, "context": 3}, "context 3"),
        ({"text": ""}, "text that is empty"),
        ({"text": "a\x00"}, "NUL"),
        ({"text": "one"}, "items of both kinds"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, what):
    with pytest.raises(DataError, match=what):
        read_task(write(tmp_path, GOOD, line), "sums")


def test_the_number_of_wrong_lines_and_a_file_without_items(tmp_path):
    with pytest.raises(DataError, match=r"line 1 of .*\(3 lines cannot be used\)"):
        read_task(write(tmp_path, "x", "y", GOOD, "z"), "sums")
    with pytest.raises(DataError, match="with no item"):
        read_task(write(tmp_path, ""), "sums")
    with pytest.raises(DataError, match="cannot be read"):
        read_task(tmp_path / "sum.jsonl", "sums")


def test_the_fingerprint_follows_the_items(tmp_path):
    first = read_task(write(tmp_path, GOOD), "sums").fingerprint
    assert read_task(write(tmp_path, "", {**GOOD, "note": 1}), "other").fingerprint == first
    assert read_task(write(tmp_path, {**GOOD, "answer": 1}), "sums").fingerprint != first


@pytest.mark.parametrize("name", ["Facts", "2nd", "a-b", "heldout", ""])
def test_a_name_that_the_tables_cannot_have_is_refused(name):
    with pytest.raises(UsageError, match="whose name would be") as caught:
        require_name(name, f"--tasks {name}.jsonl")
    assert f"for example facts={name}.jsonl" in caught.value.do

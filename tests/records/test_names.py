"""Names become folders, parts of job names and shell words, and are valid as each."""

import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.errors import UsageError
from scalelab.records.names import MAX_NAME_LENGTH, check_name, named_folder, suggest_name

HOSTILE = [
    "", ".", "..", "../x", "a/b", "/etc", "a\\b", "a b", "a\n", "\na", "a\tb", "a'b", 'a"b',
    "$(id)", "`id`",
    "a;b", "a|b", "a&b", "a>b", "*", "?", "~", "~root", "-rf", "--name", ".hidden", "a\0b",
    "ä", "a\u202eb", "x" * (MAX_NAME_LENGTH + 1), "%j", "a:b", "a=b", "!x", "#x", "{a,b}", "[a]",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_an_invalid_name_is_refused(name):
    with pytest.raises(UsageError) as caught:
        check_name(name, what="sweep")
    assert repr(name) in caught.value.given
    assert caught.value.allowed
    assert caught.value.do
    assert check_name(suggest_name(name))


@pytest.mark.parametrize("name", ["demo", "a", "7b-2t", "1e18..1e20", "_x", "A.b_c-d", "x" * 64])
def test_plain_names_pass_unchanged(name):
    assert check_name(name) == name


@given(st.text(max_size=80))
@settings(max_examples=300, deadline=None)
def test_every_accepted_name_is_one_folder_and_one_shell_word(name):
    parent = Path("/results/sweeps")
    try:
        folder = named_folder(parent, name)
    except UsageError:
        return
    assert folder.resolve().parent == parent
    assert shlex.split(name) == [name] == [shlex.quote(name)]


@given(st.text(max_size=100))
@settings(max_examples=200, deadline=None)
def test_a_suggestion_is_always_allowed(text):
    assert check_name(suggest_name(text))

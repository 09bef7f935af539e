"""JSON of any layout and size gives its rows, a broken file those around the break."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus import json_rows
from scalelab.corpus.json_rows import RawRow, is_in_lines, parse, read_raw_rows
from scalelab.errors import DataError

values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**9) | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=4), values, max_size=4)

LAYOUTS = {
    "lines": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "lines without escapes": lambda rows: "\r\n".join(
        json.dumps(row, ensure_ascii=False) for row in rows
    ),
    "list": lambda rows: json.dumps(rows),
    "list, indented": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False),
    "objects, indented": lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows),
    "objects": lambda rows: "".join(json.dumps(row) for row in rows),
}


def rows_of(content: bytes, *, is_lines: bool = False) -> list[RawRow]:
    stream = io.BufferedReader(io.BytesIO(content))  # type: ignore[arg-type]
    return list(read_raw_rows(stream, content[:200], Path("a.json"), is_lines=is_lines))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(objects, min_size=1, max_size=6),
    layout=st.sampled_from(sorted(LAYOUTS)),
    block=st.integers(1, 40),
    has_mark=st.booleans(),
)
def test_rows_of_every_layout_come_back(
    rows: list[dict[str, Any]], layout: str, block: int, has_mark: bool
) -> None:
    content = b"\xef\xbb\xbf" * has_mark + LAYOUTS[layout](rows).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "BLOCK_BYTES", block + 3)
        found = rows_of(content)
    assert not any(row.problem for row in found)
    assert [parse(row.content) for row in found] == rows


@settings(max_examples=30, deadline=None)
@given(members=st.lists(values, max_size=6), block=st.integers(1, 30))
def test_a_list_gives_every_member_also_those_that_are_no_objects(
    members: list[Any], block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "BLOCK_BYTES", block)
        found = rows_of(json.dumps(members).encode())
    assert [parse(row.content) for row in found] == members


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(objects, min_size=2, max_size=5),
    layout=st.sampled_from(["list", "list, indented", "objects, indented"]),
    share=st.floats(0, 1),
)
def test_a_cut_file_gives_the_rows_before_the_cut_and_one_bad_row(
    rows: list[dict[str, Any]], layout: str, share: float
) -> None:
    whole = LAYOUTS[layout](rows).encode("utf-8", "surrogatepass")
    content = whole[: int(share * len(whole))]
    found = rows_of(content, is_lines=False)
    good = [parse(row.content) for row in found if not row.problem]
    assert good == rows[: len(good)]
    assert sum(bool(row.problem) for row in found) <= 1
    if "list" in layout and content.strip():
        assert found[-1].problem or content == whole


@settings(max_examples=30, deadline=None)
@given(content=st.binary(max_size=60) | st.text('{}[]",:\\ \na1', max_size=60).map(str.encode))
def test_no_content_ends_in_another_error(content: bytes) -> None:
    for is_lines in (False, True):
        for row in rows_of(content, is_lines=is_lines):
            if not row.problem:
                with contextlib.suppress(ValueError):
                    parse(row.content)


def test_a_bad_line_in_the_middle_leaves_the_lines_after_it() -> None:
    content = b'{"a": 1}\n{"a": \n{"a": "unclosed}\n{"a": 2}\n'
    assert is_in_lines(content)
    assert [row.place for row in rows_of(content)] == ["line 1", "line 2", "line 3", "line 4"]


def test_a_bad_member_in_the_middle_of_a_list_leaves_those_after_it() -> None:
    found = rows_of(b'[{"a": 1}, {"a" 2}, null, garbage, {"a": "}{"}, {"b": [}]}, {"a": 3}]')
    contents = [row.content for row in found]
    assert contents[0] == b'{"a": 1}'
    assert b'{"a": "}{"}' in contents
    assert b"null" in contents
    assert b"garbage" in contents


def test_a_row_that_is_too_long_is_named_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MOST_ROW_BYTES", 1000)
    monkeypatch.setattr(json_rows, "BLOCK_BYTES", 100)
    long = b'{"a": "' + b"x" * 5000 + b'"}\n'
    found = rows_of(b'{"a": 1}\n' + long + b'{"a": 2}\n', is_lines=True)
    assert [row.place for row in found] == ["line 1", "line 2", "line 3"]
    assert "longer than" in found[1].problem
    assert len(found[1].content) < 100
    with pytest.raises(DataError, match="value is longer than"):
        rows_of(b"[" + long + b"]")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_a_million_brackets_are_one_bad_row(opening: bytes) -> None:
    (row,) = rows_of(b"[" + 100_000 * opening)
    assert row.problem == "the file ends before the row ends"

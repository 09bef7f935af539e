from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus import documents
from scalelab.corpus.documents import CutTextError, NotTextError, kind_of, read_rows, read_text
from scalelab.corpus.rejects import Reject
from scalelab.corpus.source import TEXT, DataSource, find_files
from scalelab.errors import DataError


def rows_of(path: Path, field: str = "text", column: str = "text") -> list[bytes | Reject]:
    source = DataSource(paths=(str(path),), field=field, column=column)
    (file,) = find_files(source, path.parent / "results")
    kind, _ = kind_of(file, source)
    if kind == TEXT:
        return [b"".join(block for block, _ in read_text(file))]
    return [row for row, _ in read_rows(file, source, kind)]


def read(path: Path, field: str = "text", column: str = "text") -> list[str]:
    rows = rows_of(path, field, column)
    return [row.decode() for row in rows if isinstance(row, bytes) and row]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents")


texts = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40), max_size=8
)


STRINGS = {
    str(kind): kind
    for kind in (
        *(pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())),
        *(pa.binary(), pa.large_binary(), pa.binary_view()),
    )
}


@settings(max_examples=40, deadline=None)
@given(texts=texts, kind=st.sampled_from(sorted(STRINGS)))
def test_rows_come_back_as_they_were_written(folder: Path, texts: list[str], kind: str) -> None:
    kept = [text for text in texts if text]
    lines = folder / "rows.jsonl"
    lines.write_text("".join(json.dumps({"n": 1, "body": text}) + "\n" for text in texts))
    assert read(lines, field="body") == kept
    table = folder / "rows.parquet"
    pq.write_table(pa.table({"body": pa.array([*texts, None]).cast(STRINGS[kind])}), table)
    assert read(table, column="body") == kept


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_text_file_is_one_document(folder: Path, text: str) -> None:
    path = folder / "some.txt"
    path.write_bytes(text.encode())
    assert read(path) == ([text] if text else [])


@pytest.mark.parametrize(
    ("field", "row"),
    [
        ("text", '{"text": "a"}'),
        ("text", r'{"te\u0078t": "a"}'),
        ("tëxt", '{"n": [1, {}], "tëxt": "a"}'),
        ('te"xt', r'{"te\"xt": "a"}'),
        ("meta.text", '{"meta": {"text" : "a"}}'),
    ],
)
def test_rows_under_another_ending_are_known_by_their_field(
    tmp_path: Path, field: str, row: str
) -> None:
    path = tmp_path / "rows.txt"
    path.write_text(f"{row}\n{row}\n", encoding="utf-8")
    assert read(path, field=field) == ["a", "a"]
    assert read(path, field="body") == [f"{row}\n{row}\n"]


def test_a_byte_order_mark_before_the_rows_is_no_part_of_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}')
    assert read(path) == ["a", "b"]


@settings(max_examples=40, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60),
    bad=st.sampled_from([b"\xff", b"\0", b"\xe9 x", b"\xc0\x80"]),
    block=st.integers(1, 20),
    share=st.floats(0, 1),
)
def test_the_first_byte_that_is_no_text_is_named(
    folder: Path, text: str, bad: bytes, block: int, share: float
) -> None:
    at = len(text[: int(share * len(text))].encode())
    content = text.encode()[:at] + bad + text.encode()[at:]
    path = folder / "bad.txt"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "BLOCK_BYTES", block)
        with pytest.raises(NotTextError, match=rf"byte {at + 1:,} is"):
            read(path)


@settings(max_examples=40, deadline=None)
@given(
    text=st.text("aé日𝄞", min_size=1, max_size=40), n=st.integers(0, 40), block=st.integers(1, 9)
)
def test_a_text_cut_inside_a_character_is_kept_without_it(
    folder: Path, text: str, n: int, block: int
) -> None:
    whole = ("é" + text).encode()
    content = whole[: len(whole) - min(n, len(whole) - 2)]
    path = folder / "cut.txt"
    path.write_bytes(content)
    source = DataSource(paths=(str(path),))
    (file,) = find_files(source, folder / "results")
    found = b""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "BLOCK_BYTES", block)
        try:
            for part, _ in read_text(file):
                found += part
        except CutTextError:
            assert found != content
    assert found == content.decode("utf-8", "ignore").encode()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00h", b"caf\xe9", b"text\0more", b"\x80"])
def test_content_other_than_utf8_text_is_detected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(NotTextError):
        read(path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "a"', "is not JSON, or is cut"),
        (b'{"text": "caf\xe9"}', "is not UTF-8 (byte 0xe9)"),
        (b'["a"]', "is a list, not an object"),
        (b"null", "is null, not an object"),
        (b'{"body": "a", "id": 4}', "has no field 'text'"),
        (b'{"text": 4}', "has a number as 'text'"),
        (b'{"text": null}', "has null as 'text'"),
        (b'{"text": ["a", null]}', "has null as 'text'"),
        (b'{"text": "\\ud800"}', "has half of a surrogate pair"),
        (b'{"text": "a\\u0000b"}', "contains the character U+0000"),
        (b'{"text":' + 100_000 * b"[", "nested too deeply"),
        (b'{"text": ' + 5000 * b"9" + b"}", "is not JSON"),
    ],
)
def test_a_bad_line_is_left_out_with_its_place(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "next"}\n')
    first, reject, last = rows_of(path)
    assert (first, last) == (b"good", b"next")
    assert isinstance(reject, Reject)
    assert reject.place == "line 3"
    assert problem in reject.reason
    assert line.startswith(reject.start[:3].encode())


def test_the_same_bad_row_has_the_same_reason_in_every_format(tmp_path: Path) -> None:
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_text('{"text": "a"}\n{"text": null}\n{"text": "b\\u0000c"}\n')
    pq.write_table(pa.table({"text": ["a", None, "b\0c"]}), table)
    reasons = [[r.reason for r in rows_of(p) if isinstance(r, Reject)] for p in (lines, table)]
    assert reasons[0] == reasons[1]
    assert len(reasons[0]) == 2


def test_a_missing_column_or_one_of_numbers_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    inner = pa.array([{"words": "b", "n": 1}])
    pq.write_table(pa.table({"body": ["a"], "n": [4], "meta": inner}), path)
    with pytest.raises(DataError, match=r"no column 'text' in .* has body, meta\.words.*--column"):
        read(path)
    with pytest.raises(DataError, match=r"column 'n' of .* holds int64"):
        read(path, column="n")
    with pytest.raises(DataError, match=r"no column 'meta\.none'"):
        read(path, column="meta.none")


def test_strings_that_are_not_utf8_in_parquet_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    for kind in (pa.string(), pa.binary()):
        content = pa.array([b"good", b"caf\xe9", b"more"], pa.binary()).view(kind)
        pq.write_table(pa.table({"text": content}), path)
        first, reject, last = rows_of(path)
        assert (first, last) == (b"good", b"more")
        assert isinstance(reject, Reject)
        assert (reject.place, reject.reason) == ("row 2", "is not UTF-8 (byte 0xe9)")


nested = st.recursive(
    st.fixed_dictionaries({"text": st.text(st.characters(codec="utf-8", exclude_characters="\0"))}),
    lambda inner: st.fixed_dictionaries({"meta": inner}),
    max_leaves=3,
)


@settings(max_examples=30, deadline=None)
@given(row=nested, depth=st.integers(0, 3))
def test_a_nested_field_is_found_in_json_and_parquet(
    folder: Path, row: dict[str, object], depth: int
) -> None:
    name, inner = "text", row
    while "meta" in inner:
        name, inner = f"meta.{name}", inner["meta"]  # type: ignore[assignment]
    expected = [inner["text"]] if inner["text"] else []
    lines, table = folder / "nested.jsonl", folder / "nested.parquet"
    lines.write_text(json.dumps(row) + "\n")
    pq.write_table(pa.table({key: [value] for key, value in row.items()}), table)
    assert read(lines, field=name) == expected
    assert read(table, column=name) == expected
    # A key with the whole name goes before a nested one.
    lines.write_text(json.dumps({**row, f"a.{name}": "whole", "a": row}) + "\n")
    assert read(lines, field=f"a.{name}") == ["whole"]


def test_a_long_first_row_and_deep_nesting_are_seen_in_a_file_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "dump.txt"
    path.write_text(json.dumps({"text": "x" * 200_000}) + '\n{"text": "b"}\n')
    assert [len(text) for text in read(path)] == [200_000, 1]
    path.write_text('{"text": "a"}\n{"text": ' + 900 * "[" + 900 * "]" + "}\n")
    first, reject = rows_of(path)
    assert first == b"a"
    assert isinstance(reject, Reject)
    assert reject.reason == "is nested too deeply"


def test_indented_objects_in_a_file_of_json_lines_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"id": 1, "text": text}, indent=2) for text in "abc"))
    assert read(path) == ["a", "b", "c"]


def test_lists_of_text_become_lines(tmp_path: Path) -> None:
    rows = [{"turns": [{"said": "a"}, {"said": "b"}]}, {"turns": []}]
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    pq.write_table(pa.Table.from_pylist(rows), table)
    assert read(lines, field="turns.said") == ["a\nb"]
    assert read(table, column="turns.said") == ["a\nb"]


def test_parquet_that_is_none_or_cut_off_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a" * 1000]}), path)
    for content in (b"no table at all", path.read_bytes()[:-20], b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not Parquet"):
            read(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_file_that_may_not_be_read_is_said(
    public_folder: Path, name: str, ordinary_user: Callable[[], AbstractContextManager[None]]
) -> None:
    path = public_folder / name
    path.write_text("text")
    path.chmod(0)
    with ordinary_user(), pytest.raises(DataError, match="cannot be read"):
        read(path)


def test_the_shards_that_nanochat_wrote_are_read() -> None:
    samples = Path(__file__).parent / "samples/data_nanochat_parquet"
    found = [read(path) for path in sorted(samples.glob("*.parquet"))]
    assert [len(texts) for texts in found] == [30, 19]

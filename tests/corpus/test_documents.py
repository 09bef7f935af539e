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

from scalelab.corpus.documents import NotTextError, read_documents
from scalelab.corpus.source import DataSource, SourceFile
from scalelab.errors import DataError

KINDS = {".jsonl": "jsonl", ".parquet": "parquet"}


def read(path: Path, field: str = "text", column: str = "text") -> list[str]:
    file = SourceFile(path=path, kind=KINDS.get(path.suffix, "text"), is_named=True)
    documents = read_documents(file, DataSource(field=field, column=column))
    return [document.decode() for document in documents if document]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents")


texts = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40), max_size=8
)


@settings(max_examples=40, deadline=None)
@given(texts=texts)
def test_rows_come_back_as_they_were_written(folder: Path, texts: list[str]) -> None:
    kept = [text for text in texts if text]
    lines = folder / "rows.jsonl"
    lines.write_text("".join(json.dumps({"n": 1, "body": text}) + "\n" for text in texts))
    assert read(lines, field="body") == kept
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        table = folder / "rows.parquet"
        pq.write_table(pa.table({"body": pa.array([*texts, None], type=kind)}), table)
        assert read(table, column="body") == kept


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_text_file_is_one_document(folder: Path, text: str) -> None:
    path = folder / "some.txt"
    path.write_bytes(text.encode())
    assert read(path) == ([text] if text else [])


def test_a_byte_order_mark_before_the_rows_is_no_part_of_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}')
    assert read(path) == ["a", "b"]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00h", b"caf\xe9", b"text\0more", b"\x80"])
def test_content_other_than_utf8_text_is_detected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(NotTextError):
        read(path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "a"', "line 3 .* is not JSON"),
        (b'{"text": "caf\xe9"}', "line 3 .* is not JSON"),
        (b'["a"]', "line 3 .* is a list, not an object"),
        (b'{"body": "a", "id": 4}', r"no field 'text' in line 3 .* \['body', 'id'\].*--field"),
        (b'{"text": 4}', "line 3 .* has a int as 'text'"),
        (b'{"text": null}', "line 3 .* has a NoneType as 'text'"),
        (b'{"text": "\\ud800"}', "line 3 .* surrogate"),
        (b'{"text": "a\\u0000b"}', r"line 3 .* U\+0000"),
        (b'{"text":' + 100_000 * b"[", "line 3 .* is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=problem):
        read(path)


def test_a_missing_column_or_one_of_numbers_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"body": ["a"], "n": [4]}), path)
    with pytest.raises(DataError, match=r"no column 'text' in .*\['body', 'n'\].*--column"):
        read(path)
    with pytest.raises(DataError, match=r"column 'n' of .* holds int64"):
        read(path, column="n")
    pq.write_table(pa.table({"body": ["a", None, "b\0c"]}), path)
    with pytest.raises(DataError, match=r"row 3 of .* U\+0000"):
        read(path, column="body")


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

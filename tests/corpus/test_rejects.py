"""Rows that cannot be used are left out, counted and listed, the same in every format."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus.dataset import Dataset, prepare
from scalelab.corpus.source import DataSource
from scalelab.errors import DataError, UsageError

Row = str | bytes | None
NUL, NULL, NOT_UTF8 = "a\0b", None, b"caf\xe9"


def write_lines(path: Path, rows: list[Row]) -> None:
    def line(row: Row) -> bytes:
        if isinstance(row, bytes):
            return b'{"text": "' + row + b'"}\n'
        return json.dumps({"text": row}).encode() + b"\n"

    path.write_bytes(b"".join(map(line, rows)))


def write_list(path: Path, rows: list[Row]) -> None:
    write_lines(path, rows)
    path.write_bytes(b"[" + b",\n".join(path.read_bytes().splitlines()) + b"]")


def write_gzip(path: Path, rows: list[Row]) -> None:
    write_lines(path, rows)
    path.write_bytes(gzip.compress(path.read_bytes()))


def write_parquet(path: Path, rows: list[Row]) -> None:
    contents = [row.encode() if isinstance(row, str) else row for row in rows]
    pq.write_table(pa.table({"text": pa.array(contents, pa.binary()).view(pa.string())}), path)


def write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file)
        table.writerow(["n", "text"])
        for number, row in enumerate(rows):
            text = row.decode("utf-8", "surrogateescape") if isinstance(row, bytes) else row
            table.writerow([number, text] if text is not None else [number])


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    "rows.jsonl": write_lines,
    "rows.ndjson": write_lines,
    "rows.JSON": write_lines,
    "rows.txt": write_lines,
    "list.json": write_list,
    "rows.json.gz": write_gzip,
    "rows.parquet": write_parquet,
    "rows.csv": write_csv,
}


def prepared(path: Path, max_rejects: float = 0.1) -> Dataset:
    source = DataSource(paths=(str(path),), eval_tokens=300, max_rejects=max_rejects)
    return prepare(source, path.parent / "results")


@pytest.fixture(scope="module")
def good(make_documents: Callable[..., list[str]]) -> list[str]:
    return make_documents(40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rejects")


@settings(max_examples=12, deadline=None)
@given(
    bad=st.lists(
        st.tuples(st.integers(1, 39), st.sampled_from([NUL, NULL, NOT_UTF8])),
        max_size=4,
        unique_by=lambda pair: pair[0],
    ),
    name=st.sampled_from(sorted(WRITERS)),
)
def test_bad_rows_change_nothing_but_the_counts(
    folder: Path, good: list[str], bad: list[tuple[int, Row]], name: str
) -> None:
    rows: list[Row] = [*good]
    for index, row in sorted(bad, reverse=True):
        rows.insert(index, row)
    WRITERS["rows.jsonl"](folder / "good.jsonl", [*good])
    WRITERS[name](folder / name, rows)
    dataset = prepared(folder / name)
    assert dataset.fingerprint == prepared(folder / "good.jsonl").fingerprint
    assert dataset.manifest.n_rejected == len(bad)
    assert dataset.manifest.n_markup_files == 0
    assert (dataset.rejects is not None) == bool(bad)
    if dataset.rejects is not None:
        listed = [json.loads(line) for line in dataset.rejects.read_text().splitlines()]
        # Row n is in line n of JSON Lines, and in line n + 1 of CSV.
        first = 2 if name.endswith("csv") else 1
        places = [number for number, row in enumerate(rows, first) if row not in good]
        assert [int(row["place"].split()[1]) for row in listed] == places
        assert all(row["file"] == str(folder / name) and row["reason"] for row in listed)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_more_than_the_allowed_share_is_an_error_that_lists_them(
    tmp_path: Path, good: list[str], name: str
) -> None:
    WRITERS[name](tmp_path / name, [*good, *5 * [NUL]])
    with pytest.raises(DataError, match="5 of 45 documents cannot be used") as caught:
        prepared(tmp_path / name)
    (listed,) = (tmp_path / "results/data/rejects").iterdir()
    assert str(listed) in caught.value.do
    assert len(listed.read_text().splitlines()) == 5
    accepted = re.search(r"--max-rejects ([0-9.]+)\.", caught.value.do)
    assert accepted is not None
    dataset = prepared(tmp_path / name, float(accepted[1]))
    assert (dataset.manifest.n_documents, dataset.manifest.n_rejected) == (40, 5)
    with pytest.raises(DataError, match="at most a share of 0 "):
        prepared(tmp_path / name, 0.0)


def test_a_share_is_from_zero_to_one() -> None:
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="max-rejects"):
            DataSource(max_rejects=share)


def test_the_list_of_a_found_dataset_is_that_of_its_source(
    tmp_path: Path, good: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalelab.corpus.build.UNSETTLED_S", 0.0)
    write_lines(tmp_path / "bad.jsonl", [*good, None])
    write_lines(tmp_path / "good.jsonl", [*good])
    for _ in ("made", "found"):
        bad, clean = prepared(tmp_path / "bad.jsonl"), prepared(tmp_path / "good.jsonl")
        assert bad.folder == clean.folder
        assert clean.rejects is None
        assert bad.rejects is not None
        assert "line 41" in bad.rejects.read_text()
        assert "1 document cannot be used and was left out" in bad.warnings()[0]


def test_json_without_the_field_is_text_that_is_said_unless_it_is_most_of_the_text(
    tmp_path: Path, good: list[str]
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    for number, text in enumerate(good):
        (code / f"{number}.py").write_text(text)
    (code / "package.json").write_text('{"name": "x",\n "files": []}')
    (code / "page.html").write_text("<!DOCTYPE html><p>text")
    (code / "cities.csv").write_text("name,size\nA,1\n")
    dataset = prepared(code)
    assert dataset.manifest.n_documents == 43
    assert dataset.manifest.n_markup_files == 3
    assert "3 files of HTML, XML, JSON or CSV were read as text" in dataset.warnings()[0]
    # The same text, all of it in JSON whose field has another name.
    rows = tmp_path / "rows"
    rows.mkdir()
    for number, text in enumerate(good):
        (rows / f"{number}.json").write_text(json.dumps({"id": "1", "doc": {"body": text}}))
    with pytest.raises(DataError, match=r"has doc\.body, id") as caught:
        prepared(rows)
    assert "--field doc.body" in caught.value.do
    for options in ({"field": "doc.body"}, {"format": "text"}):
        source = DataSource(paths=(str(rows),), eval_tokens=300, **options)
        assert prepare(source, tmp_path / "results").manifest.n_documents == 40


def test_a_file_of_one_object_holds_its_rows_in_a_list(tmp_path: Path, good: list[str]) -> None:
    content = {"version": 1, "data": [{"text": text} for text in good]}
    (tmp_path / "a.json").write_text(json.dumps(content, indent=1))
    source = DataSource(paths=(str(tmp_path / "a.json"),), field="data.text", eval_tokens=300)
    assert prepare(source, tmp_path / "results").manifest.n_documents == 40

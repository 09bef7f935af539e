"""Damaged and hostile Parquet ends in a clear error, never in a crash or a full memory."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus import parquet_rows
from scalelab.corpus.parquet_rows import read_parquet
from scalelab.errors import DataError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "rows.parquet"
    pq.write_table(pa.table({"text": [f"text {i} " * 20 for i in range(60)]}), path)
    return path


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_changed_bytes_of_parquet_never_crash(whole: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    path = whole.parent / "changed.parquet"
    path.write_bytes(content[:end])
    with contextlib.suppress(DataError):
        assert sum(1 for _ in read_parquet(path, "text")) <= 10**6


def test_far_more_rows_than_bytes_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    nulls = pa.nulls(2_000_000, pa.dictionary(pa.int32(), pa.string()))
    pq.write_table(pa.table({"text": nulls}), path)
    with pytest.raises(DataError, match=r"claims 2,000,000 rows in [0-9,]+ bytes"):
        next(read_parquet(path, "text"))


def test_equal_long_texts_do_not_unpack_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_rows, "FREE_BYTES", 1 << 20)
    path = tmp_path / "rows.parquet"
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), ["x" * 10_000])
    pq.write_table(pa.table({"text": long}), path)
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        list(read_parquet(path, "text"))

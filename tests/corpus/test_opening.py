"""Compressed files are read as what they hold; damaged ones and bombs end in a clear error."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus import opening
from scalelab.corpus.opening import open_stream
from scalelab.errors import DataError


def zstd(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstd,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "txt": bytes,
}


def read(path: Path) -> bytes:
    with open_stream(path) as (stream, _):
        return stream.read()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("opening")


@settings(max_examples=20, deadline=None)
@given(
    parts=st.lists(st.text(max_size=50), min_size=1, max_size=3),
    kind=st.sampled_from(sorted(PACKERS)),
    name=st.sampled_from(["a.txt", "a.gz", "a"]),
)
def test_what_was_packed_comes_back_also_from_several_members(
    folder: Path, parts: list[str], kind: str, name: str
) -> None:
    path = folder / name
    contents = [f"text {part}".encode("utf-8", "surrogatepass") for part in parts]
    path.write_bytes(b"".join(PACKERS[kind](content) for content in contents))
    assert read(path) == b"".join(contents)


@pytest.mark.parametrize("kind", ["gz", "zst", "bz2", "xz"])
def test_a_cut_or_damaged_file_is_an_error(tmp_path: Path, kind: str) -> None:
    packed = PACKERS[kind](b"some text of some length " * 400)
    path = tmp_path / "a"
    # Without a checksum, as here, zstd may unpack damaged bytes to others.
    changed = packed[:12] + b"\xff" * 20 + packed[32:] if kind != "zst" else packed[:20]
    for content in (packed[:-9], changed):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is damaged or cut") as caught:
            read(path)
        assert caught.value.do


@pytest.mark.parametrize("kind", ["gz", "zst", "bz2", "xz"])
def test_a_bomb_is_not_unpacked(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "FREE_BYTES", 1 << 20)
    path = tmp_path / "a"
    path.write_bytes(PACKERS[kind](bytes(8 << 20)))
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        read(path)

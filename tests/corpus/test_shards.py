from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus.shards import (
    Manifest,
    Shard,
    ShardWriter,
    check_hashes,
    fingerprints,
    read_manifest,
)
from scalelab.corpus.token_stream import TokenStream
from scalelab.errors import DataError


def write(folder: Path, tokens: np.ndarray, shard_tokens: int, dtype: str) -> tuple[Shard, ...]:
    kind = np.dtype(dtype)
    writer = ShardWriter(folder, "train", kind, shard_bytes=shard_tokens * kind.itemsize)
    for part in np.array_split(tokens, 7):
        writer.append(part)
    return writer.finish()


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 500),
    shard_tokens=st.integers(1, 200),
    dtype=st.sampled_from(["uint8", "uint16", "uint32"]),
    data=st.data(),
)
def test_what_is_read_is_what_was_written_across_shards(
    tmp_path_factory: pytest.TempPathFactory,
    n: int,
    shard_tokens: int,
    dtype: str,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    tokens = np.random.default_rng(n).integers(0, np.iinfo(dtype).max, n, endpoint=True)
    shards = write(folder, tokens, shard_tokens, dtype)
    assert [shard.n_tokens for shard in shards[:-1]] == [shard_tokens] * (len(shards) - 1)
    stream = TokenStream(folder, shards, dtype)
    assert len(stream) == n
    length = data.draw(st.integers(1, n))
    starts = data.draw(st.lists(st.integers(0, n - length), min_size=1, max_size=5))
    rows = np.empty((len(starts), length), dtype=np.int64)
    stream.read_rows(np.array(starts, dtype=np.int64), rows)
    np.testing.assert_array_equal(rows, [tokens[start : start + length] for start in starts])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = write(tmp_path, np.arange(100) * 600, 30, "uint16")
    fingerprint, eval_fingerprint = fingerprints("bytes", None, shards, shards[:1])
    manifest = Manifest(
        fingerprint=fingerprint,
        eval_fingerprint=eval_fingerprint,
        tokenizer="bytes",
        tokenizer_sha256=None,
        vocab_size=60_000,
        dtype="uint16",
        n_documents=3,
        n_train_documents=2,
        n_held_out_documents=1,
        n_duplicates=0,
        n_skipped_files=0,
        held_out_share=0.5,
        eval_window_tokens=9,
        bytes_per_token=1.0,
        source="numbers",
        train=shards,
        evaluation=shards[:1],
    )
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    return tmp_path


def test_the_manifest_and_the_bytes_are_as_described(folder: Path) -> None:
    manifest = read_manifest(folder)
    check_hashes(folder, manifest)
    content = (folder / "train-00001.bin").read_bytes()
    assert content == (np.arange(30, 60) * 600).astype("<u2").tobytes()
    assert manifest.train[1].sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("cut", [0, 1, 59])
def test_a_shard_cut_short_is_seen_when_opened(folder: Path, cut: int) -> None:
    path = folder / "train-00002.bin"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=f"train-00002.bin {cut} bytes of 60 bytes"):
        read_manifest(folder)


def test_a_missing_shard_is_seen_when_opened(folder: Path) -> None:
    (folder / "train-00003.bin").unlink()
    with pytest.raises(DataError, match=r"train-00003\.bin missing"):
        read_manifest(folder)


def test_one_changed_bit_is_seen_when_checked(folder: Path) -> None:
    path = folder / "train-00001.bin"
    content = bytearray(path.read_bytes())
    content[17] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00001\.bin with changed content"):
        check_hashes(folder, read_manifest(folder))


def test_a_manifest_that_is_torn_or_of_another_format_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    text = path.read_text()
    for torn in (text[: len(text) // 2], "", "[]", "7", json.dumps({"format": 1})):
        path.write_text(torn)
        with pytest.raises(DataError, match="manifest"):
            read_manifest(folder)
    earlier = json.loads(text)
    del earlier["n_empty"]
    path.write_text(json.dumps(earlier))
    assert read_manifest(folder).n_empty == 0
    path.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(DataError, match="format 2"):
        read_manifest(folder)
    path.unlink()
    with pytest.raises(DataError, match="no manifest"):
        read_manifest(folder)


def test_fingerprints_know_the_tokenizer_the_text_and_its_order(folder: Path) -> None:
    shards = read_manifest(folder).train
    base = fingerprints("bytes", None, shards[1:], shards[:1])
    others = [
        fingerprints("bpe:300", None, shards[1:], shards[:1]),
        fingerprints("bytes", "ab", shards[1:], shards[:1]),
        fingerprints("bytes", None, shards[:0:-1], shards[:1]),
        fingerprints("bytes", None, shards[1:], shards[1:2]),
    ]
    assert len({base[0], *(other[0] for other in others)}) == 5
    assert others[2][1] == base[1], "the evaluation set is the same"
    assert others[3][1] != base[1]
    renamed = tuple(replace(shard, name="other") for shard in shards)
    assert fingerprints("bytes", None, renamed[1:], renamed[:1]) == base

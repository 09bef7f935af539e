"""Tokens in datasets of Hugging Face and MosaicML: the samples, conversions and damaged files."""

from __future__ import annotations

import bz2
import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.corpus.dataset import Dataset, open_dataset, prepare
from scalelab.corpus.source import DataSource
from scalelab.corpus.token_files import find_tokens
from scalelab.corpus.token_source import TokenSource
from scalelab.errors import DataError, ScalelabError

SAMPLES = Path(__file__).parent / "samples"
END = 256
FOLDERS = {
    # Folder: format, type, tokens, what the rows say about the end of documents.
    "data_hf_disk/ragged": ("huggingface", "int32", 44_491, END),
    "data_hf_disk/blocks64": ("huggingface", "int32", 19_200, None),
    "data_mds": ("mds", "int32", 38_400, None),
}


def tokens_of_sample() -> np.ndarray:
    return np.fromfile(SAMPLES / "data_nanogpt_bin/train.bin", dtype="<u2")


def source_of(path: Path | str, **options: Any) -> DataSource:
    return DataSource(paths=(str(path),), **{"eval_tokens": 1000, **options})


def found(path: Path, **options: Any) -> TokenSource:
    tokens = find_tokens(source_of(path, **options), path)
    assert tokens is not None
    return tokens


def refused(path: Path, problem: str, **options: Any) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        list(found(path, **options).read())
    assert caught.value.do


@pytest.mark.parametrize(("name", "facts"), FOLDERS.items())
def test_samples_have_the_values_of_their_readme_and_stay_in_place(
    name: str, facts: tuple[str, str, int, int | None]
) -> None:
    tokens = found(SAMPLES / name)
    assert (tokens.format, tokens.dtype, tokens.n_tokens, tokens.end_token) == facts
    assert tokens.arrays is None
    np.testing.assert_array_equal(
        np.concatenate(list(tokens.read())), tokens_of_sample()[: facts[2]]
    )


def test_equal_tokens_are_the_data_of_a_raw_file(tmp_path: Path) -> None:
    raw = prepare(source_of(SAMPLES / "data_nanogpt_bin/train.bin", end_token=END), tmp_path)
    rows = prepare(source_of(SAMPLES / "data_hf_disk/ragged"), tmp_path / "r")
    assert rows.fingerprint == raw.fingerprint
    np.testing.assert_array_equal(rows.batch(5, 6, 3, 40), raw.batch(5, 6, 3, 40))


def save(folder: Path, table: pa.Table, **state: Any) -> Path:
    """Write a table as `datasets` does, in two files."""
    folder.mkdir(parents=True)
    options = ipc.IpcWriteOptions(compression=state.pop("compression", None))
    half = len(table) // 2
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (table[:half], table[half:]), strict=True):
        with ipc.new_stream(folder / name, table.schema, options=options) as writer:
            for batch in part.to_batches(max_chunksize=7):
                writer.write(batch)
    entries = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": entries, **state}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def rows(kind: pa.DataType, n: int = 40) -> tuple[list[list[int]], pa.Array]:
    texts = [[i % 250, *range(1 + i % 5), END] for i in range(n)]
    return texts, pa.array(texts, type=kind)


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.uint16())])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_batches_of_any_kind_of_list_give_their_tokens(
    kind: pa.DataType, compression: str | None, tmp_path: Path
) -> None:
    texts, column = rows(kind)
    folder = save(tmp_path / "d", pa.table({"input_ids": column}), compression=compression)
    tokens = found(folder)
    assert tokens.end_token == END
    assert (tokens.arrays is None) == (compression is None)
    assert tokens.n_tokens == sum(map(len, texts))
    np.testing.assert_array_equal(np.concatenate(list(tokens.read())), np.concatenate(texts))
    half = found(folder / "data-00001-of-00002.arrow")
    assert half.n_tokens == sum(map(len, texts[20:]))


def test_fixed_lists_and_rows_that_are_a_slice_give_their_tokens(tmp_path: Path) -> None:
    numbers = np.arange(400, dtype=np.int32).reshape(50, 8)
    column = pa.FixedSizeListArray.from_arrays(numbers.ravel(), 8)
    folder = save(tmp_path / "d", pa.table({"tokens": column})[3:41])
    np.testing.assert_array_equal(np.concatenate(list(found(folder).read())), numbers[3:41].ravel())


def test_a_dictionary_of_datasets_gives_its_training_split(tmp_path: Path) -> None:
    texts, column = rows(pa.list_(pa.int32()))
    save(tmp_path / "d/train", pa.table({"input_ids": column}))
    index = tmp_path / "d/dataset_dict.json"
    index.write_text('{"splits": ["train", "test"]}')
    assert found(tmp_path / "d").n_tokens == sum(map(len, texts))
    index.write_text('{"splits": ["test"]}')
    refused(tmp_path / "d", r"a dictionary of the datasets \['test'\]")


def test_datasets_that_are_not_tokens_in_order_are_refused(tmp_path: Path) -> None:
    texts, column = rows(pa.list_(pa.int32()))
    plain = pa.table({"input_ids": column})
    shuffled = save(tmp_path / "a", plain, _indices_data_files=[{"filename": "i.arrow"}])
    refused(shuffled, "an order that a list of indices gives")
    mask = pa.array([[1] * (len(text) - 1) + [0] for text in texts], type=pa.list_(pa.int8()))
    refused(save(tmp_path / "b", plain.append_column("attention_mask", mask)), "are padding")
    refused(save(tmp_path / "c", pa.table({"text": ["words"] * 9})), "no column input_ids or")
    two = pa.table({"left": column, "right": column})
    refused(save(tmp_path / "d", two), r"no column .* which has left \(list")
    assert found(tmp_path / "d", column="right").n_tokens == sum(map(len, texts))
    nulls = pa.table({"input_ids": pa.array([[1, None], [2]], type=pa.list_(pa.int32()))})
    refused(save(tmp_path / "e", nulls), "missing tokens in input_ids")
    outside = save(tmp_path / "f", plain, _data_files=[{"filename": "../a/x.arrow"}])
    refused(outside, "outside the folder")
    cut = save(tmp_path / "g", plain)
    file = cut / "data-00000-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:-100])
    refused(cut, "not a complete Arrow file|no rows")
    file.unlink()
    refused(cut, "not a complete Arrow file")
    (cut / "state.json").write_text("[" * 100_000)
    refused(cut, "no JSON")


Encode = Callable[[np.ndarray], bytes]


def with_shape(array: np.ndarray) -> bytes:
    return bytes([1 << 2 | 1]) + np.array([len(array)], "<u2").tobytes() + array.tobytes()


def with_type(array: np.ndarray) -> bytes:
    return bytes([{"int32": 33, "uint16": 16}[array.dtype.name]]) + with_shape(array)


def write_mds(
    folder: Path,
    samples: Sequence[np.ndarray],
    encoding: str,
    encode: Encode = np.ndarray.tobytes,
    pack: tuple[str, Callable[[bytes], bytes]] | None = None,
    more: bytes | None = None,
) -> Path:
    """Write one shard, with a column of text before the tokens if ``more`` is given."""
    folder.mkdir(parents=True)
    texts = [encode(sample) for sample in samples]
    size = len(texts[0]) if encoding.count(":") == 2 else None
    if size is None:
        texts = [len(text).to_bytes(4, "little") + text for text in texts]
    if more is not None:
        cut = 0 if size else 4
        texts = [len(more).to_bytes(4, "little") + text[:cut] + more + text[cut:] for text in texts]
    head = b'{"header": "here"}'
    first = 4 * (len(texts) + 2) + len(head)
    offsets = np.cumsum([first, *map(len, texts)]).astype("<u4")
    content = len(texts).to_bytes(4, "little") + offsets.tobytes() + head + b"".join(texts)
    names = ["text", "tokens"] if more is not None else ["tokens"]
    shard: dict[str, Any] = {
        "column_encodings": ["str", encoding][-len(names) :],
        "column_names": names,
        "column_sizes": [None, size][-len(names) :],
        "compression": None,
        "format": "mds",
        "raw_data": {"basename": "shard.00000.mds", "bytes": len(content), "hashes": {}},
        "samples": len(texts),
        "version": 2,
        "zip_data": None,
    }
    if pack is None:
        (folder / "shard.00000.mds").write_bytes(content)
    else:
        name = f"shard.00000.mds.{pack[0]}"
        (folder / name).write_bytes(pack[1](content))
        shard["zip_data"] = {"basename": name, "bytes": 0, "hashes": {}}
    (folder / "index.json").write_text(json.dumps({"shards": [shard], "version": 2}))
    return folder


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


FIXED = [np.arange(i, i + 8, dtype="<i4") for i in range(30)]
RAGGED = [np.arange(i, i + 1 + i % 7, dtype="<i4") for i in range(30)]
LAYOUTS: dict[str, tuple[Any, ...]] = {
    "fixed": (FIXED, "ndarray:int32:8"),
    "shape": (RAGGED, "ndarray:int32", with_shape),
    "type": ([each.astype("<u2") for each in RAGGED], "ndarray", with_type),
    "bytes": ([each.astype("<i8") for each in RAGGED], "bytes"),
    "two": (FIXED, "ndarray:int32:8", np.ndarray.tobytes, None, b"some text"),
    "two_ragged": (RAGGED, "ndarray:int32", with_shape, None, b"some text"),
    "zstd": (FIXED, "ndarray:int32:8", np.ndarray.tobytes, ("zstd", zstd)),
    "gz": (RAGGED, "ndarray:int32", with_shape, ("gz", gzip.compress)),
    "bz2": (RAGGED, "ndarray:int32", with_shape, ("bz2", bz2.compress)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_shards_of_any_layout_give_their_tokens(name: str, tmp_path: Path) -> None:
    folder = write_mds(tmp_path / "d", *LAYOUTS[name])
    options = {"dtype": "uint16"} if name == "type" else {}
    tokens = found(folder, **options)
    assert (tokens.arrays is None) == (name == "fixed")
    read = np.concatenate(list(tokens.read()))
    np.testing.assert_array_equal(read, np.concatenate(LAYOUTS[name][0]))
    assert tokens.dtype == read.dtype.name


def test_converted_tokens_train_from_the_results_folder_alone(tmp_path: Path) -> None:
    samples = [np.arange(i, i + 64, dtype="<i4") % 300 for i in range(200)]
    packed = write_mds(tmp_path / "a", samples, "ndarray:int32:64", pack=("zstd", zstd))
    plain = write_mds(tmp_path / "b", samples, "ndarray:int32:64")
    made: list[Dataset] = [
        prepare(source_of(folder), tmp_path / "r" / folder.name) for folder in (packed, plain)
    ]
    assert made[0].fingerprint == made[1].fingerprint
    np.testing.assert_array_equal(made[0].batch(1, 2, 3, 40), made[1].batch(1, 2, 3, 40))
    # The other file takes the place of the first in one folder of results, and back.
    for folder in (plain, packed):
        assert prepare(source_of(folder), tmp_path / "r/a").folder == made[0].folder
        np.testing.assert_array_equal(
            open_dataset(made[0].folder).batch(1, 2, 3, 40), made[1].batch(1, 2, 3, 40)
        )
    shutil.rmtree(packed)
    moved = (tmp_path / "r").rename(tmp_path / "moved") / "a/data" / made[0].fingerprint
    again = open_dataset(moved)
    np.testing.assert_array_equal(again.batch(1, 2, 3, 40), made[1].batch(1, 2, 3, 40))
    (moved / "tokens-00000.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"tokens-00000\.bin, which changed"):
        open_dataset(moved)


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    def changed(name: str, **values: Any) -> Path:
        folder = write_mds(tmp_path / name, FIXED, "ndarray:int32:8")
        index = json.loads((folder / "index.json").read_text())
        index["shards"][0].update(values)
        (folder / "index.json").write_text(json.dumps(index))
        return folder

    refused(changed("version", version=1), "shards of mds, version 1")
    refused(changed("claim", samples=10**12), "too few for 1000000000000 samples")
    refused(changed("fewer", samples=3), "no table of the 3 samples")
    refused(changed("text", column_encodings=["str"]), "a column of arrays|columns")
    refused(changed("pickle", column_encodings=["pkl"]), "columns")
    refused(changed("outside", raw_data={"basename": "/etc/passwd", "bytes": 1}), "outside the")
    refused(changed("above", raw_data={"basename": "../x.mds", "bytes": 1}), "outside the folder")
    refused(changed("absent", raw_data={"basename": "y.mds", "bytes": 1}), "does not exist")
    refused(changed("names", column_names=None), "not described")
    cut = write_mds(tmp_path / "cut", FIXED, "ndarray:int32:8")
    (cut / "shard.00000.mds").write_bytes((cut / "shard.00000.mds").read_bytes()[:-4])
    refused(cut, "no table of the 30 samples")
    bomb = write_mds(
        tmp_path / "bomb", FIXED, "ndarray:int32:8", pack=("zstd", lambda data: zstd(data + data))
    )
    refused(bomb, "or more, not the")
    broken = write_mds(
        tmp_path / "broken", FIXED, "ndarray:int32:8", pack=("gz", lambda data: data[:50])
    )
    refused(broken, "unpacks to 50 bytes")


@given(data=st.data())
def test_any_change_of_a_shard_or_its_index_is_tokens_or_a_clear_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.getbasetemp()
    name = data.draw(st.sampled_from(["shape", "fixed", "arrow"]))
    origin = base / f"origin-{name}"
    if not origin.exists():
        if name == "arrow":
            save(origin, pa.table({"input_ids": rows(pa.list_(pa.int32()), 9)[1]}))
        else:
            write_mds(origin, *LAYOUTS[name])
    folder = base / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(origin, folder)
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(file.read_bytes())
    if content:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
            content[place] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        kind = "huggingface" if name == "arrow" else "mds"
        tokens = find_tokens(source_of(folder, format=kind), folder)
        n_read = sum(len(part) for part in tokens.read()) if tokens else 0
        said = "" if n_read else "nothing"
    except ScalelabError as refusal:
        said = refusal.do
    assert said or n_read


def test_a_folder_of_datasets_names_them(tmp_path: Path) -> None:
    column = pa.array([[1, 2, 3]] * 2000, type=pa.list_(pa.int32()))
    for name in ("train", "test"):
        save(tmp_path / "d" / name, pa.table({"input_ids": column}))
    refused(tmp_path / "d", r"d, which holds the datasets test, train")
    write_mds(tmp_path / "m/val", FIXED * 50, "ndarray:int32:8")
    refused(tmp_path / "m", r"m, which holds the datasets val")

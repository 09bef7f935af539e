"""Tokens of a MosaicML dataset (MDS): ``index.json`` and its shards.

A shard has the number of samples, the offset of each, and the samples. Uncompressed samples with
one column of a fixed size lie one after the other and stay in place; all others are converted.
Layout: mosaicml/streaming, streaming/base/format/mds/writer.py and encodings.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.opening import open_stream
from scalelab.corpus.source import AUTO, TOKEN_DTYPES
from scalelab.corpus.token_huggingface import COLUMNS
from scalelab.corpus.token_source import (
    Stretch,
    TokenSource,
    damaged_tokens,
    inside,
    joined,
    read_json_object,
)
from scalelab.errors import DataError

INDEX_FILE = "index.json"
VERSION = 2
BYTES_DTYPE = "int64"
"""Type of the tokens in a column of bytes, as llm-foundry writes them."""
_SHAPE_DTYPES = ("<u1", "<u2", "<u4", "<u8")
_VALUE_DTYPES = {8: "uint8", 16: "uint16", 32: "uint32", 33: "int32", 65: "int64"}


def is_mds(folder: Path) -> bool:
    """Return whether a folder has an index of MDS shards."""
    file = folder / INDEX_FILE
    if not file.is_file() or not (file.stat().st_size < 1 << 30):
        return False
    try:
        shards = read_json_object(file).get("shards")
    except DataError:
        return False
    return bool(shards) and isinstance(shards, list) and "mds" in str(shards[0])


def read_mds(folder: Path, column: str | None = None, dtype: str = AUTO) -> TokenSource:
    """Return the tokens of a folder of MDS shards, in order.

    Parameters
    ----------
    folder : Path
        The folder of ``index.json``.
    column : str or None
        Column of the tokens; None for the first of `COLUMNS`, or the only one.
    dtype : str
        Type of the tokens if the column holds bytes.

    Raises
    ------
    DataError
        When the folder is damaged, or the column does not hold tokens.
    """
    shards = read_json_object(folder / INDEX_FILE).get("shards")
    if not isinstance(shards, list) or not shards:
        raise damaged_tokens(folder / INDEX_FILE, "no shards")
    try:
        return joined([_read_shard(folder, content, column, dtype) for content in shards])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise damaged_tokens(
            folder / INDEX_FILE, f"a shard that is not described ({error!r})"
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """Where the tokens of a sample are: its columns' sizes, and the encoding of the tokens."""

    sizes: tuple[int | None, ...]
    place: int
    encoding: str
    dtype: str

    @property
    def is_fixed(self) -> bool:
        return len(self.sizes) == 1 and self.sizes[0] is not None


def _read_shard(
    folder: Path, content: dict[str, Any], column: str | None, dtype: str
) -> TokenSource:
    if content["version"] != VERSION or content["format"] != "mds":
        raise damaged_tokens(
            folder / INDEX_FILE,
            f"shards of {content['format']}, version {content['version']}",
            f"Write the dataset as MDS of version {VERSION}.",
        )
    layout = _layout(folder, content, column, dtype)
    n_samples = int(content["samples"])
    raw = inside(folder, str(content["raw_data"]["basename"]))
    if raw.is_file():
        map_shard: Callable[[], NDArray[np.uint8]] = functools.partial(_mapped_bytes, raw)
        offsets = _offsets(raw, map_shard(), n_samples)
        if layout.is_fixed and (np.diff(offsets) == layout.sizes[0]).all():
            n_tokens = n_samples * int(layout.sizes[0] or 0) // np.dtype(layout.dtype).itemsize
            stretch = Stretch(path=raw, offset=int(offsets[0]), n_tokens=n_tokens)
            return TokenSource(format="mds", dtype=layout.dtype, stretches=(stretch,))
        file = raw
    else:
        file = inside(folder, str((content.get("zip_data") or content["raw_data"])["basename"]))
        if not file.is_file():
            raise damaged_tokens(file, "does not exist", f"Copy {file.name} into {folder}.")
        n_bytes = int(content["raw_data"]["bytes"])
        map_shard = functools.partial(_unpacked, file, n_bytes)

    def arrays() -> Iterator[NDArray[Any]]:
        data = map_shard()
        places = _offsets(file, data, n_samples)
        for first, end in zip(places[:-1].tolist(), places[1:].tolist(), strict=True):
            yield _sample(file, data[first:end], layout)

    return TokenSource(
        format="mds",
        dtype=layout.dtype,
        arrays=arrays,
        converted=(file,),
        n_estimated=int(content["raw_data"]["bytes"]) // np.dtype(layout.dtype).itemsize,
    )


def _layout(folder: Path, content: dict[str, Any], wanted: str | None, dtype: str) -> _Layout:
    names, encodings = content["column_names"], content["column_encodings"]
    column = wanted or next((name for name in COLUMNS if name in names), None)
    if column is None and len(names) == 1:
        column = names[0]
    kind, _, more = "", "", ""
    if column in names:
        kind, _, more = encodings[names.index(column)].partition(":")
    if kind == "bytes":
        found = BYTES_DTYPE if dtype == AUTO else dtype
    elif kind == "ndarray":
        # Without a type, each sample has its own; the first decides.
        found = more.partition(":")[0] or (BYTES_DTYPE if dtype == AUTO else dtype)
    else:
        found = ""
    if found not in TOKEN_DTYPES:
        raise DataError(
            f"columns {dict(zip(names, encodings, strict=True))} of {folder}",
            f"a column of arrays of {', '.join(TOKEN_DTYPES)}, or of bytes",
            "Name it, for example --column tokens. Text must be tokenized, or be saved as JSONL.",
        )
    sizes = tuple(None if size is None else int(size) for size in content["column_sizes"])
    return _Layout(sizes=sizes, place=names.index(column), encoding=f"{kind}:{more}", dtype=found)


def _mapped_bytes(path: Path) -> NDArray[np.uint8]:
    if path.stat().st_size == 0:
        raise damaged_tokens(path, "an empty file")
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))


def _unpacked(path: Path, n_bytes: int) -> NDArray[np.uint8]:
    with open_stream(path) as (reader, _):
        data = reader.read(n_bytes + 1)
    if len(data) != n_bytes:
        raise damaged_tokens(
            path,
            f"unpacks to {len(data)} bytes or more, not the {n_bytes} of its index",
            "Write it without compression, or with zstd, gzip or bz2.",
        )
    return np.frombuffer(data, dtype=np.uint8)


def _offsets(path: Path, data: NDArray[np.uint8], n_samples: int) -> NDArray[np.int64]:
    """Return where each sample begins and the last one ends, shape (n_samples + 1,)."""
    head = 4 * (n_samples + 2)
    if n_samples < 1 or len(data) < head:
        raise damaged_tokens(path, f"{len(data)} bytes, too few for {n_samples} samples")
    numbers = np.frombuffer(data[:head].tobytes(), dtype="<u4")
    offsets = numbers[1:].astype(np.int64)
    if numbers[0] != n_samples or (np.diff(offsets) < 0).any() or offsets[-1] > len(data):
        raise damaged_tokens(path, f"no table of the {n_samples} samples of its index")
    return offsets


def _sample(path: Path, data: NDArray[np.uint8], layout: _Layout) -> NDArray[Any]:
    """Return the tokens of a sample: sizes of the columns without a fixed one, then the columns."""
    try:
        n_variable = sum(size is None for size in layout.sizes)
        variable = iter(np.frombuffer(data[: 4 * n_variable].tobytes(), dtype="<u4").tolist())
        sizes = [next(variable) if size is None else size for size in layout.sizes]
        first = 4 * n_variable + sum(sizes[: layout.place])
        return _array(data[first : first + sizes[layout.place]].tobytes(), layout)
    except (ValueError, IndexError, StopIteration) as error:
        raise damaged_tokens(path, f"a sample without its tokens ({error})") from error


def _array(data: bytes, layout: _Layout) -> NDArray[Any]:
    kind, _, more = layout.encoding.partition(":")
    name, _, shape = more.partition(":")
    at = 0
    dtype = layout.dtype
    if kind == "ndarray" and not name:
        dtype, at = _VALUE_DTYPES.get(data[0], "?"), 1
    if kind == "ndarray" and not shape:
        n_axes, size = data[at] >> 2, data[at] % 4
        at += 1 + n_axes * np.dtype(_SHAPE_DTYPES[size]).itemsize
    if dtype != layout.dtype:
        raise ValueError(f"its type is not {layout.dtype}")
    return np.frombuffer(data[at:], dtype=np.dtype(dtype).newbyteorder("<"))

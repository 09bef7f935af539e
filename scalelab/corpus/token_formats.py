"""Readers of token files that need only NumPy: raw, NumPy, llm.c and Megatron.

Each returns a `TokenSource` whose tokens stay in the files of the user.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import struct
import tokenize
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.source import AUTO, TOKEN_DTYPES
from scalelab.corpus.token_source import (
    MARK_DOCUMENTS,
    Stretch,
    TokenSource,
    common_last_token,
    damaged_tokens,
    mapped,
)

LLMC_HEADER_BYTES = 1024
# karpathy/llm.c, dev/data/data_common.py, HEADERS_INFO: magic number, version, type of a token.
LLMC_KINDS = {20240520: (1, "uint16"), 20240801: (7, "uint32")}
# NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py, DType and _INDEX_HEADER.
MEGATRON_MAGIC = b"MMIDIDX\0\0"
MEGATRON_DTYPES = {1: "uint8", 4: "int32", 5: "int64", 8: "uint16"}
MEGATRON_HEADER = struct.Struct("<9sQBQQ")
NPY_MAGIC = b"\x93NUMPY"

HIGH_HALF_MAX = 15
"""Largest upper half of a 4-byte token: vocabularies stay below 2^20."""
_PROBED_TOKENS = 1 << 16
_SIDECAR_BYTES = 1 << 20
_UNREADABLE = (
    *(OSError, EOFError, ValueError, IndexError, OverflowError),
    *(csv.Error, zlib.error),
)


def read_raw(path: Path, dtype: str = AUTO) -> TokenSource:
    """Read tokens without a header, as nanoGPT's ``.bin`` and OLMo's ``.npy``; uint16 by default.

    OLMo's ``.csv.gz`` beside the file says where documents end.
    """
    kind = "uint16" if dtype == AUTO else dtype
    size, width = path.stat().st_size, np.dtype(kind).itemsize
    if size == 0 or size % width:
        raise damaged_tokens(
            path,
            f"{size} bytes, which is not a whole number of {kind} tokens"
            if size
            else "an empty file",
            f"Copy the file again, or give its type: --token-dtype {' or '.join(TOKEN_DTYPES)}.",
        )
    tokens = mapped(path, kind)
    if dtype == AUTO and _looks_wider(tokens):
        raise damaged_tokens(
            path,
            "read as uint16, every second token is nearly zero, so its tokens have 4 bytes",
            "Give the type of its tokens: --token-dtype uint32.",
        )
    return TokenSource(
        format="raw",
        dtype=kind,
        stretches=(Stretch(path=path, offset=0, n_tokens=len(tokens)),),
        end_token=_sidecar_mark(path, tokens),
    )


def _looks_wider(tokens: NDArray[Any]) -> bool:
    low, high = tokens[:_PROBED_TOKENS:2], tokens[1:_PROBED_TOKENS:2]
    return len(high) >= 32 and int(high.max()) <= HIGH_HALF_MAX < int(low.max())


def _sidecar_mark(path: Path, tokens: NDArray[Any]) -> int | None:
    """Return the token that ends each document of OLMo's ``.csv.gz`` (start, end), if there is one.

    allenai/OLMo-core, src/olmo_core/data/utils.py, iter_document_indices.
    """
    sidecar = path.with_suffix(".csv.gz")
    if path.suffix != ".npy" or not sidecar.is_file():
        return None
    try:
        with gzip.open(sidecar, "rb") as file:
            text = file.read(_SIDECAR_BYTES).decode("utf-8", errors="replace")
        rows = list(itertools.islice(csv.reader(io.StringIO(text)), MARK_DOCUMENTS))
        # The last row may be cut where the text was.
        found = [(int(row[0]), int(row[1])) for row in rows[: len(rows) - 1] or rows]
        spans = np.array(found, dtype=np.int64).reshape(-1, 2)
    except _UNREADABLE as error:
        raise damaged_tokens(
            sidecar, f"not a list of document starts and ends ({error})", f"Remove {sidecar}."
        ) from error
    is_wrong = (spans[:, 0] < 0) | (spans[:, 1] > len(tokens)) | (spans[:, 0] >= spans[:, 1])
    if is_wrong.any():
        raise damaged_tokens(
            sidecar,
            f"documents outside the {len(tokens)} tokens of {path.name}",
            f"Copy both files again, or give the type of the tokens: --token-dtype uint32. "
            f"Or remove {sidecar}.",
        )
    last = tokens[spans[:, 1] - 1]
    return int(last[0]) if len(last) > 1 and (last == last[0]).all() else None


def read_npy(path: Path, dtype: str = AUTO) -> TokenSource:
    """Read an array that `numpy.save` wrote; a file without its header is raw tokens (OLMo)."""
    with path.open("rb") as file:
        if file.read(len(NPY_MAGIC)) != NPY_MAGIC:
            return read_raw(path, dtype)
        file.seek(0)
        try:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, is_fortran, kind = read_header(file)
        except (
            *(ValueError, KeyError, TypeError, SyntaxError, RecursionError),
            tokenize.TokenError,
        ) as error:
            raise damaged_tokens(path, f"a NumPy header that cannot be read ({error})") from error
        offset = file.tell()
    is_little = kind.byteorder in "<|" or (kind.byteorder == "=" and np.little_endian)
    if kind.name not in TOKEN_DTYPES or not is_little or (is_fortran and len(shape) > 1):
        order = " in Fortran order" if is_fortran and len(shape) > 1 else ""
        raise damaged_tokens(
            path,
            f"an array of {kind}{order}, which is not one of tokens",
            f"Save {' or '.join(TOKEN_DTYPES)} in little endian and C order, for example "
            "np.save(FILE, tokens.astype('<u2')).",
        )
    if dtype not in (AUTO, kind.name):
        raise damaged_tokens(
            path, f"tokens of {kind.name} by its header, not {dtype}", "Remove --token-dtype."
        )
    n_tokens = 1
    for length in shape:
        n_tokens *= int(length)
    _require_size(path, offset + n_tokens * kind.itemsize, n_tokens)
    stretch = Stretch(path=path, offset=offset, n_tokens=n_tokens)
    return TokenSource(format="npy", dtype=kind.name, stretches=(stretch,))


def read_llmc(path: Path, dtype: str = AUTO) -> TokenSource:
    """Read a ``.bin`` of llm.c: 256 int32 of header (magic, version, tokens), then the tokens."""
    with path.open("rb") as file:
        head = file.read(LLMC_HEADER_BYTES)
    if len(head) < LLMC_HEADER_BYTES:
        raise damaged_tokens(path, f"{len(head)} bytes, less than the header of llm.c")
    magic, version, n_tokens = struct.unpack_from("<3i", head)
    if magic not in LLMC_KINDS or LLMC_KINDS[magic][0] != version:
        raise damaged_tokens(
            path, f"magic number {magic} of version {version}, which llm.c does not write"
        )
    kind = LLMC_KINDS[magic][1]
    if dtype not in (AUTO, kind):
        raise damaged_tokens(
            path, f"tokens of {kind} by its header, not {dtype}", "Remove --token-dtype."
        )
    # The header counts in 32 bits; larger files wrap around.
    found = (path.stat().st_size - LLMC_HEADER_BYTES) // np.dtype(kind).itemsize
    if found % 2**32 != n_tokens % 2**32:
        _require_size(path, LLMC_HEADER_BYTES + n_tokens * np.dtype(kind).itemsize, n_tokens)
    stretch = Stretch(path=path, offset=LLMC_HEADER_BYTES, n_tokens=found)
    return TokenSource(format="llmc", dtype=kind, stretches=(stretch,))


def read_megatron(path: Path, dtype: str = AUTO) -> TokenSource:
    """Read a pair of Megatron: tokens in ``.bin``, lengths and places of sequences in ``.idx``."""
    index, tokens = path.with_suffix(".idx"), path.with_suffix(".bin")
    for file in (index, tokens):
        if not file.is_file():
            raise damaged_tokens(
                path, f"no {file.name} beside it", f"Copy {file.name} there as well."
            )
    with index.open("rb") as opened:
        head = opened.read(MEGATRON_HEADER.size)
    if len(head) < MEGATRON_HEADER.size or not head.startswith(MEGATRON_MAGIC):
        raise damaged_tokens(index, "no header of Megatron")
    _, version, code, n_sequences, n_documents = MEGATRON_HEADER.unpack(head)
    if version != 1 or code not in MEGATRON_DTYPES:
        raise damaged_tokens(
            index,
            f"version {version} with type {code}",
            f"Write version 1 with tokens of {', '.join(MEGATRON_DTYPES.values())}.",
        )
    kind = MEGATRON_DTYPES[code]
    if dtype not in (AUTO, kind):
        raise damaged_tokens(
            index, f"tokens of {kind} by its header, not {dtype}", "Remove --token-dtype."
        )
    size = MEGATRON_HEADER.size + 12 * n_sequences + 8 * n_documents
    # Data of several kinds add a mode of one byte to each sequence.
    if index.stat().st_size not in (size, size + n_sequences) or n_sequences == 0:
        raise damaged_tokens(
            index,
            f"{index.stat().st_size} bytes, not the {size} of {n_sequences} sequences and "
            f"{n_documents} documents",
        )
    content = np.asarray(np.memmap(index, dtype=np.uint8, mode="r"))
    lengths = np.frombuffer(content, "<i4", n_sequences, MEGATRON_HEADER.size)
    places = np.frombuffer(content, "<i8", n_sequences, MEGATRON_HEADER.size + 4 * n_sequences)
    width = np.dtype(kind).itemsize
    stops = places + lengths.astype(np.int64) * width
    if (lengths < 0).any() or (places < 0).any() or int(stops.max()) > tokens.stat().st_size:
        raise damaged_tokens(index, f"sequences outside {tokens.name}")
    breaks = [0, *(np.flatnonzero(places[1:] != stops[:-1]) + 1).tolist(), n_sequences]
    stretches = tuple(
        Stretch(
            path=tokens,
            offset=int(places[first]),
            n_tokens=int(stops[last - 1] - places[first]) // width,
        )
        for first, last in itertools.pairwise(breaks)
        if int(stops[last - 1]) > int(places[first])
    )
    if not stretches:
        raise damaged_tokens(index, "no tokens")
    whole = stretches[0]
    array = mapped(tokens, kind, whole.offset, whole.n_tokens)
    mark = common_last_token(array, lengths[: breaks[1]])
    return TokenSource(format="megatron", dtype=kind, stretches=stretches, end_token=mark)


def _require_size(path: Path, expected: int, n_tokens: int) -> None:
    size = path.stat().st_size
    if size != expected:
        raise damaged_tokens(
            path, f"{size} bytes, but its header says {n_tokens} tokens, {expected} bytes"
        )


Reader = Callable[[Path, str], TokenSource]

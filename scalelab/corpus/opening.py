"""Open text files for streaming: gzip, zstd, bzip2 and xz are unpacked, up to a limit.

The compression is read from the first bytes, not from the name, because downloads often keep
``.gz`` after they were unpacked, or lose it.
"""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from scalelab.errors import DataError

BLOCK_BYTES = 1 << 20
MOST_RATIO = 200
"""Unpacked bytes per byte on disk; text shrinks 2 to 10 times, an archive bomb 1,000 times."""
FREE_BYTES = 256 << 20
"""A file may unpack to this much at any ratio."""


def _unpack_zstd(packed: IO[bytes]) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd")


def _unpack_bzip2(packed: IO[bytes]) -> Any:
    import bz2

    return bz2.BZ2File(packed)


def _unpack_xz(packed: IO[bytes]) -> Any:
    import lzma

    return lzma.LZMAFile(packed)


_UNPACKERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda packed: gzip.GzipFile(fileobj=packed),
    b"\x28\xb5\x2f\xfd": _unpack_zstd,
    b"BZh": _unpack_bzip2,
    b"\xfd7zXZ\0": _unpack_xz,
}
LONGEST_MAGIC = max(map(len, _UNPACKERS))


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a compressed file.

    Parameters
    ----------
    path : Path
        For errors.
    unpacked : object
        What reads the unpacked bytes.
    limit : int
        Most unpacked bytes.
    """

    def __init__(self, path: Path, unpacked: Any, limit: int) -> None:
        super().__init__()
        self._path, self._unpacked, self._limit = path, unpacked, limit
        self._n_read = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; return the number of bytes, zero at the end.

        Raises
        ------
        DataError
            When the file is damaged, cut, or unpacks to far too much.
        """
        try:
            data = self._unpacked.read(len(buffer))
        except Exception as error:  # each library has its own
            raise damaged(self._path, str(error) or "the file ends early") from error
        self._n_read += len(data)
        if self._n_read > self._limit:
            raise too_large(self._path)
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[io.BufferedReader[Any], Callable[[], int]]]:
    """Yield a buffered reader of a file's unpacked bytes, and what says how much of it was read.

    That is in bytes on disk.
    """
    with io.BufferedReader(io.FileIO(path), BLOCK_BYTES) as packed:
        start = packed.peek(LONGEST_MAGIC)
        unpack = next((f for magic, f in _UNPACKERS.items() if start.startswith(magic)), None)
        if unpack is None:
            yield packed, packed.tell
        else:
            limit = max(FREE_BYTES, MOST_RATIO * os.fstat(packed.fileno()).st_size)
            unpacked = _Unpacked(path, unpack(packed), limit)
            yield io.BufferedReader(unpacked, BLOCK_BYTES), packed.tell


def damaged(path: Path, why: str) -> DataError:
    """Return the error for a compressed file or table that cannot be read to its end."""
    return DataError(
        f"{path}, which is damaged or cut ({why})",
        "a complete file",
        "Copy or download it again, or move it out of the folder.",
    )


def too_large(path: Path) -> DataError:
    """Return the error for a file that unpacks to far more than its size."""
    return DataError(
        f"{path}, which unpacks to more than {MOST_RATIO} times its size",
        "text that shrinks by less when it is compressed",
        "If you trust the file, unpack it first, for example with gunzip or unzstd.",
    )

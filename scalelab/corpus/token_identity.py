"""The identity of token files: their size, their time and hashes of samples.

The files can be larger than a terabyte, so they are not read whole unless asked. Two hashes exist.
That of a file finds out whether a file whose time changed is still the same. That of a stream of
tokens is part of the dataset's fingerprint; it does not depend on the format, the number of files
or their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import DataError

FILE_SAMPLES = 64
FILE_SAMPLE_BYTES = 4096
STREAM_SAMPLES = 256
STREAM_SAMPLE_TOKENS = 4096

ReadRows = Callable[[NDArray[np.int64], NDArray[Any]], None]
"""`scalelab.corpus.token_stream.TokenStream.read_rows`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFile:
    """A file whose tokens are read in place.

    Attributes
    ----------
    path : str
        Absolute path, or the name in the dataset's folder.
    size : int
        Bytes.
    mtime_ns : int
        Time of the last change, nanoseconds.
    sha256 : str
        Hash of `FILE_SAMPLES` samples of its bytes, spread evenly.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str

    def require_unchanged(self, folder: Path, *, reads_content: bool = False) -> None:
        """Raise DataError unless the file has its size, and its time or its content.

        The samples are compared if the time differs, or with ``reads_content``.
        """
        path = folder / self.path
        try:
            stat = path.stat()
            if stat.st_size == self.size and (
                (stat.st_mtime_ns == self.mtime_ns and not reads_content)
                or _sampled_hash(path, stat.st_size) == self.sha256
            ):
                return
            problem = f"changed since {folder.name} was prepared"
        except OSError as error:
            problem = f"cannot be read ({error.strerror or error})"
        raise DataError(
            f"token file {path}, which {problem}",
            "the token files as they were when the sweep was planned",
            "Restore the file. Or plan again with the files as they are now: "
            "scalelab data prepare FILES.",
        )


def identify(folder: Path, name: str) -> TokenFile:
    """Return the identity of a file as it is now; ``name`` is a name in the folder or a path."""
    path = folder / name
    stat = path.stat()
    return TokenFile(
        path=name,
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        sha256=_sampled_hash(path, stat.st_size),
    )


def sampled_digest(read_rows: ReadRows, n_tokens: int) -> str:
    """Return a hash of `STREAM_SAMPLES` samples of a stream; of all tokens if that is not more.

    Parameters
    ----------
    read_rows : callable
        Fills rows, shape (k, length), with the tokens from each of k places.
    n_tokens : int
        Length of the stream.
    """
    hashed = hashlib.sha256(f"{n_tokens} ".encode())
    length = min(STREAM_SAMPLE_TOKENS, n_tokens)
    n_samples = min(STREAM_SAMPLES, -(-n_tokens // length))
    for index in range(n_samples):
        start = index * (n_tokens - length) // max(1, n_samples - 1)
        row = np.empty((1, length), dtype="<u4")
        read_rows(np.array([start], dtype=np.int64), row)
        hashed.update(row.data)
    return hashed.hexdigest()


def _sampled_hash(path: Path, size: int) -> str:
    hashed = hashlib.sha256()
    last = max(0, size - FILE_SAMPLE_BYTES)
    with path.open("rb") as file:
        for start in sorted({index * last // (FILE_SAMPLES - 1) for index in range(FILE_SAMPLES)}):
            file.seek(start)
            hashed.update(file.read(FILE_SAMPLE_BYTES))
    return hashed.hexdigest()

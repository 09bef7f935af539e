"""Open log files with limits: no links out of a folder, no unpacked gigabytes, no endless lines."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from scalelab.errors import DataError
from scalelab.logs.values import load_json

HEAD_BYTES = 4096
MOST_LINE_BYTES = 64 << 20
MOST_DOCUMENT_BYTES = 512 << 20
MOST_RATIO = 200
"""Unpacked bytes per byte on disk; run logs shrink 5 to 30 times."""
MOST_FILES = 500_000
DEEPEST = 16

_GZIP = b"\x1f\x8b"


def unreadable(path: Path, why: str, do: str = "") -> DataError:
    """Return the error for a log that cannot be read."""
    return DataError(
        f"{path}, which cannot be read ({why})",
        "a complete run log",
        do or "Copy the file again, or name another one.",
    )


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file, unpacked; empty if it cannot be read."""
    try:
        with open_log(path) as stream:
            return bytes(stream.read(HEAD_BYTES))
    except (OSError, EOFError, DataError, ValueError):
        return b""


class _Limited:
    """A stream of unpacked bytes that stops where a compressed file unpacks to far too much."""

    def __init__(self, path: Path, packed: IO[bytes], limit: int) -> None:
        self._path, self._packed, self._left = path, packed, limit
        self._stream = gzip.GzipFile(fileobj=packed)

    def __enter__(self) -> _Limited:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._packed.close()

    def read(self, size: int = -1) -> bytes:
        return self._count(self._stream.read(min(size, self._left + 1) if size >= 0 else size))

    def readline(self, size: int) -> bytes:
        return self._count(self._stream.readline(size))

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise unreadable(
                self._path,
                f"it unpacks to more than {MOST_RATIO} times its size",
                "Unpack it yourself if you trust it, for example with gunzip.",
            )
        return data


def open_log(path: Path) -> Any:
    """Open a log for reading bytes; gzip is unpacked, up to a limit.

    Raises
    ------
    DataError
        If the file cannot be opened.
    """
    try:
        stream = path.open("rb")
        if stream.read(2) == _GZIP:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(0)
            return _Limited(path, stream, max(size * MOST_RATIO, 1 << 20))
        stream.seek(0)
    except OSError as error:
        raise unreadable(path, error.strerror or "it cannot be opened") from None
    return stream


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text log, without line ends; a line that is too long is cut.

    Raises
    ------
    DataError
        If the file cannot be opened or is a damaged archive.
    """
    try:
        with open_log(path) as stream:
            while line := stream.readline(MOST_LINE_BYTES):
                yield line.decode("utf-8", "replace").rstrip("\r\n")
    except (OSError, EOFError, ValueError) as error:
        raise unreadable(path, str(error) or "it is cut") from None


def read_bytes(path: Path) -> bytes:
    """Return the content of a document.

    Raises
    ------
    DataError
        If it cannot be read or is too large for one document.
    """
    try:
        with open_log(path) as stream:
            data = bytes(stream.read(MOST_DOCUMENT_BYTES + 1))
    except (OSError, EOFError, ValueError) as error:
        raise unreadable(path, str(error) or "it is cut") from None
    if len(data) > MOST_DOCUMENT_BYTES:
        raise unreadable(path, f"it is larger than {MOST_DOCUMENT_BYTES >> 20} MiB")
    return data


def read_document(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises
    ------
    DataError
        If it cannot be read or is not JSON.
    """
    found = load_json(read_bytes(path))
    if found is None:
        raise unreadable(path, "it is not JSON, or it is cut")
    return found


def sibling_document(path: Path) -> dict[str, Any]:
    """Return a JSON object beside a log; empty if there is none."""
    try:
        found = read_document(path) if path.is_file() else None
    except DataError:
        return {}
    return found if isinstance(found, dict) else {}


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder in order; links and hidden folders are not followed.

    Raises
    ------
    DataError
        If the folder holds too many files, or cannot be read.
    """
    count = 0
    base = len(folder.parts)
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and len(here.parts) - base < DEEPEST
        )
        folders[:] = [name for name in folders if not (here / name).is_symlink()]
        for name in sorted(files):
            path = here / name
            if not path.is_file() or (path.is_symlink() and not _is_inside(path, folder)):
                continue
            count += 1
            if count > MOST_FILES:
                raise DataError(
                    f"{folder}, which holds more than {MOST_FILES:,} files",
                    "the folder of one group of runs",
                    "Name a folder below it.",
                )
            yield path


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())

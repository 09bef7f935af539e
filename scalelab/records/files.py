"""Read and write small files so that a reader never sees part of one."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

try:
    from pydantic_core import from_json
except ModuleNotFoundError:  # A worker has only torch and NumPy.
    from_json = json.loads  # type: ignore[assignment]

_READ_BYTES = 1 << 13


def write_atomically(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a file; readers see either the old content or the new.

    A ``durable`` file survives a power failure: its data and the folder entry are synced.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    if durable:
        fsync(path.parent)


def fsync(path: Path) -> None:
    """Wait until the data of a file, or the entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Wait until everything in a folder is on disk; 16 files at a time."""
    from concurrent.futures import ThreadPoolExecutor

    paths = [folder, *folder.rglob("*")]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(fsync, paths))


def list_entries(folder: Path) -> list[Path]:
    """Return the entries of a folder, empty if the folder is missing."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def list_folders(folder: str) -> list[str]:
    """Return the sorted names of the visible folders inside ``folder``, empty if it is missing."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_json(path: str | Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, None if the file is missing, torn or not an object.

    Uses the parser of pydantic where it is installed: it takes a third of the standard one's time.
    """
    data = read_file(path)
    try:
        content = None if data is None else from_json(data)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_file(path: str | Path) -> bytes | None:
    """Return the content of a file, None if it is missing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        data = os.read(descriptor, _READ_BYTES)
        if len(data) < _READ_BYTES:
            return data
        parts = [data]
        while len(parts[-1]) == _READ_BYTES:
            parts.append(os.read(descriptor, _READ_BYTES))
        return b"".join(parts)
    finally:
        os.close(descriptor)


def stat_of(path: str | Path) -> os.stat_result | None:
    """Return the status of a path, None if it is missing."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def stamp_of(found: os.stat_result | None) -> str:
    """Return the identity of a file: inode, time and size; it changes with the content."""
    return "-" if found is None else f"{found.st_ino}.{found.st_mtime_ns}.{found.st_size}"


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a file of JSON Lines; readers ignore an incomplete last line.

    If an earlier call left an incomplete line (full disk), ends that line first, so that the next
    row stays readable.
    """
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with path.open("a+b", buffering=0) as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            text = "\n" + text
        data = memoryview(text.encode())
        while data:
            data = data[file.write(data) :]

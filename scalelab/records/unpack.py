"""Unpack an archive of `scalelab.records.archive` into an empty folder.

An archive may come from a stranger. Only regular files are accepted, only with the names and sizes
of the manifest, and only names that a results folder has: no absolute names, no ``..``, no links.
What the manifest does not announce is not written, and it may not announce more than the disk has
free.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from scalelab.errors import DataError, UsageError
from scalelab.records.archive import (
    BLOCK,
    COPIED_BYTES,
    GZIP,
    MANIFEST,
    MANIFEST_SCHEMA,
    ending_of,
)
from scalelab.records.names import check_name
from scalelab.records.parts import (
    DATASET,
    FOLDERS,
    IMPORT,
    LOCK_FILE,
    NOTE,
    RUN,
    SOURCE,
    SWEEP,
    Progress,
)
from scalelab.sweep.run_spec import RUN_ID_LENGTH
from scalelab.units import format_bytes

MAX_MANIFEST_BYTES = 64 << 20
MAX_NAME_BYTES = 1024
MAX_DEPTH = 16
_ROOTS = {FOLDERS[kind]: kind for kind in (RUN, SWEEP, IMPORT, NOTE, DATASET, SOURCE)}
_RUN_ID = re.compile(rf"[0-9a-f]{{{RUN_ID_LENGTH}}}")
_COMPONENT = re.compile(r"(?!\.\.?$)[^/\\\x00-\x1f\x7f]{1,200}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MEMBER_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What an archive says it holds.

    Attributes
    ----------
    name : str
        The sweep or import.
    folders : tuple of str
    files : dict of str to (int, str)
        Size and SHA-256 by path.
    """

    name: str
    folders: tuple[str, ...]
    files: dict[str, tuple[int, str]]

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(size for size, _ in self.files.values())


def unpack(file: Path, folder: Path, *, progress: Progress | None = None) -> Manifest:
    """Check an archive and unpack it into an empty folder.

    Raises
    ------
    UsageError
        If the file has another ending, or does not exist.
    DataError
        If it is damaged, holds anything that it should not, or is larger than the free space.
    """
    ending = ending_of(file)
    if not file.is_file():
        raise UsageError(
            f"archive {file}, which does not exist",
            "a file that `scalelab archive` wrote",
            "Write its path from the current folder.",
        )
    try:
        with _decompressing(file, ending) as stream:
            reader = _Reader(file, stream)
            first = reader.next_member()
            if first is None or first[0] != MANIFEST:
                raise refused(file, f"its first member is not {MANIFEST}")
            if first[1] > MAX_MANIFEST_BYTES:
                raise refused(file, f"its manifest claims {format_bytes(first[1])}")
            manifest = read_manifest(file, reader.read(first[1]))
            reader.skip_padding(first[1])
            _check_room(file, folder, manifest)
            _unpack_files(file, folder, manifest, reader, progress)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise refused(file, f"its compression is damaged or cut: {error}") from None
    except OSError as error:
        if error.errno is None:  # the decompressor of zstd
            raise refused(file, f"its compression is damaged: {error}") from None
        raise
    return manifest


def read_manifest(file: Path, content: bytes) -> Manifest:
    """Return the manifest of an archive.

    Raises
    ------
    DataError
        If it has another form, or names anything outside the parts of a results folder.
    """
    try:
        found = json.loads(content)
        if found["schema"] != MANIFEST_SCHEMA:
            raise refused(file, f"its manifest has schema {found['schema']!r}")
        folders = tuple(_checked(file, path, is_folder=True) for path in found["folders"])
        files: dict[str, tuple[int, str]] = {}
        for entry in found["files"]:
            path, size = _checked(file, entry["path"]), entry["bytes"]
            if type(size) is not int or size < 0 or not _SHA256.fullmatch(entry["sha256"]):
                raise refused(file, f"a wrong size or checksum of {path!r}")
            if path in files:
                raise refused(file, f"{path!r} is listed twice")
            files[path] = (size, entry["sha256"])
        name = check_name(found["name"])
    except (ValueError, KeyError, TypeError, RecursionError, UsageError) as error:
        raise refused(file, f"its manifest cannot be read ({type(error).__name__})") from None
    parents = {str(parent) for path in files for parent in Path(path).parents}
    if not files.keys().isdisjoint(parents | set(folders)):
        raise refused(file, "a name is both a file and a folder")
    return Manifest(name=name, folders=folders, files=files)


def refused(file: Path, why: str) -> DataError:
    """Return the error for an archive that cannot be unpacked."""
    return DataError(
        f"archive {file}: {why}",
        "an undamaged archive that `scalelab archive` wrote",
        "Copy the file again, or archive the sweep again. Nothing was restored.",
    )


class _Reader:
    """Reads the members of a tar stream, at most what their headers claim."""

    def __init__(self, file: Path, stream: IO[bytes]) -> None:
        self.file, self.stream = file, stream

    def next_member(self) -> tuple[str, int] | None:
        """Return name and size of the next member, or None at the end."""
        long_name = None
        while True:
            try:
                header = tarfile.TarInfo.frombuf(self.read(BLOCK), "utf-8", "strict")
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                return None
            except (tarfile.TarError, ValueError) as error:
                raise refused(self.file, f"a member without a valid header ({error})") from None
            if header.type == tarfile.GNUTYPE_LONGNAME and long_name is None:
                if not 0 < header.size <= MAX_NAME_BYTES + 1:
                    raise refused(self.file, "a name that is too long")
                long_name = self.read(header.size).rstrip(b"\0").decode("utf-8", "replace")
                self.skip_padding(header.size)
                continue
            if header.type not in _MEMBER_TYPES or header.size < 0:
                raise refused(self.file, f"{header.name!r} is not a regular file")
            return (header.name if long_name is None else long_name), header.size

    def read(self, n_bytes: int) -> bytes:
        """Return exactly this number of bytes."""
        parts, left = [], n_bytes
        while left:
            part = self.stream.read(min(left, COPIED_BYTES))
            if not part:
                raise refused(self.file, "it is cut")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def skip_padding(self, size: int) -> None:
        """Skip to the next block."""
        self.read(-size % BLOCK)


def _unpack_files(
    file: Path, folder: Path, manifest: Manifest, reader: _Reader, progress: Progress | None
) -> None:
    for name in manifest.folders:
        (folder / name).mkdir(parents=True, exist_ok=True)
    left, done = dict(manifest.files), 0
    while (member := reader.next_member()) is not None:
        name, size = member
        if name not in left:
            raise refused(file, f"{name[:80]!r} is not in its manifest, or comes twice")
        claimed, sha256 = left.pop(name)
        if size != claimed:
            raise refused(file, f"{name!r} has {size} bytes, and the manifest says {claimed}")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with target.open("xb") as out:
            while size:
                part = reader.read(min(size, COPIED_BYTES))
                digest.update(part)
                out.write(part)
                size -= len(part)
        reader.skip_padding(claimed)
        if digest.hexdigest() != sha256:
            raise refused(file, f"{name!r} does not have the checksum of the manifest")
        done += claimed
        if progress is not None:
            progress("unpacking", done, manifest.n_bytes)
    if left:
        raise refused(file, f"it lacks {next(iter(left))!r} and {len(left) - 1} other files")


def _check_room(file: Path, folder: Path, manifest: Manifest) -> None:
    free = shutil.disk_usage(folder).free
    needed = manifest.n_bytes + 4096 * len(manifest.files)
    if needed > free:
        raise refused(
            file, f"it claims {format_bytes(needed)}, and the disk has {format_bytes(free)} free"
        )


def _checked(file: Path, path: Any, *, is_folder: bool = False) -> str:
    """Return a path inside the archive if a results folder may have it."""
    if not isinstance(path, str):
        raise refused(file, f"a name of type {type(path).__name__}")
    parts = path.split("/")
    is_valid = (
        len(path.encode("utf-8", "replace")) <= MAX_NAME_BYTES
        and 2 <= len(parts) <= MAX_DEPTH
        and all(_COMPONENT.fullmatch(part) and part != LOCK_FILE for part in parts)
        and path.isprintable()
        and parts[0] in _ROOTS
        and not parts[1].startswith(".")
        and (parts[0] != FOLDERS[RUN] or _RUN_ID.fullmatch(parts[1]))
        and (is_folder or parts[0] in (FOLDERS[SOURCE], FOLDERS[NOTE]) or len(parts) > 2)
    )
    if not is_valid:
        raise refused(file, f"the name {path[:80]!r} is not that of a file of a sweep")
    check_name(parts[1])
    return path


@contextmanager
def _decompressing(file: Path, ending: str) -> Iterator[IO[bytes]]:
    if ending == GZIP:
        with gzip.open(file) as stream:
            yield stream  # type: ignore[misc]
    else:
        import pyarrow as pa

        with pa.OSFile(str(file)) as raw, pa.CompressedInputStream(raw, "zstd") as stream:
            yield stream

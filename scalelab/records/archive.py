"""One file with a sweep or import: a tar of its folders, compressed, with a manifest of checksums.

The first member, ``manifest.json``, lists every folder and file with size and SHA-256. The others
are regular files below ``sweeps``, ``runs``, ``imports``, ``data`` and ``source``, so `tar` can
unpack an archive too. `scalelab.records.unpack` reads it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import secrets
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from scalelab import __version__
from scalelab.errors import DataError, UsageError, did_you_mean, unwritable
from scalelab.records.files import fsync, list_folders, read_json
from scalelab.records.notes import read_notes
from scalelab.records.parts import (
    DATASET,
    FOLDERS,
    IMPORT,
    NOTE,
    RUN,
    SOURCE,
    SWEEP,
    Part,
    Progress,
    data_of,
    odd_entries,
    walk,
)
from scalelab.records.sweep_dir import Results

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
BLOCK = 512
COPIED_BYTES = 1 << 20
GZIP, ZSTD = ".tar.gz", ".tar.zst"
_GZIP_LEVEL = 6
_END = bytes(2 * BLOCK)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveReport:
    """An archive that was written.

    Attributes
    ----------
    file : Path
    name : str
        The sweep or import.
    parts : tuple of Part
        What it holds.
    n_files, n_bytes : int
        Files in it and their size.
    archive_bytes : int
        Size of the archive.
    left_out : tuple of str
        Entries that are not in it, such as links to folders.
    """

    file: Path
    name: str
    parts: tuple[Part, ...]
    n_files: int
    n_bytes: int
    archive_bytes: int
    left_out: tuple[str, ...]


def ending_of(file: Path) -> str:
    """Return the ending of an archive.

    Raises
    ------
    UsageError
        If it is another one.
    """
    for ending in (GZIP, ZSTD):
        if file.name.endswith(ending) and file.name != ending:
            return ending
    stem = file.name.split(".")[0] or "sweep"
    raise UsageError(
        f"archive {file}", f"a file name that ends in {GZIP} or {ZSTD}", f"Try {stem}{ZSTD}."
    )


def parts_of(results: Path, name: str) -> tuple[Part, ...]:
    """Return the parts that belong to a sweep or import.

    Raises
    ------
    UsageError
        If there is none of that name.
    DataError
        If its plan cannot be read.
    """
    folder = Results(results)
    imports = list_folders(str(results / FOLDERS[IMPORT]))
    sweeps = list_folders(str(results / FOLDERS[SWEEP]))
    if name in imports:
        return (Part(IMPORT, name), *_notes(results, [name]))
    if name not in sweeps:
        known = [*sweeps, *imports]
        raise UsageError(
            f"{name!r}, which is no sweep or import in {results}",
            f"one of {', '.join(known)}" if known else "a results folder with a sweep",
            did_you_mean(name, known) + "Name another folder with --results.",
        )
    run_ids = [r for r in folder.load_plan(name).run_ids if folder.run(r).path.is_dir()]
    named: dict[Part, None] = {}
    for run_id in run_ids:
        run = folder.run(run_id)
        for fingerprint in data_of(read_json(run.path / "spec.json") or {}):
            named[Part(DATASET, fingerprint)] = None
        for attempt in run.attempts():
            diff = str(attempt.read_note().get("source_diff") or "")
            named[Part(SOURCE, diff.removeprefix(f"{FOLDERS[SOURCE]}/"))] = None
    snapshot = folder.sweep(name) / "snapshot"
    if snapshot.is_file():
        named[Part(SOURCE, snapshot.read_text(encoding="utf-8").strip())] = None
    shared = [p for p in sorted(named) if p.name not in ("", ".", "..") and "/" not in p.name]
    return (
        *(part for part in shared if part.path(results).exists()),
        *(Part(RUN, run_id) for run_id in run_ids),
        Part(SWEEP, name),
        *_notes(results, [name, *run_ids]),
    )


def _notes(results: Path, about: Sequence[str]) -> list[Part]:
    return [Part(NOTE, note.file_name) for note in read_notes(results, about)]


def write_archive(
    results: Path,
    name: str,
    file: Path,
    *,
    with_data: bool = True,
    with_checkpoints: bool = True,
    progress: Progress | None = None,
) -> ArchiveReport:
    """Write a sweep with its runs and dataset, or an import, to one file; complete or absent.

    Parameters
    ----------
    results : Path
    name : str
    file : Path
        Ends in ``.tar.gz`` or ``.tar.zst``; must not exist.
    with_data : bool
        Whether it holds the dataset.
    with_checkpoints : bool
        Whether it holds checkpoints.
    progress : callable, optional

    Raises
    ------
    UsageError
        If the name is unknown, or the file exists or has another ending.
    DataError
        If something cannot be read or written, or changes meanwhile.
    """
    ending = ending_of(file)
    if file.exists():
        raise UsageError(f"archive {file}, which exists", "a new file", "Choose another name.")
    parts = [p for p in parts_of(results, name) if with_data or p.kind != DATASET]
    folders, files = _contents(results, parts, with_checkpoints)
    total = sum(path.stat().st_size for path in files.values())
    hashed = _Counted("checking", total, progress)
    entries: list[dict[str, Any]] = [
        {"path": inside, "bytes": size, "sha256": digest}
        for inside, path in files.items()
        for size, digest in [_read(path, hashed)]
    ]
    manifest = {
        "schema": MANIFEST_SCHEMA,
        "name": name,
        "created_s": time.time(),
        "version": __version__,
        "folders": folders,
        "files": entries,
    }
    partial = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    written = _Counted("archiving", total, progress)
    try:
        with _compressing(partial, ending) as out:
            text = json.dumps(manifest, indent=1).encode()
            _add(out, MANIFEST, len(text), time.time(), io.BytesIO(text), written)
            for entry in entries:
                _add_file(out, files[entry["path"]], entry, written)
            out.write(_END)
        fsync(partial)
        archive_bytes = partial.stat().st_size
        partial.rename(file)
    except OSError as error:
        raise unwritable(file.parent, "the archive", error) from error
    finally:
        partial.unlink(missing_ok=True)
    return ArchiveReport(
        file=file,
        name=name,
        parts=tuple(parts),
        n_files=len(files),
        n_bytes=total,
        archive_bytes=archive_bytes,
        left_out=tuple(
            f"{FOLDERS[part.kind]}/{part.name}/{name}"
            for part in parts
            for name in odd_entries(part.path(results))
        ),
    )


class _Counted:
    """Adds up bytes and reports them."""

    def __init__(self, stage: str, total: int, progress: Progress | None) -> None:
        self.stage, self.total, self.progress, self.done = stage, total, progress, 0

    def __call__(self, n_bytes: int) -> None:
        self.done += n_bytes
        if self.progress is not None:
            self.progress(self.stage, self.done, self.total)


def _contents(
    results: Path, parts: list[Part], with_checkpoints: bool
) -> tuple[list[str], dict[str, Path]]:
    """Return the folders, and the files with their paths in the archive."""
    folders, files = [], {}
    for part in parts:
        prefix = f"{FOLDERS[part.kind]}/{part.name}"
        if part.path(results).is_dir():
            folders.append(prefix)
        skipped: list[str] = []
        for inside, path in walk(part.path(results)):
            if any(inside.startswith(f"{name}/") for name in skipped):
                continue
            is_checkpoint = part.kind == RUN and path.name.startswith("checkpoint-")
            if is_checkpoint and path.is_dir() and not with_checkpoints:
                skipped.append(inside)
            elif path.is_dir():
                folders.append(f"{prefix}/{inside}")
            else:
                files[f"{prefix}/{inside}" if inside else prefix] = path
    return folders, files


def _read(path: Path, wrote: Callable[[int], None]) -> tuple[int, str]:
    """Return the size and the hash of a file."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as source:
            while part := source.read(COPIED_BYTES):
                digest.update(part)
                size += len(part)
                wrote(len(part))
    except OSError as error:
        raise _changed(path, error.strerror or "read error") from error
    return size, digest.hexdigest()


def _add_file(
    out: IO[bytes], path: Path, entry: Mapping[str, Any], wrote: Callable[[int], None]
) -> None:
    try:
        with path.open("rb") as source:
            mtime = os.fstat(source.fileno()).st_mtime
            digest = _add(out, entry["path"], entry["bytes"], mtime, source, wrote)
            if digest != entry["sha256"] or source.read(1):
                raise _changed(path, "its content has changed")
    except FileNotFoundError:
        raise _changed(path, "it is gone") from None


def _add(
    out: IO[bytes],
    inside: str,
    size: int,
    mtime: float,
    source: IO[bytes],
    wrote: Callable[[int], None],
) -> str:
    """Write a member and return the hash of its content."""
    member = tarfile.TarInfo(inside)
    member.size, member.mtime, member.mode = size, int(mtime), 0o644
    out.write(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))
    digest, left = hashlib.sha256(), size
    while left:
        part = source.read(min(left, COPIED_BYTES))
        if not part:
            raise _changed(Path(inside), "it is shorter now")
        digest.update(part)
        out.write(part)
        wrote(len(part))
        left -= len(part)
    out.write(bytes(-size % BLOCK))
    return digest.hexdigest()


@contextmanager
def _compressing(file: Path, ending: str) -> Iterator[IO[bytes]]:
    if ending == GZIP:
        with file.open("xb") as raw, gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0) as stream:
            yield stream  # type: ignore[misc]
    else:
        import pyarrow as pa

        with pa.CompressedOutputStream(str(file), "zstd") as stream:
            yield stream


def _changed(path: Path, what: str) -> DataError:
    return DataError(
        f"{path}, which changed while it was archived ({what})",
        "a sweep that nothing writes to",
        "Wait until its runs have ended, then archive it again.",
    )

"""The parts of a results folder that are merged, removed, archived and restored as a whole.

A part is one folder or file: a run, a sweep, an import, a note, a registered forecast, a dataset,
or a saved version of the source code. Everything else in a results folder is a cache, a database
that the collector rebuilds, or output of another program.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalelab.corpus.shards import MANIFEST_NAME
from scalelab.records.files import list_entries
from scalelab.records.run_dir import PARTIAL_CHECKPOINT
from scalelab.sweep.run_spec import PARTS

RUN, SWEEP, IMPORT, NOTE, FORECAST, DATASET, SOURCE = (
    *("run", "sweep", "import", "note", "forecast", "dataset", "source"),
)
FOLDERS = {
    SOURCE: "source",
    DATASET: "data",
    RUN: "runs",
    IMPORT: "imports",
    SWEEP: "sweeps",
    NOTE: "notes",
    FORECAST: "forecasts",
}
"""Folder of each kind, in the order of writing: what a plan needs comes before the plan."""

OUT_FOLDER = "out"
"""Folder of what a user's program writes, in the attempt or the run."""

LOCK_FILE = "launcher.lock"
SCRATCH = ".scalelab-scratch-"
"""Start of the name of a working folder of merge, remove and restore, in the results folder."""

_TEMPORARY = re.compile(rf"{re.escape(PARTIAL_CHECKPOINT)}.*|\..+\.\d+(\.[0-9a-f]{{8}})?")
"""Names of files and folders that are being written (`scalelab.records.files`)."""

Progress = Callable[[str, int, int], None]
"""Receives what is done, and how many bytes of how many."""


@dataclass(frozen=True, order=True, slots=True)
class Part:
    """A part of a results folder: its kind, one of `FOLDERS`, and the name of its entry."""

    kind: str
    name: str

    def path(self, results: Path) -> Path:
        """Return its folder or file in a results folder."""
        return results / FOLDERS[self.kind] / self.name

    @property
    def label(self) -> str:
        """Kind and name for messages, for example ``run 3f9a1c``."""
        return f"{self.kind} {self.name.removesuffix('.json') if self.is_file else self.name}"

    @property
    def is_file(self) -> bool:
        """Whether it is a file."""
        return self.kind in (FORECAST, NOTE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Write:
    """A file or folder to put into a results folder.

    Attributes
    ----------
    target : Path
        Where it comes to lie.
    source : Path or None
        What is copied; None for a file that only has a text.
    texts : Mapping[str, str]
        Content of files that differ from the source, by their path in it; ``""`` is the target.
    skips : frozenset of str
        Paths in the source, with ``/``, that are left out with all they contain.
    replaces : bool
        Whether the target may exist.
    """

    target: Path
    source: Path | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    skips: frozenset[str] = frozenset()
    replaces: bool = False

    def n_bytes(self) -> int:
        """Return the size of the copied files."""
        if self.source is None:
            return 0
        return sum(
            path.stat().st_size for _, path in walk(self.source, self.skips) if path.is_file()
        )


def list_parts(results: Path) -> list[Part]:
    """Return the parts of a results folder, in the order of `FOLDERS`, sorted by name."""
    found = []
    for kind, folder in FOLDERS.items():
        for entry in sorted(list_entries(results / folder)):
            if entry.name.startswith("."):
                continue
            if kind == DATASET and not (entry / MANIFEST_NAME).is_file():
                continue
            is_file = entry.is_file()
            if kind in (FORECAST, NOTE) and not (is_file and entry.suffix == ".json"):
                continue
            if kind not in (FORECAST, NOTE, SOURCE) and is_file:
                continue
            found.append(Part(kind, entry.name))
    return found


def data_of(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the datasets that a run reads, of the content of its ``spec.json``.

    They are its training data, the sources of a mixture, and its evaluation sets.
    """
    parts = [each for name in PARTS for each in spec.get(name) or () if isinstance(each, Mapping)]
    found = (spec.get("data_fingerprint"), *(part.get("fingerprint") for part in parts))
    return tuple(name for name in found if isinstance(name, str))


def walk(path: Path, skips: frozenset[str] = frozenset()) -> Iterator[tuple[str, Path]]:
    """Yield the files and folders of a part with their paths in it, a folder before its content.

    A file yields itself as ``""``. Locks, temporary files, and what `odd_entries` returns are left
    out. A link to a file counts as the file.
    """
    for name, entry in _entries(path, skips):
        if not is_odd(entry):
            yield name, entry


def odd_entries(path: Path) -> list[str]:
    """Return what `walk` leaves out because it is neither a file nor a folder, or cannot be read.

    Links to folders are among it: programs make them, for example ``latest``.
    """
    return [name for name, entry in _entries(path, frozenset()) if is_odd(entry)]


def is_odd(path: Path) -> bool:
    """Whether a path is neither a regular file, or link to one, nor a folder."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return True
    return not (stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and not path.is_symlink()))


def _entries(path: Path, skips: frozenset[str]) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        yield "", path
        return
    pending = [("", path)]
    while pending:
        prefix, folder = pending.pop(0)
        for entry in sorted(folder.iterdir()):
            name = f"{prefix}{entry.name}"
            if _TEMPORARY.fullmatch(entry.name) or entry.name == LOCK_FILE or name in skips:
                continue
            yield name, entry
            if entry.is_dir() and not entry.is_symlink():
                pending.append((f"{name}/", entry))


def copy(write: Write, staged: Path, *, moves: bool, wrote: Callable[[int], None]) -> None:
    """Put the content of a `Write` at ``staged``, which does not exist.

    With ``moves``, the source is moved if nothing in it changes. ``wrote`` receives the bytes of
    each copied file.
    """
    if write.source is None:
        staged.write_text(write.texts[""], encoding="utf-8")
        return
    if moves and not write.texts and not write.skips:
        write.source.rename(staged)
        return
    if write.source.is_dir():
        staged.mkdir()
    for name, path in walk(write.source, write.skips):
        target = staged / name if name else staged
        if path.is_dir():
            target.mkdir()
        elif name not in write.texts:
            shutil.copyfile(path, target)
            wrote(target.stat().st_size)
    for name, text in write.texts.items():
        (staged / name if name else staged).write_text(text, encoding="utf-8")


def disk_bytes(path: Path) -> int:
    """Return the space that a file or folder takes on the disk, as ``du`` counts it."""
    total = 0
    with contextlib.suppress(OSError):
        total = _blocks(path.lstat())
    if path.is_symlink():
        return total
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                total += _blocks(os.lstat(os.path.join(folder, name)))
    return total


def checkpoint_folders(attempt: Path) -> list[Path]:
    """Return the folders of an attempt's checkpoints, incomplete ones included."""
    return sorted(
        entry
        for entry in list_entries(attempt)
        if entry.name.startswith(("checkpoint-", PARTIAL_CHECKPOINT))
    )


def _blocks(status: os.stat_result) -> int:
    return status.st_blocks * 512

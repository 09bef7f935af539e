"""Find the checkpoints that a user's program saved, and clone them for the next attempt.

A link is not enough: the new attempt may write into the file while an old one, which has lost its
claim and does not know it yet, still does.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import glob
import json
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scalelab.launch.programs.curve import read_rows
from scalelab.records.files import read_json
from scalelab.records.parts import OUT_FOLDER
from scalelab.records.run_dir import Attempt, RunDir
from scalelab.sweep.program_render import Value, fill

FICLONE = 0x40049409
"""Linux, ``include/uapi/linux/fs.h``: make a file share the blocks of another, copied on write."""
POINTER_FILE = "program.json"
"""In ``checkpoint-<step>`` of an attempt: where the program's own checkpoint is."""
FRESH_START = "is_fresh_start"
"""Mark in ``attempt.json``: checkpoints of earlier attempts do not count any more."""
_STEP = "\0"
_ZIPPED = (".pt", ".pth", ".ckpt", ".npz")
_JSON_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramCheckpoint:
    """Files that a program saved at one step.

    Attributes
    ----------
    attempt : int
        Number of the attempt that saved it.
    step : int
        Its step; where the name does not tell, the last step that was shown before it was saved.
    paths : tuple of Path
        Files and folders, sorted.
    out_dir : Path
        Folder of that attempt's files.
    """

    attempt: int
    step: int
    paths: tuple[Path, ...]
    out_dir: Path

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Return names, sizes and times of all files; they change when a file is written."""
        found = []
        for path in self.paths:
            for file in [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]:
                with contextlib.suppress(FileNotFoundError):
                    status = file.stat()
                    found.append((str(file), status.st_size, status.st_mtime_ns))
        return tuple(found)

    def is_whole(self) -> bool:
        """Return whether no file is visibly cut."""
        files = [
            file
            for path in self.paths
            for file in (path.rglob("*") if path.is_dir() else [path])
            if file.is_file()
        ]
        return bool(files) and all(map(_is_whole, files))


class CheckpointPattern:
    """The glob of a program's checkpoints.

    Parameters
    ----------
    template : str
        With placeholders, ``{step}`` among them; empty for a program without checkpoints.
    values : Mapping
        Values of the placeholders, except ``out_dir`` and ``step``.
    """

    def __init__(self, template: str, values: Mapping[str, Value]) -> None:
        self._template = template
        self._values = {
            name: glob.escape(value) if isinstance(value, str) else value
            for name, value in values.items()
        }

    def find(self, attempt: Attempt, out_dir: Path) -> list[ProgramCheckpoint]:
        """Return the checkpoints in an attempt's folder, newest first; only whole ones."""
        if not self._template:
            return []
        inside = {**self._values, "out_dir": glob.escape(str(out_dir)), "step": _STEP}
        pattern = str(out_dir / fill(self._template, inside))
        groups: dict[int | None, list[Path]] = {}
        for name in sorted(glob.glob(pattern.replace(_STEP, "*"), recursive=True)):
            match = re.fullmatch(_regex(pattern), name.rstrip("/"))
            if match is not None:
                step = int(match[1]) if _STEP in pattern else None
                groups.setdefault(step, []).append(Path(name))
        found = [
            ProgramCheckpoint(
                attempt=attempt.number,
                step=_step_of(attempt, paths) if step is None else step,
                paths=tuple(paths),
                out_dir=out_dir,
            )
            for step, paths in groups.items()
        ]
        found.sort(key=lambda item: item.step, reverse=True)
        return [item for item in found if item.is_whole()]


def out_dir_of(attempt: Attempt, *, in_place: bool) -> Path:
    """Return the folder of a program's files: of the attempt, or of the run for ``in_place``."""
    return (attempt.run.path if in_place else attempt.path) / OUT_FOLDER


def newest_checkpoint(
    run: RunDir, pattern: CheckpointPattern, *, in_place: bool
) -> ProgramCheckpoint | None:
    """Return the whole checkpoint with the highest step since the last fresh start."""
    found: list[ProgramCheckpoint] = []
    for attempt in reversed(run.attempts()):
        found += pattern.find(attempt, out_dir_of(attempt, in_place=in_place))
        if attempt.read_note().get(FRESH_START) or (in_place and found):
            break
    return max(found, key=lambda item: (item.step, item.attempt), default=None)


def clone(checkpoint: ProgramCheckpoint, out_dir: Path) -> tuple[Path, ...]:
    """Clone a checkpoint into another attempt's folder, at the same places; return the clones.

    Files outside the first attempt's folder are not cloned.

    Raises
    ------
    OSError
        If there is no room, or a file changed while it was read.
    """
    before = checkpoint.stamp()
    clones = []
    for path in checkpoint.paths:
        if not path.is_relative_to(checkpoint.out_dir):
            clones.append(path)
            continue
        target = out_dir / path.relative_to(checkpoint.out_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        if path.is_dir():
            shutil.copytree(path, partial, symlinks=True, copy_function=clone_file)
        else:
            clone_file(path, partial)
        partial.rename(target)
        clones.append(target)
    if checkpoint.stamp() != before:
        raise OSError(f"{checkpoint.paths[0]} changed while it was cloned")
    return tuple(clones)


def clone_file(source: str | Path, target: str | Path) -> str:
    """Make a file with the content of another: shared blocks where the filesystem can, or a copy.

    Returns
    -------
    str
        The target.
    """
    with open(source, "rb") as old, open(target, "wb") as new:
        try:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
        except OSError:
            shutil.copyfileobj(old, new, 1 << 22)
    shutil.copystat(source, target)
    return str(target)


def note_checkpoint(attempt: Attempt, checkpoint: ProgramCheckpoint, wall_s: float) -> None:
    """Record a program's checkpoint as ``checkpoint-<step>`` of the attempt, as all commands read.

    Parameters
    ----------
    attempt : Attempt
        The attempt that saved it, or has the clone.
    checkpoint : ProgramCheckpoint
    wall_s : float
        Seconds of training up to it, over all attempts.
    """
    with attempt.writing_checkpoint(checkpoint.step) as folder:
        content = {"paths": [str(path) for path in checkpoint.paths], "wall_s": wall_s}
        (folder / POINTER_FILE).write_text(json.dumps(content), encoding="utf-8")


def wall_s_at(run: RunDir, checkpoint: ProgramCheckpoint) -> float:
    """Return the seconds of training up to a checkpoint, 0 where they were not recorded."""
    for attempt in run.attempts():
        if attempt.number == checkpoint.attempt:
            steps = [found for found in attempt.checkpoints() if found.step <= checkpoint.step]
            for found in steps[:1]:
                return float((read_json(found.path / POINTER_FILE) or {}).get("wall_s", 0.0))
    return 0.0


def remove_checkpoints(run: RunDir, pattern: CheckpointPattern, *, in_place: bool) -> None:
    """Remove the checkpoints of all attempts, in the folders of the run only."""
    for attempt in run.attempts():
        for found in pattern.find(attempt, out_dir_of(attempt, in_place=in_place)):
            for path in found.paths:
                if not path.is_relative_to(run.path):
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        attempt.remove_checkpoints()


def count_safetensors(folder: Path) -> int | None:
    """Return the parameters in the ``.safetensors`` files of a folder, None if it has none.

    Reads only their headers: 8 bytes of length, then JSON with the shape of each tensor.
    """
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        header = _safetensors_header(path)
        if header is None:
            return None
        shapes |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    if not shapes:
        return None
    total = 0
    for shape in shapes.values():
        count = 1
        for size in shape:
            count *= size
        total += count
    return total


def _safetensors_header(path: Path) -> dict[str, dict[str, list[int]]] | None:
    with contextlib.suppress(OSError, ValueError, struct.error), path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length <= _JSON_BYTES:
            header = json.loads(file.read(length))
            ends = [e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"]
            if os.fstat(file.fileno()).st_size == 8 + length + max(ends, default=0):
                return dict(header)
    return None


def _is_whole(path: Path) -> bool:
    """Return whether a file is not visibly cut: an archive has its end, a header its data."""
    try:
        if path.stat().st_size == 0:
            return path.suffix not in (*_ZIPPED, ".safetensors", ".json")
        if path.suffix == ".safetensors":
            return _safetensors_header(path) is not None
        if path.suffix in _ZIPPED:
            with path.open("rb") as file:
                is_zip = file.read(4) == b"PK\x03\x04"
            return not is_zip or zipfile.is_zipfile(path)
    except OSError:
        return False
    return True


def _step_of(attempt: Attempt, paths: list[Path]) -> int:
    """Return the last step that the attempt showed before the checkpoint was saved."""
    saved_s = max(path.stat().st_mtime for path in paths)
    source = attempt.read_note().get("resumed_from")
    step = int(source["step"]) if isinstance(source, dict) and source.get("step") else 0
    for row in read_rows(attempt):
        if row.time_s > saved_s:
            break
        step = row.step
    return step


def _regex(pattern: str) -> str:
    """Return a regular expression for a glob, whose groups are the digits at ``{step}``."""
    parts = [fnmatch.translate(part)[4:-3] for part in pattern.split(_STEP)]
    return r"(\d+)".join(parts)

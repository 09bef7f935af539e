"""The source code of a run: git commit, uncommitted changes, and frozen copies for jobs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import scalelab
from scalelab.records.files import write_atomically
from scalelab.records.names import check_name

SOURCE_NOTE = "SOURCE.json"
SNAPSHOT_FILE = "snapshot"
GIT_TIMEOUT_S = 10
_PACKAGES = (("scalelab", "scalelab"), ("kernels/scalelab_kernels", "scalelab_kernels"))

_SUFFIXES = (".py", ".toml", ".csv")


def source_note(results: Path) -> dict[str, Any]:
    """Return the git commit of the source, and save its uncommitted changes.

    The changes go to ``source/<hash>.diff`` in the results folder, each version once.

    Returns
    -------
    dict
        ``git_commit``, ``is_dirty`` and ``source_diff`` (a path in the results folder, or None);
        empty if the package is not in a git repository.
    """
    root = Path(scalelab.__file__).resolve().parent.parent
    frozen = root / SOURCE_NOTE
    if frozen.exists():
        note: dict[str, Any] = json.loads(frozen.read_text(encoding="utf-8"))
        return note
    commit, diff = _git(root, "rev-parse", "HEAD"), _git(root, "diff", "HEAD", "--binary")
    if not (root / ".git").exists() or commit is None or diff is None:
        return {}
    note = {"git_commit": commit.decode().strip(), "is_dirty": bool(diff), "source_diff": None}
    if diff:
        name = f"{hashlib.sha256(diff).hexdigest()[:16]}.diff"
        folder = results / "source"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            write_atomically(folder / name, diff.decode(errors="replace"))
        note["source_diff"] = f"source/{name}"
    return note


def frozen_source(results: Path, sweep_folder: Path) -> Path:
    """Return the frozen copy that a sweep runs from; the first submission makes it."""
    pointer = sweep_folder / SNAPSHOT_FILE
    try:
        return results / "source" / check_name(pointer.read_text().strip(), what="snapshot")
    except FileNotFoundError:
        copy = freeze_source(results)
        write_atomically(pointer, copy.name, durable=True)
        return copy


def freeze_source(results: Path) -> Path:
    """Copy the running source unless the same content was copied before; return the copy.

    The folder ``source/<hash>`` holds the packages that a job imports and ``SOURCE.json``.
    """
    root = Path(scalelab.__file__).resolve().parent.parent
    note = source_note(results)
    folders = [(root / path, name) for path, name in _PACKAGES if (root / path).is_dir()]
    digest = hashlib.sha256()
    for folder, name in folders:
        for file in sorted(path for path in folder.rglob("*.*") if path.suffix in _SUFFIXES):
            digest.update(f"{name}/{file.relative_to(folder)}".encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    target = results / "source" / digest.hexdigest()[:16]
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    for folder, name in folders:
        shutil.copytree(folder, partial / name, ignore=shutil.ignore_patterns("__pycache__"))
    (partial / SOURCE_NOTE).write_text(json.dumps({**note, "snapshot": target.name}))
    try:
        partial.rename(target)
    except OSError:
        # Another launcher has already made the same copy.
        shutil.rmtree(partial)
    return target


def _git(root: Path, *words: str) -> bytes | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, timeout=GIT_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout

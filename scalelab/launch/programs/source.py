"""What identifies a user's program and its data: git commit and changes, container, fingerprints.

A run keeps the version of the program for which it was planned. A launch compares it with the
folder as it is then (`require_same_source`).
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import subprocess
import tomllib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.errors import DataError, UsageError
from scalelab.records.files import read_json, write_atomically
from scalelab.records.sweep_dir import Results
from scalelab.sweep.program import ProgramExecution, as_tuples
from scalelab.sweep.run_spec import RunSpec, build
from scalelab.units import plural

if TYPE_CHECKING:  # machines that only train have no pydantic
    from scalelab.sweep.program_table import ProgramTable

GIT_TIMEOUT_S = 60
MAX_FILES = 10_000
SAMPLES, SAMPLE_BYTES = 16, 1 << 16
HASH_LENGTH = 16
COMMIT_LENGTH = 12
PROGRAM_FILE = "program.json"
_SKIPPED = ("__pycache__", ".git")


def program_version(table: ProgramTable, results: Path) -> str:
    """Return the version of a program: as declared, or that of the files of its folder.

    Without a declaration it is the git commit of the folder, with a hash of uncommitted changes
    and untracked files; outside git a hash of all files. The results folder and the files that the
    sweep file names do not count.

    Raises
    ------
    UsageError
        If the folder does not exist or has too many files to hash.
    """
    if table.version:
        return table.version
    folder = Path(table.execution().cwd)
    ignored = {results.resolve(), *(table.path(name).resolve() for name in _named(table))}
    return folder_version(folder, ignored)


def folder_version(folder: Path, ignored: Collection[Path]) -> str:
    """Return the version of the files of a folder, without some files and folders; as above.

    Sweep files in the folder do not count: they say what to run, not how.
    """
    if not folder.is_dir():
        raise UsageError(
            f"program.cwd = {str(folder)!r}, which is not a folder",
            "the folder in which the program starts",
            "Correct cwd; it starts from the folder of the sweep file.",
        )
    ignored = {*ignored, *(path.resolve() for path in folder.glob("*.toml") if _is_sweep(path))}
    root = folder.resolve()
    below = sorted(path.relative_to(root) for path in ignored if path.is_relative_to(root))
    excluded = [f":(exclude){path}" for path in below if path.parts]
    commit = _git(folder, "log", "-1", "--format=%H", "--", ".", *excluded)
    if commit is None or not commit.strip():
        return f"files-{_hash_of(_files(folder, ignored), folder)}"
    diff = _git(folder, "diff", "HEAD", "--binary", "--", ".", *excluded) or b""
    listed = _git(folder, "ls-files", "--others", "--exclude-standard", "-z", "--", ".", *excluded)
    untracked = [folder / name.decode() for name in (listed or b"").split(b"\0") if name]
    version = commit.decode().strip()[:COMMIT_LENGTH]
    kept = [path for path in untracked if path.is_file() and not set(_SKIPPED) & set(path.parts)]
    if not diff and not kept:
        return version
    digest = hashlib.sha256(diff + _hash_of(kept, folder).encode())
    return f"{version}+{digest.hexdigest()[:HASH_LENGTH]}"


def container_identity(words: Iterable[str]) -> str:
    """Return what identifies a container: its arguments, images in files by their content."""
    words = [f"file {fingerprint(Path(word))}" if _is_file(word) else word for word in words]
    return " ".join(words)


def data_fingerprint(text: str) -> str | None:
    """Return the fingerprint of declared data: a file, a folder, or the start of file names.

    Returns
    -------
    str or None
        None if there is no such file.
    """
    path = Path(text)
    if path.exists():
        return f"data-{fingerprint(path)}"
    found = [Path(name) for name in sorted(glob.glob(f"{glob.escape(text)}*"))]
    files = [file for file in found if file.is_file()]
    return f"data-{_hash_of(files, path.parent)}" if files else None


def fingerprint(path: Path) -> str:
    """Return a hash of names, sizes and samples of the content of a file, or of a folder's files.

    Files of more than a megabyte are sampled at 16 places; a change of a few bytes elsewhere is
    not seen.
    """
    if path.is_dir():
        return _hash_of(_files(path, ()), path)
    return _hash_of([path], path.parent)


def save_program(
    results: Results, name: str, table: ProgramTable, rates: tuple[tuple[float, float], ...]
) -> None:
    """Save how a sweep starts its program, for `resume` and for other machines.

    ``rates`` are probed FLOPs per token with tokens per second.
    """
    content = {
        "execution": dataclasses.asdict(table.execution()),
        "is_declared": bool(table.version),
        "ignored": [table.path(file).as_posix() for file in _named(table)],
        "tokens_per_s": table.tokens_per_s,
        "token_rates": rates,
    }
    write_atomically(results.sweep(name) / PROGRAM_FILE, json.dumps(content, indent=1))


def require_same_source(
    results: Results, name: str, specs: Iterable[RunSpec], *, allow_change: bool
) -> str:
    """Compare the versions of unfinished runs with the program's folder as it is now.

    Parameters
    ----------
    results : Results
    name : str
        The sweep, whose `save_program` names the folder.
    specs : iterable of RunSpec
        The runs that would be started.
    allow_change : bool
        Whether another version may train them.

    Returns
    -------
    str
        What is different, for a note; empty if nothing is.

    Raises
    ------
    UsageError
        If the source changed and that is not allowed.
    """
    content = read_json(results.sweep(name) / PROGRAM_FILE)
    planned = sorted({spec.program.version for spec in specs if spec.program is not None})
    if content is None or content["is_declared"] or not planned:
        return ""
    ignored = {results.path.resolve(), *(Path(file).resolve() for file in content["ignored"])}
    now = folder_version(Path(content["execution"]["cwd"]), ignored)
    if planned == [now]:
        return ""
    words = f"the program's source is {now}; the runs were planned with {', '.join(planned)}"
    if not allow_change:
        raise UsageError(
            words,
            "the source for which the runs were planned, because it is part of a run",
            "Restore it with git, plan a new sweep with --name, or add --allow-source-change: "
            "unfinished runs then train with the new source and keep their run_ids.",
        )
    return f"{words}. They keep their run_ids (--allow-source-change)."


def saved_program(results: Results, name: str) -> ProgramExecution | None:
    """Return how a saved sweep starts its program; None if it has none."""
    content = read_json(results.sweep(name) / PROGRAM_FILE)
    return None if content is None else build(ProgramExecution, as_tuples(content["execution"]))


def saved_version(results: Results, name: str) -> str:
    """Return the version of the program for which a sweep was planned first; empty if it is new."""
    if not (results.sweep(name) / "plan.json").exists():
        return ""
    specs = (results.run(run_id).read_spec() for run_id in results.load_plan(name).run_ids)
    return next((spec.program.version for spec in specs if spec.program is not None), "")


def saved_rates(
    results: Results, name: str
) -> tuple[float | None, tuple[tuple[float, float], ...]]:
    """Return the declared and the probed tokens per second that `save_program` wrote."""
    content = read_json(results.sweep(name) / PROGRAM_FILE) or {}
    rates = tuple((float(size), float(rate)) for size, rate in content.get("token_rates", ()))
    return content.get("tokens_per_s"), rates


def _named(table: ProgramTable) -> list[str]:
    named = [table.source, *(file.template for file in table.file), table.size.table]
    return [name for name in named if isinstance(name, str) and name]


def _files(folder: Path, ignored: Collection[Path]) -> list[Path]:
    """Return the files below a folder; UsageError if there are more than `MAX_FILES`."""
    found: list[Path] = []
    todo = [folder]
    while todo:
        for path in sorted(todo.pop().iterdir()):
            if path.name in _SKIPPED or path.resolve() in ignored:
                continue
            if path.is_dir() and not path.is_symlink():
                todo.append(path)
            elif path.is_file():
                found.append(path)
        if len(found) > MAX_FILES:
            raise UsageError(
                f"{folder} with more than {plural(MAX_FILES, 'file')}",
                "a folder that is small enough to hash",
                "Declare the version of the program instead: program.version = 'v1'.",
            )
    return found


def _hash_of(files: Iterable[Path], folder: Path) -> str:
    digest = hashlib.sha256()
    for path in files:
        try:
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder)}\0{size}\0".encode())
            with path.open("rb") as file:
                if size <= SAMPLES * SAMPLE_BYTES:
                    digest.update(file.read())
                    continue
                for index in range(SAMPLES):
                    file.seek((size - SAMPLE_BYTES) * index // (SAMPLES - 1))
                    digest.update(file.read(SAMPLE_BYTES))
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror}",
                "readable files, because their content is part of a run",
                "Correct the permissions, or declare program.version.",
            ) from None
    return digest.hexdigest()[:HASH_LENGTH]


def _is_sweep(path: Path) -> bool:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return "program" in content and ("command" in content["program"] or "kind" in content)


def _is_file(word: str) -> bool:
    return "{" not in word and Path(word).is_file()


def _git(folder: Path, *words: str) -> bytes | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout

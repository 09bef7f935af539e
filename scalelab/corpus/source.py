"""Where text comes from: `DataSource` names it, `find_files` lists the files it means.

No path given means the source text of the running CPython's own standard library: real text that
every machine has. A folder means every file beneath it; ``*.jsonl`` and ``*.parquet`` are tables
with one document a row, any other file is one document of UTF-8 text.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import os
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from scalelab.errors import DataError, UsageError

DEFAULT_EVAL_TOKENS = 262_144
BPE_SIZES = (300, 200_000)

# Left out of the standard library: packages that are not part of it; the build's own settings,
# which differ from machine to machine; and the character tables of `encodings`, which a program
# wrote from one template: near-duplicates of each other on both sides of the split would make the
# held-out text no longer unseen.
STDLIB_LEFT_OUT = (
    "site-packages",
    "dist-packages",
    "__pycache__",
    "config-*",
    "_sysconfigdata*",
    "encodings",
)

_TOKENIZER = re.compile(r"bytes|bpe:(?P<size>[0-9]{1,9})")
_KINDS = {".jsonl": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """Text and how it becomes tokens.

    Attributes
    ----------
    paths : tuple of str
        Files, folders and globs; empty for the running CPython's standard library.
    tokenizer : str
        ``bytes`` (vocabulary 256) or ``bpe:SIZE``, trained on the text itself.
    field : str
        Key of the text in each line of a JSONL file.
    column : str
        Column of the text in a Parquet file.
    eval_tokens : int
        Tokens of the evaluation set, taken from documents that training never sees.

    Raises
    ------
    UsageError
        When a path, the tokenizer or the size of the evaluation set cannot be meant.
    """

    paths: tuple[str, ...] = ()
    tokenizer: str = "bytes"
    field: str = "text"
    column: str = "text"
    eval_tokens: int = DEFAULT_EVAL_TOKENS

    def __post_init__(self) -> None:
        if "" in self.paths:
            raise UsageError(
                "--data with an empty path",
                "files, folders and globs of text",
                "Give a path ('.' is the present folder); a shell variable may be unset.",
            )
        match = _TOKENIZER.fullmatch(self.tokenizer)
        low, high = BPE_SIZES
        if match is None or (match["size"] and not low <= int(match["size"]) <= high):
            raise UsageError(
                f"tokenizer {self.tokenizer!r}",
                f"bytes, or bpe:SIZE with SIZE from {low} to {high}",
                "Write bytes or bpe:4096, for example.",
            )
        if self.eval_tokens < 1:
            raise UsageError(
                f"an evaluation set of {self.eval_tokens} tokens",
                "a whole number from 1",
                f"Leave it out to use {DEFAULT_EVAL_TOKENS}.",
            )

    @property
    def bpe_size(self) -> int | None:
        """Vocabulary asked of the BPE tokenizer, None for bytes."""
        return int(self.tokenizer.partition(":")[2]) if self.tokenizer != "bytes" else None

    def describe(self) -> str:
        """Return the source in words."""
        if self.paths:
            return ", ".join(self.paths)
        version = ".".join(str(part) for part in sys.version_info[:3])
        return f"the standard library of CPython {version}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file to read.

    Attributes
    ----------
    path : Path
        Where it lies.
    kind : str
        ``text``, ``jsonl`` or ``parquet``.
    is_named : bool
        Whether the user named this very file: then it must be usable. A file that a folder or glob
        brought along is skipped, and counted, when it is not text.
    """

    path: Path
    kind: str
    is_named: bool


def find_files(source: DataSource, results: Path) -> tuple[SourceFile, ...]:
    """Return the files of a source, each once, in the order of their paths.

    Out of folders, hidden files and folders and the results folder itself are left out, and
    folders that are links are not entered.

    Raises
    ------
    DataError
        When a path is missing or unreadable, a glob matches nothing, or a folder holds no file.
    """
    if not source.paths:
        return _standard_library(results)
    found: dict[Path, bool] = {}
    for text in source.paths:
        for path in _expand(text):
            if path.is_dir():
                for file in _walk(path, results):
                    found.setdefault(file, False)
            elif _is_file(path):
                found[path] = found.get(path, False) or str(path) == os.path.expanduser(text)
    if not found:
        raise DataError(
            f"no file in {source.describe()}",
            "text, JSONL or Parquet files that are not hidden",
            "Name a folder that holds text.",
        )
    return tuple(
        SourceFile(path=path, kind=_KINDS.get(path.suffix.lower(), "text"), is_named=found[path])
        for path in sorted(found, key=str)
    )


@functools.lru_cache(maxsize=8)
def _standard_library(results: Path) -> tuple[SourceFile, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    files = tuple(
        SourceFile(path=path, kind="text", is_named=False)
        for path in (_walk(root, results, left_out=STDLIB_LEFT_OUT) if root.is_dir() else ())
        if path.suffix == ".py"
    )
    if not files:
        raise DataError(
            f"no standard library sources at {root}",
            "a CPython installation with its .py files",
            "Name text of your own with --data.",
        )
    return tuple(sorted(files, key=lambda file: str(file.path)))


def _expand(text: str) -> list[Path]:
    path = Path(os.path.expanduser(text))
    try:
        is_there = path.exists()
    except OSError as error:
        raise unreadable(path, error) from error
    if is_there:
        return [path]
    if not glob.has_magic(text):
        raise DataError(
            f"--data {text}, which does not exist",
            "a file, a folder or a glob such as 'corpus/**/*.txt'",
            f"Check the path (the present folder is {Path.cwd()}).",
        )
    matches = [Path(match) for match in glob.glob(os.path.expanduser(text), recursive=True)]
    if not matches:
        raise DataError(
            f"--data {text}, which matches nothing",
            "a glob that matches at least one file",
            f"Check the pattern (the present folder is {Path.cwd()}).",
        )
    return matches


def _walk(root: Path, results: Path, left_out: tuple[str, ...] = ()) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or root), error) from error

    is_left_out = re.compile("|".join([r"\.", *map(fnmatch.translate, left_out)])).match
    files: list[Path] = []
    own = os.path.realpath(results)
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [
            name
            for name in folders
            if not is_left_out(name) and os.path.realpath(os.path.join(folder, name)) != own
        ]
        files.extend(Path(folder, name) for name in names if not is_left_out(name))
    return [file for file in files if _is_file(file)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a file or folder that the system does not let us read."""
    return DataError(
        f"{path}, which cannot be read ({error.strerror or error})",
        "files and folders that this user may read",
        "Change its permissions, or leave it out of --data.",
    )

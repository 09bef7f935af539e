"""Text sources: `DataSource` describes one, `find_files` lists its files.

Without a path, the source is the source code of the running CPython's standard library, which
every machine has. A folder stands for all files in it and its subfolders. JSON, CSV and
Parquet have one document per row; any other file is one document of UTF-8 text. Compressed files
are unpacked.
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

from scalelab.corpus.tokenizer_names import BPE, is_file_name, tokenizer_name
from scalelab.errors import DataError, UsageError, did_you_mean

DEFAULT_EVAL_TOKENS = 262_144
DEFAULT_BPE_SAMPLE = 16_000_000
"""Measured with 32,000 tokens: 4 times as much text takes 22 s more and saves 1.0 % of tokens."""
DEFAULT_MAX_REJECTS = 0.1
DEFAULT_COLUMN = "text"
MOST_NAMED = 8
"""Paths in the description of a source."""
AUTO, TEXT, JSON, LINES, CSV, PARQUET = "auto", "text", "json", "lines", "csv", "parquet"
TEXT_FORMATS = (TEXT, JSON, CSV, PARQUET)
TOKEN_FORMATS = ("raw", "npy", "llmc", "megatron", "huggingface", "mds")
FORMATS = (AUTO, *TEXT_FORMATS, *TOKEN_FORMATS)
TOKEN_DTYPES = ("uint8", "uint16", "uint32", "int32", "int64")
"""Types of a token in token files; all little endian."""
FINGERPRINTS = ("sampled", "whole")

# Left out of the standard library: other packages; build settings, which differ between machines;
# and the generated character tables of `encodings`, because near-duplicates on both sides of the
# split would leak held-out text into training.
STDLIB_LEFT_OUT = (
    *("site-packages", "dist-packages", "__pycache__"),
    *("config-*", "_sysconfigdata*", "encodings"),
)

_KINDS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), LINES),
    **dict.fromkeys((".parquet", ".pq"), PARQUET),
    **dict.fromkeys((".csv", ".tsv"), CSV),
    ".json": JSON,
}
COMPRESSED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
"""Endings of compressed files; the content decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """A text source and its tokenizer.

    Attributes
    ----------
    paths : tuple of str
        Files, folders and globs; empty for the standard library of the running CPython.
    tokenizer : str
        ``bytes`` (vocabulary 256), ``bpe:SIZE``, trained on the text, a file, or ``hf:NAME``
        (`scalelab.corpus.tokenizer_names`).
    field : str
        Field of the text in JSON files; a dot enters a nested one, as in ``meta.text``.
    column : str
        Column of the text in Parquet files, named in the same way, and in CSV files.
    eval_tokens : int
        Tokens of the evaluation set, from held-out text.
    format : str
        ``auto`` decides by ending and content. ``text``: each file is one document, markup
        included. ``json``, ``csv`` and ``parquet``: each file holds rows. Or the format of token
        files (`scalelab.corpus.token_files`).
    max_rejects : float
        Largest share of documents that may be unusable, from 0 to 1.
    eval_paths : tuple of str
        Token files of the evaluation set; empty to hold out training tokens.
    dtype : str
        Type of a token in files without a header; ``auto`` for uint16.
    vocab_size : int or None
        Vocabulary of token files; None for the largest token + 1.
    end_token : int or None
        Token that ends a document; None for what the token files or the tokenizer say.
    fingerprint : str
        ``sampled`` or ``whole``: how many tokens of token files are read for their fingerprint and
        for the check of the vocabulary.
    tokenizer_pattern : str or None
        Pattern of a rank file: a name or a regular expression
        (`scalelab.corpus.tokenizer_files.PATTERNS`).
    special_tokens : bool
        Whether special tokens that the text spells become special tokens; otherwise they are text.
    bpe_sample : int
        Bytes of text that the tokenizer ``bpe:SIZE`` is trained on; the documents are a random
        sample.

    Raises
    ------
    UsageError
        When a path, the tokenizer, the format, the share of unusable rows or the size of the
        evaluation set is invalid.
    """

    paths: tuple[str, ...] = ()
    tokenizer: str = "bytes"
    field: str = "text"
    column: str = DEFAULT_COLUMN
    eval_tokens: int = DEFAULT_EVAL_TOKENS
    format: str = AUTO
    max_rejects: float = DEFAULT_MAX_REJECTS
    eval_paths: tuple[str, ...] = ()
    dtype: str = AUTO
    vocab_size: int | None = None
    end_token: int | None = None
    fingerprint: str = "sampled"
    tokenizer_pattern: str | None = None
    special_tokens: bool = False
    bpe_sample: int = DEFAULT_BPE_SAMPLE

    def __post_init__(self) -> None:
        if "" in (*self.paths, *self.eval_paths):
            raise UsageError(
                "--data with an empty path",
                "files, folders and globs of text",
                "Write for example --data corpus/. A shell variable may be unset.",
            )
        object.__setattr__(self, "tokenizer", tokenizer_name(self.tokenizer))
        has_file = is_file_name(self.tokenizer)
        for flag, is_set in (
            ("--tokenizer-pattern", self.tokenizer_pattern is not None),
            ("--special-tokens", self.special_tokens),
        ):
            if is_set and not has_file:
                raise UsageError(
                    f"{flag} with --tokenizer {self.tokenizer}",
                    "a tokenizer from a file, such as tokenizer.json or ranks.tiktoken",
                    f"Remove {flag}.",
                )
        for flag, value, allowed in (
            ("--data-format", self.format, FORMATS),
            ("--token-dtype", self.dtype, (AUTO, *TOKEN_DTYPES)),
            ("--fingerprint", self.fingerprint, FINGERPRINTS),
        ):
            if value not in allowed:
                raise UsageError(
                    f"{flag} {value!r}",
                    " or ".join(allowed),
                    f"{did_you_mean(value, allowed)}Write for example {flag} {allowed[1]}.",
                )
        if self.eval_tokens < 1:
            raise UsageError(
                f"an evaluation set of {self.eval_tokens} tokens",
                "a whole number of at least 1",
                f"Write for example --eval-tokens {DEFAULT_EVAL_TOKENS}.",
            )
        if self.bpe_sample < 1:
            raise UsageError(
                f"--bpe-sample {self.bpe_sample}",
                "the bytes of text that a bpe tokenizer is trained on, at least 1",
                "Write for example --bpe-sample 16M.",
            )
        if not 0 <= self.max_rejects <= 1:
            raise UsageError(
                f"--max-rejects {self.max_rejects:g}",
                "a share of the documents, from 0 to 1",
                "Write for example --max-rejects 0.02 for 2 %.",
            )

    @property
    def bpe_size(self) -> int | None:
        """Requested vocabulary size of the BPE tokenizer; None for another tokenizer."""
        is_bpe = self.tokenizer.startswith(BPE)
        return int(self.tokenizer.removeprefix(BPE)) if is_bpe else None

    def require_text(self) -> None:
        """Raise UsageError when an option of token files is set, because the data are text."""
        for flag, is_set in (
            ("--eval-data", self.eval_paths),
            ("--token-dtype", self.dtype != AUTO),
            ("--vocab-size", self.vocab_size),
            ("--end-token", self.end_token is not None and not is_file_name(self.tokenizer)),
            ("--fingerprint whole", self.fingerprint != "sampled"),
        ):
            if is_set:
                raise UsageError(
                    f"{flag} for text",
                    "token files as --data; the tokenizer of text has its own vocabulary and end",
                    f"Remove {flag.split()[0]}. If the files hold tokens, add --data-format raw.",
                )

    def describe(self) -> str:
        """Return a description of the source."""
        if self.paths:
            more = len(self.paths) - MOST_NAMED
            named = ", ".join(self.paths[:MOST_NAMED])
            return f"{named} and {more:,} more" if more > 0 else named
        version = ".".join(str(part) for part in sys.version_info[:3])
        return f"the standard library of CPython {version}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file to read.

    Attributes
    ----------
    path : Path
        Path of the file.
    kind : str
        What the ending promises: ``text``, ``json``, ``lines`` (JSON Lines), ``csv`` or
        ``parquet``.
    is_named : bool
        Whether the user named this file. If a named file is not text, it counts as an unusable row.
        A file found through a folder or glob is skipped then.
    is_packed : bool
        Whether the ending says that it is compressed.
    """

    path: Path
    kind: str
    is_named: bool
    is_packed: bool = False


def find_files(source: DataSource, results: Path) -> tuple[SourceFile, ...]:
    """Return the files of a source, each once, sorted by path.

    Hidden files and folders and the results folder are left out. Links to folders are not followed.

    Raises
    ------
    DataError
        When a path is missing or unreadable, a glob matches nothing, or a folder has no files.
    """
    if not source.paths:
        return _standard_library(results)
    found: dict[Path, bool] = {}
    for text in source.paths:
        for path in expand_path(text):
            if path.is_dir():
                for file in walk(path, results):
                    found.setdefault(file, False)
            elif _is_file(path):
                found[path] = found.get(path, False) or str(path) == os.path.expanduser(text)
    if not found:
        raise DataError(
            f"no file in {source.describe()}",
            "text, JSON, CSV or Parquet files that are not hidden",
            "Name a folder that holds text, for example --data corpus/.",
        )
    return tuple(
        SourceFile(
            path=path,
            kind=_KINDS.get(_ending(path), TEXT),
            is_named=found[path],
            is_packed=path.suffix.lower() in COMPRESSED,
        )
        for path in sorted(found, key=str)
    )


def _ending(path: Path) -> str:
    """Return the ending of a name in lower case, without that of its compression."""
    name = path.name.lower()
    stem, ending = os.path.splitext(name)
    return os.path.splitext(stem)[1] if ending in COMPRESSED else ending


@functools.lru_cache(maxsize=8)
def _standard_library(results: Path) -> tuple[SourceFile, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    files = tuple(
        SourceFile(path=path, kind=TEXT, is_named=False)
        for path in (walk(root, results, left_out=STDLIB_LEFT_OUT) if root.is_dir() else ())
        if path.suffix == ".py"
    )
    if not files:
        raise DataError(
            f"no standard library sources at {root}",
            "a CPython installation with its .py files",
            "Give your own text, for example --data corpus/.",
        )
    return tuple(sorted(files, key=lambda file: str(file.path)))


def expand_path(text: str) -> list[Path]:
    """Return the path if it exists, otherwise the matches of the glob.

    Raises
    ------
    DataError
        When nothing exists there.
    """
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
            f"Write the path from the current folder, {Path.cwd()}.",
        )
    matches = [Path(match) for match in glob.glob(os.path.expanduser(text), recursive=True)]
    if not matches:
        raise DataError(
            f"--data {text}, which matches nothing",
            "a glob that matches at least one file",
            f"Write the pattern from the current folder, {Path.cwd()}.",
        )
    return matches


def walk(root: Path, results: Path, left_out: tuple[str, ...] = ()) -> list[Path]:
    """Return the files in a folder and its subfolders that are not hidden or left out.

    Raises
    ------
    DataError
        When a folder cannot be read.
    """
    is_left_out = re.compile("|".join([r"\.", *map(fnmatch.translate, left_out)])).match
    files: list[Path] = []
    own = os.path.realpath(results)
    folders = [root]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                # An entry knows its kind, so the file system is asked once less for each file.
                for entry in entries:
                    if is_left_out(entry.name):
                        continue
                    if _is_file(Path(entry)) if entry.is_symlink() else entry.is_file():
                        files.append(Path(entry))
                    elif entry.is_dir(follow_symlinks=False) and os.path.realpath(entry) != own:
                        folders.append(Path(entry))
        except OSError as error:
            raise unreadable(Path(error.filename or root), error) from error
    return files


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a file or folder that cannot be read."""
    return DataError(
        f"{path}, which cannot be read ({error.strerror or error})",
        "files and folders that this user may read",
        f"Make it readable: chmod -R u+r {path}. Or name other files with --data.",
    )

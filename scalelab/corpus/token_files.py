"""Find token files among the paths of a source, and read them with the reader of their format.

A format is recognised by the content where it has a header, otherwise by the ending of the file.
A folder is a folder of tokens if it has the layout of a format that is a folder, or if most of its
bytes are in token files.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path

from scalelab.corpus.source import (
    AUTO,
    DEFAULT_COLUMN,
    TEXT_FORMATS,
    DataSource,
    expand_path,
    unreadable,
    walk,
)
from scalelab.corpus.token_formats import (
    LLMC_KINDS,
    MEGATRON_MAGIC,
    Reader,
    read_llmc,
    read_megatron,
    read_npy,
    read_raw,
)
from scalelab.corpus.token_huggingface import is_huggingface, read_huggingface
from scalelab.corpus.token_mds import is_mds, read_mds
from scalelab.corpus.token_source import TokenSource, joined
from scalelab.errors import DataError, UsageError

HUGGINGFACE, MDS = "huggingface", "mds"
READERS: dict[str, Reader] = {
    "raw": read_raw,
    "npy": read_npy,
    "llmc": read_llmc,
    "megatron": read_megatron,
}
SUFFIXES = (".bin", ".idx", ".npy")
ARROW = ".arrow"
OF_FOLDERS = (ARROW, ".mds")
"""Endings of files that are read with the folder they are in."""
_VALIDATION = re.compile(r"(?:^|[^a-z])(?:val|valid|validation)(?:[^a-z]|$)")


def find_tokens(source: DataSource, results: Path) -> TokenSource | None:
    """Return the training tokens of a source; None if it is text.

    Raises
    ------
    UsageError
        When text and token files are mixed.
    DataError
        When a file is missing or damaged.
    """
    return _open(source, source.paths, results, is_evaluation=False)


def find_eval_tokens(source: DataSource, results: Path) -> TokenSource | None:
    """Return the tokens of ``eval_paths``; None if there are none.

    Raises
    ------
    UsageError, DataError
        As `find_tokens`; also when they are text.
    """
    if not source.eval_paths:
        return None
    found = _open(source, source.eval_paths, results, is_evaluation=True)
    if found is None:
        raise UsageError(
            f"--eval-data {source.eval_paths[0]}, which is text",
            "token files; of text, documents are held out by their hash",
            "Remove --eval-data.",
        )
    return found


def _open(
    source: DataSource, paths: Sequence[str], results: Path, *, is_evaluation: bool
) -> TokenSource | None:
    if source.format in TEXT_FORMATS or not paths:
        return None
    tokens: dict[Path, str] = {}
    text: list[str] = []
    for given in paths:
        for path in expand_path(given):
            try:
                found = _formats(path, source.format, results)
            except OSError as error:
                raise unreadable(path, error) from error
            tokens.update(found)
            if not found:
                text.append(str(path))
    if not tokens:
        return None
    if text:
        raise UsageError(
            f"tokens in {next(iter(tokens))} and text in {text[0]}",
            "paths of text, or paths of tokens",
            "Name only one kind. If a .bin or .npy file is text, add --data-format text.",
        )
    if not is_evaluation:
        _refuse_validation(tokens, paths)
    try:
        return joined([_read(path, kind, source) for path, kind in sorted(tokens.items(), key=str)])
    except OSError as error:
        raise unreadable(Path(error.filename or next(iter(tokens))), error) from error


def _read(path: Path, kind: str, source: DataSource) -> TokenSource:
    column = None if source.column == DEFAULT_COLUMN else source.column
    if kind == HUGGINGFACE:
        return read_huggingface(path, column)
    if kind == MDS:
        return read_mds(path, column, source.dtype)
    return READERS[kind](path, source.dtype)


def _refuse_validation(tokens: dict[Path, str], paths: Sequence[str]) -> None:
    """Raise DataError when files for evaluation would be trained on because a folder has them."""
    named = {str(Path(path).expanduser()) for path in paths}
    found = sorted(path for path in tokens if str(path) not in named)
    held_out = [path for path in found if _VALIDATION.search(path.name.lower())]
    if held_out and len(held_out) < len(tokens):
        train = next(path for path in found if path not in held_out)
        raise DataError(
            f"{held_out[0]}, which is for evaluation by its name, among the training tokens",
            "training tokens, and evaluation tokens as --eval-data",
            f"Name them, for example --data {train} --eval-data {held_out[0]}.",
        )


def _formats(path: Path, wanted: str, results: Path) -> dict[Path, str]:
    """Return the token files at a path, each with its format; empty if it is text."""
    is_arrow = path.suffix.lower() == ARROW and path.is_file()
    if wanted in (AUTO, HUGGINGFACE) and (is_arrow or (path.is_dir() and is_huggingface(path))):
        return {path: HUGGINGFACE}
    if path.is_dir() and wanted in (AUTO, MDS) and is_mds(path):
        return {path: MDS}
    if wanted in (HUGGINGFACE, MDS):
        raise UsageError(
            f"--data {path} with --data-format {wanted}",
            "the folder that save_to_disk wrote, or an .arrow file"
            if wanted == HUGGINGFACE
            else "the folder of index.json and its shards",
            f"Name that folder, for example --data {path if path.is_dir() else path.parent}.",
        )
    if path.is_dir():
        files = walk(path, results)
        if wanted != AUTO:
            return dict.fromkeys(_without_sidecars(files), wanted)
        tokens = [file for file in files if file.suffix.lower() in (*SUFFIXES, *OF_FOLDERS)]
        if not tokens:
            return {}
        n_bytes = sum(file.stat().st_size for file in tokens)
        if 2 * n_bytes <= sum(file.stat().st_size for file in files):
            return {}
        inner = {file.parent for file in tokens if file.suffix.lower() in OF_FOLDERS}
        if inner:
            shown = sorted(os.path.relpath(folder, path) for folder in inner)
            raise DataError(
                f"{path}, which holds the datasets {', '.join(shown[:8])}",
                "one dataset of Hugging Face or MosaicML",
                f"Name it, for example --data {path / shown[0]}.",
            )
        return {file: _format(file) for file in _without_sidecars(tokens)}
    if wanted != AUTO:
        return {path: wanted}
    return {path: _format(path)} if path.suffix.lower() in SUFFIXES else {}


def _without_sidecars(files: Sequence[Path]) -> list[Path]:
    """Return the files without the index files beside them, and without descriptions."""
    names = set(files)
    return [
        file
        for file in files
        if file.suffix.lower() in SUFFIXES
        and not (file.suffix.lower() == ".idx" and file.with_suffix(".bin") in names)
    ]


def _format(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return "npy"
    if suffix == ".idx":
        return "megatron"
    index = path.with_suffix(".idx")
    if index.is_file() and _begins(index, MEGATRON_MAGIC):
        return "megatron"
    with path.open("rb") as file:
        head = file.read(8)
    is_llmc = len(head) == 8 and struct.unpack("<2i", head)[0] in LLMC_KINDS
    return "llmc" if is_llmc else "raw"


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic

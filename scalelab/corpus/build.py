"""Build a dataset: read, split and tokenize documents, then publish the folder with one rename.

Two processes may prepare the same text at once. Each works in its own folder; the first to finish
publishes its folder, the other deletes its equal copy. A killed process leaves a hidden folder,
which the next preparation of the same text continues, and any later one removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.rejects import Rejects
from scalelab.corpus.shards import (
    FINGERPRINT_LENGTH,
    FORMAT,
    MANIFEST_NAME,
    Manifest,
    check_hashes,
    read_manifest,
)
from scalelab.corpus.source import DataSource, SourceFile, find_files, unreadable
from scalelab.corpus.spool import Progress, Spool, spool_documents
from scalelab.corpus.text_dataset import write_text_dataset
from scalelab.corpus.token_dataset import write_token_dataset
from scalelab.corpus.token_files import find_eval_tokens, find_tokens
from scalelab.corpus.token_source import TokenSource
from scalelab.corpus.tokenizer import BpeTokenizer, SharedTokenizer
from scalelab.corpus.tokenizer_names import find_tokenizer, is_file_name
from scalelab.corpus.unfinished import TEXT, Unfinished, unfinished
from scalelab.errors import DataError, unwritable

LEFTOVER_AGE_S = 24 * 3600.0
UNSETTLED_S = 2.0
FIRST_FIELDS = ("paths", "tokenizer", "field", "column", "eval_tokens")
"""Fields of a source that its listing always has; later fields only with another value than the
default, so that prepared data is found again."""
COUNTED = ("n_duplicates", "n_empty", "n_skipped_files", "n_rejected", "n_markup_files")
"""Manifest fields that count input files; with `Manifest.source`, they depend on the input."""

_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.ENOENT),
)


def build_dataset(
    source: DataSource,
    results: Path,
    progress: Progress,
    *,
    checks_hashes: bool = False,
    shared: SharedTokenizer | None = None,
    keeps_documents: bool = False,
) -> tuple[Path, Manifest]:
    """Return the folder and the manifest of a source's dataset; build it if needed.

    Parameters and errors are those of `scalelab.corpus.dataset.prepare`. The manifest has the
    counts of this source, even if the folder was built from other files with the same content.
    """
    data = results / "data"
    started_s = time.time()
    tokens, evaluation, files = inputs_of(source, results)
    listing, newest_s = listing_of(source, files, shared)
    known = data / "sources" / f"{listing}.json"
    found = _known_dataset(source, files, known, checks_hashes=checks_hashes)
    if found is not None:
        return found
    # A file that changed within the last clock tick could change again with the same time.
    is_settled = newest_s < started_s - UNSETTLED_S
    with _room(data), unfinished(data, listing, saves=is_settled) as work:
        scratch = work.folder
        if tokens is None:
            rejects = data / "rejects" / f"{listing}.jsonl"
            spool = _collect(source, files, work, rejects, progress)
            made = BpeTokenizer(shared.file()) if shared is not None else None
            cache = data / "tokenizers"
            manifest = write_text_dataset(source, spool, work, cache, progress, made)
            manifest = replace(manifest, rejects=rejects.name if spool.n_listed else None)
            if keeps_documents and is_settled:
                keep_hashes(spool, documents_file(data, listing), scratch)
        else:
            whole = scratch / "whole"
            whole.mkdir()
            manifest = write_token_dataset(source, tokens, evaluation, whole, progress)
        folder = publish(scratch / "whole", manifest, data)
        if is_settled:
            known.parent.mkdir(exist_ok=True)
            note = scratch / "note.json"
            kept = {name: getattr(manifest, name) for name in ("fingerprint", *COUNTED, "rejects")}
            note.write_text(json.dumps(kept))
            note.replace(known)
    return folder, manifest


def _collect(
    source: DataSource,
    files: tuple[SourceFile, ...],
    work: Unfinished,
    rejects: Path,
    progress: Progress,
) -> Spool:
    """Return the documents of all files: those that a stopped preparation collected, or read."""
    spool = work.documents()
    if spool is not None:
        return spool
    with Rejects(rejects, work.folder / "rejects") as listed:
        spool = spool_documents(source, files, work.folder / TEXT, listed, progress)
    if work.is_due:
        work.save_documents(spool)
    return spool


def find_built(
    source: DataSource, results: Path, *, shared: SharedTokenizer | None = None
) -> tuple[Path, Manifest] | None:
    """Return the dataset that was built from these files, or None."""
    files = inputs_of(source, results)[-1]
    listing, _ = listing_of(source, files, shared)
    known = results / "data" / "sources" / f"{listing}.json"
    return _known_dataset(source, files, known, checks_hashes=False)


def inputs_of(
    source: DataSource, results: Path
) -> tuple[TokenSource | None, TokenSource | None, tuple[SourceFile, ...]]:
    """Return the training and evaluation tokens, None if they are text, and all files to read."""
    tokens = find_tokens(source, results)
    if tokens is None:
        source.require_text()
        return None, None, find_files(source, results)
    evaluation = find_eval_tokens(source, results)
    read = (*tokens.files, *(evaluation.files if evaluation else ()))
    files = tuple(SourceFile(path=path, kind="tokens", is_named=True) for path in read)
    return tokens, evaluation, files


def listing_of(
    source: DataSource,
    files: tuple[SourceFile, ...],
    shared: SharedTokenizer | None = None,
    also: str = "",
) -> tuple[str, float]:
    """Return a hash of the source and its files (path, size, times), and the newest time.

    ``also`` is hashed too.
    """
    content = {
        field.name: getattr(source, field.name)
        for field in fields(source)
        if field.name in FIRST_FIELDS
        or (field.name == "bpe_sample" and source.bpe_size is not None)
        or getattr(source, field.name) != field.default
    }
    if shared is not None:
        content["tokenizer_of"] = shared.key
    hashed = hashlib.sha256(json.dumps([FORMAT, content]).encode() + also.encode())
    newest_ns = 0
    if is_file_name(source.tokenizer):
        made_by = find_tokenizer(source.tokenizer)
        files = (*files, SourceFile(path=made_by, kind="tokenizer", is_named=True))
    for file in files:
        try:
            stat = file.path.stat()
        except OSError as error:
            raise unreadable(file.path, error) from error
        newest_ns = max(newest_ns, stat.st_mtime_ns, stat.st_ctime_ns)
        entry = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        hashed.update(json.dumps([os.path.abspath(file.path), file.is_named, *entry]).encode())
    return hashed.hexdigest()[:FINGERPRINT_LENGTH], newest_ns / 1e9


def _known_dataset(
    source: DataSource, files: tuple[SourceFile, ...], known: Path, *, checks_hashes: bool
) -> tuple[Path, Manifest] | None:
    """Return the dataset built earlier from this listing, or None if it is missing or damaged.

    Also None if it reads the same tokens in place from other files.
    """
    try:
        note = json.loads(known.read_text())
        folder = known.parents[1] / str(note["fingerprint"])
        manifest = read_manifest(folder)
        counted: dict[str, Any] = {name: int(note[name]) for name in COUNTED}
        counted["rejects"] = note["rejects"]
        if checks_hashes:
            check_hashes(folder, manifest)
        named = {os.path.abspath(file.path) for file in files}
        if any(os.path.isabs(file.path) and file.path not in named for file in manifest.files):
            return None
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None
    return folder, replace(manifest, source=source.describe(), **counted)


def documents_file(data: Path, listing: str) -> Path:
    """Return the file of the hashes of a source's documents, by the hash of its listing."""
    return data / "sources" / f"{listing}.documents.npy"


def keep_hashes(spool: Spool, file: Path, scratch: Path) -> NDArray[np.uint64]:
    """Write the hashes of all documents, in order, and return them, shape (n, 2)."""
    hashes = np.stack([spool.high, spool.low], axis=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    with (scratch / "documents.npy").open("wb") as out:
        np.save(out, hashes)
    (scratch / "documents.npy").replace(file)
    return hashes


@contextlib.contextmanager
def scratch_folder(data: Path) -> Iterator[Path]:
    """Yield an empty folder next to the datasets; it is removed when the block ends."""
    scratch = data / f".preparing-{secrets.token_hex(8)}"
    with _room(data):
        try:
            scratch.mkdir()
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _room(data: Path) -> Iterator[None]:
    """Make the folder of prepared data and remove what is old; say what a disk error means."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(data)
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise unwritable(data, "data", error) from error


def _remove_leftovers(data: Path) -> None:
    """Remove the scratch folders of old preparations that were killed."""
    for folder in data.glob(".preparing-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > LEFTOVER_AGE_S:
                shutil.rmtree(folder, ignore_errors=True)


def publish(whole: Path, manifest: Manifest, data: Path) -> Path:
    """Rename the finished folder to its fingerprint, unless an intact equal one exists."""
    with (whole / MANIFEST_NAME).open("w", encoding="utf-8") as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
    folder = data / manifest.fingerprint
    while True:
        try:
            whole.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return folder
        if not _is_intact(folder, manifest):
            # Damaged: move it away (open readers keep their files) and publish ours.
            aside = data / f".preparing-{secrets.token_hex(8)}"
            with contextlib.suppress(FileNotFoundError):
                folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            return folder


def _is_intact(folder: Path, manifest: Manifest) -> bool:
    """Return whether a folder of the same content is not damaged, and reads the same files."""
    try:
        found = read_manifest(folder)
        check_hashes(folder, found)
    except DataError:
        return False
    return found.files == manifest.files

"""Build a dataset: read, split and tokenize documents, then publish the folder with one rename.

Two processes may prepare the same text at once. Each works in its own folder; the first to finish
publishes its folder, the other deletes its equal copy. A killed process leaves a hidden folder,
which a later preparation removes.
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
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.shards import (
    FINGERPRINT_LENGTH,
    FORMAT,
    MANIFEST_NAME,
    Manifest,
    Shard,
    ShardWriter,
    check_hashes,
    fingerprints,
    read_manifest,
)
from scalelab.corpus.source import DataSource, SourceFile, find_files, unreadable
from scalelab.corpus.split import SHARES, is_enough, smallest_window, window
from scalelab.corpus.spool import Progress, Spool, spool_documents
from scalelab.corpus.token_dataset import write_token_dataset
from scalelab.corpus.token_files import find_eval_tokens, find_tokens
from scalelab.corpus.token_source import TokenSource
from scalelab.corpus.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer, cached_bpe
from scalelab.errors import DataError, unwritable
from scalelab.units import plural

TOKENIZER_TRAIN_BYTES = 64 << 20
LEFTOVER_AGE_S = 24 * 3600.0
UNSETTLED_S = 2.0
ENOUGH_DOCUMENTS = 16
FIRST_FIELDS = ("paths", "tokenizer", "field", "column", "eval_tokens")
"""Fields of a source that its listing always has; later fields only with another value than the
default, so that prepared data is found again."""
COUNTED = ("n_duplicates", "n_empty", "n_skipped_files")
"""Manifest fields that count input files; with `Manifest.source`, they depend on the input."""

_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.ENOENT),
)


def build_dataset(
    source: DataSource, results: Path, progress: Progress, *, checks_hashes: bool = False
) -> tuple[Path, Manifest]:
    """Return the folder and the manifest of a source's dataset; build it if needed.

    Parameters and errors are those of `scalelab.corpus.dataset.prepare`. The manifest has the
    counts of this source, even if the folder was built from other files with the same content.
    """
    data = results / "data"
    started_s = time.time()
    tokens, evaluation, files = _inputs(source, results)
    listing, newest_s = _listing(source, files)
    known = data / "sources" / f"{listing}.json"
    found = _known_dataset(source, known, data, checks_hashes=checks_hashes)
    if found is not None:
        return found
    with _scratch_folder(data) as scratch:
        whole = scratch / "whole"
        whole.mkdir()
        if tokens is None:
            spool = spool_documents(source, files, scratch / "text", progress)
            manifest = _write_dataset(source, spool, whole, data / "tokenizers", progress)
        else:
            manifest = write_token_dataset(source, tokens, evaluation, whole, progress)
        folder = _publish(whole, manifest, data)
        # A file that changed within the last clock tick could change again with the same time.
        if newest_s < started_s - UNSETTLED_S:
            known.parent.mkdir(exist_ok=True)
            note = scratch / "note.json"
            kept = {name: getattr(manifest, name) for name in ("fingerprint", *COUNTED)}
            note.write_text(json.dumps(kept))
            note.replace(known)
    return folder, manifest


def find_built(source: DataSource, results: Path) -> tuple[Path, Manifest] | None:
    """Return the dataset that was built from these files, or None."""
    listing, _ = _listing(source, _inputs(source, results)[-1])
    data = results / "data"
    return _known_dataset(source, data / "sources" / f"{listing}.json", data, checks_hashes=False)


def _inputs(
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


def _listing(source: DataSource, files: tuple[SourceFile, ...]) -> tuple[str, float]:
    """Return a hash of the source and its files (path, size, times), and the newest time."""
    content = {
        field.name: getattr(source, field.name)
        for field in fields(source)
        if field.name in FIRST_FIELDS or getattr(source, field.name) != field.default
    }
    hashed = hashlib.sha256(json.dumps([FORMAT, content]).encode())
    newest_ns = 0
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
    source: DataSource, known: Path, data: Path, *, checks_hashes: bool
) -> tuple[Path, Manifest] | None:
    """Return the dataset built earlier from this listing, or None if it is missing or damaged."""
    try:
        note = json.loads(known.read_text())
        folder = data / str(note["fingerprint"])
        manifest = read_manifest(folder)
        counted: dict[str, Any] = {name: int(note[name]) for name in COUNTED}
        if checks_hashes:
            check_hashes(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None
    return folder, replace(manifest, source=source.describe(), **counted)


@contextlib.contextmanager
def _scratch_folder(data: Path) -> Iterator[Path]:
    """Yield an empty folder next to the datasets; it is removed when the block ends."""
    scratch = data / f".preparing-{secrets.token_hex(8)}"
    try:
        data.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(data)
        scratch.mkdir()
        yield scratch
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise unwritable(data, "data", error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_leftovers(data: Path) -> None:
    """Remove the scratch folders of old preparations that were killed."""
    for folder in data.glob(".preparing-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > LEFTOVER_AGE_S:
                shutil.rmtree(folder, ignore_errors=True)


def _write_dataset(
    source: DataSource, spool: Spool, folder: Path, cache: Path, progress: Progress
) -> Manifest:
    """Write the shards and the tokenizer into the folder, and return its manifest."""
    tokenizer = _tokenizer(source, spool, cache, progress)
    share, held_out = _hold_out(source, spool, tokenizer)
    window_tokens = smallest_window([len(tokens) for tokens in held_out], source.eval_tokens)

    writer = ShardWriter(folder, "eval", tokenizer.dtype)
    windows = [
        window(tokens, window_tokens, int(low))
        for tokens, low in zip(held_out, spool.low, strict=False)
    ]
    eval_tokens: NDArray[Any] = np.concatenate(windows)[: source.eval_tokens]
    writer.append(eval_tokens)
    evaluation = writer.finish()
    train = _write_train(spool, len(held_out), tokenizer, folder, progress)
    n_train_tokens = sum(shard.n_tokens for shard in train)
    if n_train_tokens < source.eval_tokens:
        raise _too_small(source, spool, f"only {n_train_tokens} tokens would be left for training")

    tokenizer_sha256 = None
    if tokenizer.file is not None:
        content = tokenizer.file.read_bytes()
        tokenizer_sha256 = hashlib.sha256(content).hexdigest()
        (folder / "tokenizer.json").write_bytes(content)
    fingerprint, eval_fingerprint = fingerprints(
        source.tokenizer, tokenizer_sha256, train, evaluation
    )
    return Manifest(
        fingerprint=fingerprint,
        eval_fingerprint=eval_fingerprint,
        tokenizer=source.tokenizer,
        tokenizer_sha256=tokenizer_sha256,
        vocab_size=tokenizer.vocab_size,
        dtype=tokenizer.dtype.name,
        n_documents=len(spool),
        n_train_documents=len(spool) - len(held_out),
        n_held_out_documents=len(held_out),
        n_duplicates=spool.n_duplicates,
        n_empty=spool.n_empty,
        n_skipped_files=spool.n_skipped_files,
        held_out_share=share,
        eval_window_tokens=window_tokens,
        bytes_per_token=float(tokenizer.token_bytes()[eval_tokens].mean()),
        source=source.describe(),
        train=train,
        evaluation=evaluation,
    )


def _tokenizer(source: DataSource, spool: Spool, cache: Path, progress: Progress) -> Tokenizer:
    if source.bpe_size is None:
        return ByteTokenizer()
    # Train only on the half that no share holds out, so that the vocabulary never sees the
    # evaluation set. In hash order, that half is a random sample of the documents.
    first = int(np.searchsorted(spool.high, np.uint64(1 << 63)))
    sizes = np.cumsum(spool.lengths[first:])
    end = first + max(1, int(np.searchsorted(sizes, TOKENIZER_TRAIN_BYTES, side="right")))
    end = min(end, len(spool))
    if first == end:
        raise _too_small(source, spool, "no document would be left to train the tokenizer on")
    n_bytes = int(spool.lengths[first:end].sum())
    halves = np.stack([spool.high[first:end], spool.low[first:end]])
    progress("training the tokenizer", 0, n_bytes)
    file = cached_bpe(
        spool.documents(first, end),
        hashlib.sha256(halves.astype(">u8").tobytes()).hexdigest(),
        source.bpe_size,
        cache,
    )
    progress("training the tokenizer", n_bytes, n_bytes)
    return BpeTokenizer(file)


def _hold_out(
    source: DataSource, spool: Spool, tokenizer: Tokenizer
) -> tuple[float, list[NDArray[Any]]]:
    """Return the held-out share and the tokens of each held-out document, in hash order."""
    held_out: list[NDArray[Any]] = []
    for share in SHARES:
        end = int(np.searchsorted(spool.high, np.uint64(int(share * 2**64))))
        held_out.extend(tokenizer.encode(spool.documents(len(held_out), end)))
        if is_enough([len(tokens) for tokens in held_out], share, source.eval_tokens):
            return share, held_out
    found = sum(len(tokens) for tokens in held_out)
    raise _too_small(source, spool, f"half of them hold {found} tokens")


def _write_train(
    spool: Spool, first: int, tokenizer: Tokenizer, folder: Path, progress: Progress
) -> tuple[Shard, ...]:
    writer = ShardWriter(folder, "train", tokenizer.dtype)
    done, reported = 0, 0
    tokens_of: Iterable[NDArray[Any]] = tokenizer.encode(spool.documents(first, len(spool)))
    for tokens, length in zip(tokens_of, spool.lengths[first:], strict=True):
        writer.append(tokens)
        done += int(length)
        if done - reported >= 1 << 20:
            progress("tokenizing", done, spool.n_bytes)
            reported = done
    progress("tokenizing", spool.n_bytes, spool.n_bytes)
    return writer.finish()


def _publish(whole: Path, manifest: Manifest, data: Path) -> Path:
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


def _too_small(source: DataSource, spool: Spool, problem: str) -> DataError:
    # A sixteenth of the tokens if a token has four bytes.
    fewer = max(1, spool.n_bytes // 64)
    do = "Give more text, in more documents (one per file, or per row of JSONL or Parquet)"
    if len(spool) >= ENOUGH_DOCUMENTS:
        do += f", or use a smaller evaluation set, for example --eval-tokens {fewer}"
    return DataError(
        f"{plural(len(spool), 'distinct document')} with {spool.n_bytes} bytes for an evaluation "
        f"set of {source.eval_tokens} tokens: {problem}",
        "enough documents to hold some out and to train on the others",
        f"{do}.",
    )

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
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.held_out import (
    DOCUMENTS,
    STRETCH,
    Split,
    TooFewError,
    make_tokenizer,
    split_documents,
    split_stretch,
)
from scalelab.corpus.pieces import encode_pieces
from scalelab.corpus.rejects import Rejects
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
from scalelab.corpus.spool import Progress, Spool, spool_documents
from scalelab.corpus.text_identity import text_fingerprint
from scalelab.corpus.token_dataset import write_token_dataset
from scalelab.corpus.token_files import find_eval_tokens, find_tokens
from scalelab.corpus.token_source import TokenSource
from scalelab.corpus.tokenizer import BpeTokenizer, SharedTokenizer, Tokenizer
from scalelab.corpus.tokenizer_files import FileTokenizer
from scalelab.corpus.tokenizer_names import find_tokenizer, is_file_name, short_name
from scalelab.errors import DataError, unwritable
from scalelab.units import plural

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
    with scratch_folder(data) as scratch:
        if tokens is None:
            with Rejects(data / "rejects" / f"{listing}.jsonl", scratch / "rejects") as rejects:
                spool = spool_documents(source, files, scratch / "text", rejects, progress)
            made = BpeTokenizer(shared.file()) if shared is not None else None
            cache = data / "tokenizers"
            manifest = _write_dataset(source, spool, scratch, cache, progress, made)
            manifest = replace(manifest, rejects=rejects.path.name if rejects.n_listed else None)
            if keeps_documents and newest_s < started_s - UNSETTLED_S:
                keep_hashes(spool, documents_file(data, listing), scratch)
        else:
            whole = scratch / "whole"
            whole.mkdir()
            manifest = write_token_dataset(source, tokens, evaluation, whole, progress)
        folder = publish(scratch / "whole", manifest, data)
        # A file that changed within the last clock tick could change again with the same time.
        if newest_s < started_s - UNSETTLED_S:
            known.parent.mkdir(exist_ok=True)
            note = scratch / "note.json"
            kept = {name: getattr(manifest, name) for name in ("fingerprint", *COUNTED, "rejects")}
            note.write_text(json.dumps(kept))
            note.replace(known)
    return folder, manifest


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
    source: DataSource,
    spool: Spool,
    scratch: Path,
    cache: Path,
    progress: Progress,
    made: Tokenizer | None,
) -> Manifest:
    """Write the shards of a corpus to ``scratch / "whole"``, split in the first way that works.

    ``made`` is the tokenizer if it was trained on other text as well.
    """
    folder = scratch / "whole"
    ways = ((DOCUMENTS, split_documents), (STRETCH, split_stretch))
    problem = ""
    for kind, split in ways if len(spool) > 1 else ways[1:]:
        folder.mkdir()
        try:
            tokenizer = made or make_tokenizer(source, spool, kind, cache, progress)
            parts = split(source, spool, tokenizer, scratch)
            train = _write_train(spool, parts, tokenizer, folder, progress)
            n_train_tokens = sum(shard.n_tokens for shard in train)
            if n_train_tokens >= source.eval_tokens:
                return write_rest(source, spool, parts, tokenizer, train, folder)
            problem = f"only {plural(n_train_tokens, 'token')} would be left for training"
        except TooFewError as error:
            problem = str(error)
        shutil.rmtree(folder)
    raise _too_small(source, spool, problem)


def write_rest(
    source: DataSource,
    spool: Spool,
    parts: Split,
    tokenizer: Tokenizer,
    train: tuple[Shard, ...],
    folder: Path,
) -> Manifest:
    """Write the evaluation tokens and the tokenizer of a corpus, and return its manifest."""
    writer = ShardWriter(folder, "eval", tokenizer.dtype)
    writer.append(parts.eval_tokens)
    evaluation = writer.finish()
    tokenizer_sha256 = None
    if tokenizer.file is not None:
        content = tokenizer.file.read_bytes()
        tokenizer_sha256 = hashlib.sha256(content).hexdigest()
        (folder / f"tokenizer{tokenizer.file.suffix.lower()}").write_bytes(content)
    fingerprint, eval_fingerprint = fingerprints(
        short_name(source.tokenizer), tokenizer_sha256, train, evaluation
    )
    return Manifest(
        fingerprint=fingerprint,
        eval_fingerprint=eval_fingerprint,
        tokenizer=short_name(source.tokenizer),
        tokenizer_sha256=tokenizer_sha256,
        vocab_size=tokenizer.vocab_size,
        dtype=tokenizer.dtype.name,
        n_documents=len(spool),
        n_train_documents=len(parts.train),
        n_held_out_documents=parts.n_held_out,
        n_duplicates=spool.n_duplicates,
        n_empty=spool.n_empty,
        n_skipped_files=spool.n_skipped_files,
        n_rejected=spool.n_rejected,
        n_markup_files=spool.n_markup_files,
        split=parts.kind,
        held_out_share=parts.share,
        eval_window_tokens=parts.window_tokens,
        bytes_per_token=_bytes_per_token(tokenizer, parts),
        end_token=tokenizer.end_token,
        tokenizer_pattern=source.tokenizer_pattern,
        special_tokens=source.special_tokens,
        text_fingerprint=text_fingerprint(spool),
        source=source.describe(),
        train=train,
        evaluation=evaluation,
    )


def _bytes_per_token(tokenizer: Tokenizer, parts: Split) -> float:
    """Return the mean bytes of text per evaluation token; an end of a document counts as one.

    A tokenizer from a file may change the text before it cuts it, so that the bytes of its tokens
    are not those of the text; then they are scaled to the held-out text.
    """
    lengths = tokenizer.token_bytes()
    found = float(lengths[parts.eval_tokens].mean())
    if isinstance(tokenizer, FileTokenizer):
        n_bytes = sum(int(lengths[tokens].sum()) for tokens in parts.held_out)
        found *= (parts.n_held_out_bytes + parts.n_held_out) / n_bytes
    return found


def _write_train(
    spool: Spool, parts: Split, tokenizer: Tokenizer, folder: Path, progress: Progress
) -> tuple[Shard, ...]:
    writer = ShardWriter(folder, "train", tokenizer.dtype)
    sizes = parts.train[:, 1] - parts.train[:, 0]
    total = int(sizes.sum())
    done = reported = n_documents = 0
    for tokens, is_last in encode_pieces(tokenizer, spool.text, parts.train):
        writer.append(tokens)
        if is_last:
            done += int(sizes[n_documents])
            n_documents += 1
        if done - reported >= 1 << 20:
            progress("tokenizing", done, total)
            reported = done
    progress("tokenizing", total, total)
    return writer.finish()


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


def _too_small(source: DataSource, spool: Spool, problem: str) -> DataError:
    # A sixteenth of the tokens if a token has four bytes.
    fewer = max(1, spool.n_bytes // 64)
    return DataError(
        f"{plural(len(spool), 'distinct document')} with {spool.n_bytes:,} bytes for an evaluation "
        f"set of {source.eval_tokens:,} tokens: {problem}",
        "at least as many tokens for training as for the evaluation",
        f"Give more text, or use a smaller evaluation set, for example --eval-tokens {fewer}.",
    )

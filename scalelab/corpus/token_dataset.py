"""A dataset from token files: what is held out, the checks of the tokens, and the manifest.

Training tokens stay in the files of the user; only the evaluation tokens are copied. The held-out
windows are spread evenly over the tokens and begin at the start of a document where documents end
with a known token. They depend only on the tokens and on the size of the evaluation set.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.shards import EVAL_DTYPE, FINGERPRINT_LENGTH, Manifest, Shard, ShardWriter
from scalelab.corpus.source import DataSource
from scalelab.corpus.split import WINDOW_TOKENS
from scalelab.corpus.spool import Progress
from scalelab.corpus.token_files import find_eval_tokens, find_tokens
from scalelab.corpus.token_identity import identify, sampled_digest
from scalelab.corpus.token_source import TokenSource
from scalelab.corpus.token_split import held_out, read_stream, require_enough, without
from scalelab.corpus.token_stream import TokenStream, outside_vocabulary
from scalelab.corpus.tokenizer_files import FileTokenizer, source_tokenizer
from scalelab.corpus.tokenizer_names import short_name
from scalelab.errors import UsageError

FINGERPRINTED = 1
"""Version of what the fingerprint of token files covers."""
SCANNED_BYTES = 8 << 30
"""Larger token files are checked by samples, unless the whole fingerprint is asked for."""
SCAN_SAMPLES = 4096
CHUNK_TOKENS = 1 << 22
CONVERTED = "tokens"
"""Prefix of the files of converted tokens."""
UNNAMED = "tokens"
"""Name of an unknown tokenizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """What reading the tokens found: the largest, whether all were read, and their hash."""

    largest: int
    is_whole: bool
    digest: str


def write_token_dataset(
    source: DataSource,
    tokens: TokenSource,
    evaluation: TokenSource | None,
    folder: Path,
    progress: Progress,
) -> Manifest:
    """Write the evaluation tokens into the folder, and return the manifest.

    Raises
    ------
    UsageError
        When the vocabulary must be given.
    DataError
        When a token is outside the vocabulary, or there are too few tokens.
    """
    shards = _shards(tokens, folder, progress)
    stream = TokenStream(folder, shards, tokens.dtype)
    tokenizer = token_tokenizer(source)
    end_token = _end_token(source, tokens, tokenizer)
    source = replace(source, vocab_size=_declared_vocab(source, tokenizer))
    scan = scan_tokens(source, shards, folder, tokens.dtype, progress)
    given = None if evaluation is None else _eval_tokens(source, evaluation)
    vocab_size = source.vocab_size
    if vocab_size is None:
        vocab_size = max(scan.largest, 0 if given is None else int(given.max())) + 1
    if end_token is not None and end_token >= vocab_size:
        raise UsageError(
            f"--end-token {end_token} with a vocabulary of {vocab_size} tokens",
            f"a token from 0 to {vocab_size - 1}",
            f"Give the vocabulary, for example --vocab-size {end_token + 1}.",
        )
    if given is None:
        parts = held_out(stream, source.eval_tokens, end_token)
        train = without(shards, parts, np.dtype(tokens.dtype).itemsize)
        windows = [read_stream(stream, part.start, part.stop) for part in parts]
    else:
        train, parts = shards, []
        windows = [given]
    eval_tokens = np.concatenate(windows)
    _require_vocabulary(eval_tokens, vocab_size, source.describe())
    writer = ShardWriter(folder, "eval", np.dtype(EVAL_DTYPE))
    writer.append(eval_tokens)
    held = writer.finish()
    n_held_out = sum(part.end - part.start for part in parts)
    name, sha256 = UNNAMED, None
    if tokenizer is not None and tokenizer.file is not None:
        content = tokenizer.file.read_bytes()
        name, sha256 = short_name(source.tokenizer), hashlib.sha256(content).hexdigest()
        (folder / f"tokenizer{tokenizer.file.suffix.lower()}").write_bytes(content)
    kind = [name, sha256, FINGERPRINTED, vocab_size, end_token]
    eval_digest = _digest(eval_tokens)
    return Manifest(
        fingerprint=_short([*kind, scan.digest, eval_digest]),
        eval_fingerprint=_short([*kind, eval_digest]),
        tokenizer=name,
        tokenizer_sha256=sha256,
        vocab_size=vocab_size,
        dtype=tokens.dtype,
        n_documents=None,
        n_train_documents=None,
        n_held_out_documents=None,
        n_duplicates=0,
        n_skipped_files=0,
        held_out_share=n_held_out / len(stream),
        eval_window_tokens=max(len(window) for window in windows),
        bytes_per_token=_bytes_per_token(tokenizer, eval_tokens, vocab_size),
        source=f"{source.describe()} ({tokens.format})",
        train=train,
        evaluation=held,
        files=tuple(identify(folder, name) for name in dict.fromkeys(s.name for s in shards)),
        end_token=end_token,
        is_scanned=scan.is_whole,
        tokenizer_pattern=source.tokenizer_pattern,
        special_tokens=source.special_tokens,
    )


def write_eval_tokens(
    source: DataSource, tokens: TokenSource, training: Manifest, folder: Path
) -> Manifest:
    """Write the first ``eval_tokens`` of files as an evaluation set; return its manifest.

    Parameters
    ----------
    source : DataSource
        Describes the files.
    tokens : TokenSource
        Their tokens.
    training : Manifest
        Of the training tokens, whose vocabulary and tokenizer the set has.
    folder : Path
        Folder to write to.

    Raises
    ------
    DataError
        When a token is outside the vocabulary.
    """
    source = replace(source, vocab_size=training.vocab_size, eval_paths=source.paths)
    found = _eval_tokens(source, tokens)
    writer = ShardWriter(folder, "eval", np.dtype(EVAL_DTYPE))
    writer.append(found)
    held = writer.finish()
    kind = [training.tokenizer, training.tokenizer_sha256, FINGERPRINTED]
    kind += [training.vocab_size, training.end_token]
    fingerprint = _short([*kind, "evaluation set", _digest(found)])
    return replace(
        training,
        fingerprint=fingerprint,
        eval_fingerprint=fingerprint,
        dtype=EVAL_DTYPE,
        held_out_share=1.0,
        eval_window_tokens=len(found),
        bytes_per_token=_bytes_per_token(token_tokenizer(source), found, training.vocab_size),
        source=f"{source.describe()} ({tokens.format})",
        train=(),
        evaluation=held,
        files=(),
        is_scanned=True,
    )


def _digest(tokens: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens, "<u4").data).hexdigest()


def _bytes_per_token(
    tokenizer: FileTokenizer | None, tokens: NDArray[Any], vocab_size: int
) -> float | None:
    """Return the mean bytes of text of these tokens; None if their tokenizer is unknown."""
    if tokenizer is None or tokenizer.file is None:
        return None
    lengths = np.ones(vocab_size, dtype=np.int64)
    known = tokenizer.token_bytes()
    lengths[: len(known)] = known[:vocab_size]
    return float(lengths[tokens].mean())


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """Facts of token files that planning needs, without preparing them."""

    tokenizer: str
    vocab_size: int
    n_train_tokens: int
    n_eval_tokens: int
    end_token: int | None


def describe_tokens(source: DataSource, results: Path) -> Described | None:
    """Return the facts of a source's token files; None if it is text. Writes nothing.

    Raises
    ------
    UsageError, DataError
        As `write_token_dataset`.
    """
    tokens = find_tokens(source, results)
    if tokens is None:
        return None
    evaluation = find_eval_tokens(source, results)
    n_eval = source.eval_tokens
    if evaluation is not None:
        n_eval = min(n_eval, evaluation.n_tokens)
    elif tokens.arrays is None:
        require_enough(tokens.n_tokens, n_eval)
    tokenizer = token_tokenizer(source)
    vocab_size = _declared_vocab(source, tokenizer)
    if vocab_size is None:
        shards = _shards(tokens, results, _ignore)
        vocab_size = scan_tokens(source, shards, results, tokens.dtype, _ignore).largest + 1
    return Described(
        tokenizer=UNNAMED if tokenizer is None else short_name(source.tokenizer),
        vocab_size=vocab_size,
        n_train_tokens=max(1, tokens.n_tokens - (0 if evaluation else n_eval)),
        n_eval_tokens=n_eval,
        end_token=_end_token(source, tokens, tokenizer),
    )


def token_tokenizer(source: DataSource) -> FileTokenizer | None:
    """Return the tokenizer that made token files, None if it is unknown.

    Raises
    ------
    UsageError
        When a tokenizer would be trained.
    """
    if source.bpe_size is not None:
        raise UsageError(
            f"--tokenizer {source.tokenizer} for token files",
            "the tokenizer that made them, such as tokenizer.json, for the bytes of their tokens",
            "Remove --tokenizer, or name its file.",
        )
    return source_tokenizer(source)


def _declared_vocab(source: DataSource, tokenizer: FileTokenizer | None) -> int | None:
    if source.vocab_size is not None:
        return source.vocab_size
    return None if tokenizer is None else tokenizer.vocab_size


def _end_token(
    source: DataSource, tokens: TokenSource, tokenizer: FileTokenizer | None
) -> int | None:
    if source.end_token is not None:
        return source.end_token
    if tokens.end_token is not None or tokenizer is None:
        return tokens.end_token
    return tokenizer.end_token


def _ignore(stage: str, done: int, total: int) -> None:
    """Ignore the progress."""


def _shards(tokens: TokenSource, folder: Path, progress: Progress) -> tuple[Shard, ...]:
    """Return the shards of a source; tokens without a layout to map are written to the folder."""
    if tokens.arrays is not None:
        writer = ShardWriter(folder, CONVERTED, np.dtype(tokens.dtype))
        n_done = 0
        for part in tokens.read():
            writer.append(part)
            n_done += len(part)
            progress("converting the tokens", n_done, n_done)
        return tuple(replace(shard, sha256="") for shard in writer.finish())
    return tuple(
        Shard(
            name=os.path.abspath(stretch.path),
            n_tokens=stretch.n_tokens,
            sha256="",
            offset=stretch.offset,
        )
        for stretch in tokens.stretches
    )


def scan_tokens(
    source: DataSource, shards: tuple[Shard, ...], folder: Path, dtype: str, progress: Progress
) -> Scan:
    """Read the tokens and compare them with the vocabulary; large files by samples.

    Raises
    ------
    UsageError
        When large files need the size of the vocabulary.
    DataError
        When a token is outside the vocabulary, with its position.
    """
    n_tokens = sum(shard.n_tokens for shard in shards)
    is_hashed = source.fingerprint == "whole"
    is_whole = is_hashed or n_tokens * np.dtype(dtype).itemsize <= SCANNED_BYTES
    stream = TokenStream(folder, shards, dtype, is_random=not is_whole)
    if not is_whole and source.vocab_size is None:
        raise UsageError(
            f"{len(stream):,} tokens without the size of their vocabulary",
            "the size of the vocabulary, or files of at most 8 GiB, which are read to find it",
            "Give it, for example --vocab-size 50257. Or read all: --fingerprint whole.",
        )
    hashed = hashlib.sha256(f"{len(stream)} whole ".encode())
    largest = 0
    for start, chunk in _chunks(stream, is_whole=is_whole):
        largest = max(largest, int(chunk.max()))
        low = int(chunk.min())
        if low < 0 or (source.vocab_size is not None and largest >= source.vocab_size):
            limit = largest + 1 if source.vocab_size is None else source.vocab_size
            is_outside = (chunk < 0) | (chunk >= limit)
            found = int(is_outside.argmax())
            raise outside_vocabulary(shards, start + found, int(chunk[found]), limit)
        if is_hashed:
            hashed.update(np.ascontiguousarray(chunk, "<u4").data)
        progress("checking the tokens", start + len(chunk), len(stream))
    digest = hashed.hexdigest() if is_hashed else sampled_digest(stream.read_rows, len(stream))
    return Scan(largest=largest, is_whole=is_whole, digest=digest)


def _chunks(stream: TokenStream, *, is_whole: bool) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield all tokens in chunks with their places, or samples spread evenly."""
    if is_whole:
        yield from stream.chunks(CHUNK_TOKENS)
        return
    length = min(WINDOW_TOKENS, len(stream))
    for index in range(SCAN_SAMPLES):
        start = index * (len(stream) - length) // (SCAN_SAMPLES - 1)
        yield start, read_stream(stream, start, start + length)


def _eval_tokens(source: DataSource, tokens: TokenSource) -> NDArray[np.int64]:
    """Return the first ``eval_tokens`` of the evaluation files, or all if there are fewer."""
    parts: list[NDArray[Any]] = []
    n_tokens = 0
    for part in tokens.read():
        parts.append(part[: source.eval_tokens - n_tokens])
        n_tokens += len(parts[-1])
        if n_tokens == source.eval_tokens:
            break
    found = np.concatenate(parts).astype(np.int64)
    limit = source.vocab_size or np.iinfo(np.int64).max
    _require_vocabulary(found, limit, ", ".join(source.eval_paths))
    return found


def _require_vocabulary(tokens: NDArray[Any], vocab_size: int, name: str) -> None:
    is_outside = (tokens < 0) | (tokens >= vocab_size)
    if is_outside.any():
        place = int(is_outside.argmax())
        shards = (Shard(name=f"the evaluation set of {name}", n_tokens=len(tokens), sha256=""),)
        raise outside_vocabulary(shards, place, int(tokens[place]), vocab_size)


def _short(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:FINGERPRINT_LENGTH]

"""Token shards on disk: the manifest, and writing and checking shards.

A dataset's folder holds ``train-00000.bin``, .. and ``eval-00000.bin``, which contain only tokens:
little endian, one, two or four bytes each. ``manifest.json`` describes them. The folder appears
complete with one rename and never changes afterwards. Tokens that another program wrote stay in its
files, and the manifest says where.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.token_identity import TokenFile
from scalelab.errors import DataError

FORMAT = 1
SHARD_BYTES = 1 << 30
EVAL_DTYPE = "uint32"
"""Type in which the evaluation tokens of token files are copied."""
MANIFEST_NAME = "manifest.json"
FINGERPRINT_LENGTH = 16

_HASH_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Consecutive tokens in a file.

    Attributes
    ----------
    name : str
        Name of the file in the folder, or the path of a token file of the user.
    n_tokens : int
        Number of tokens.
    sha256 : str
        Hash of the file's bytes; empty for a file in `Manifest.files`.
    offset : int
        Bytes before the first token.
    """

    name: str
    n_tokens: int
    sha256: str
    offset: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Content of a dataset's folder.

    Attributes
    ----------
    fingerprint : str
        Hash of the tokenizer and of all tokens in order. Equal text and tokenizer give the same
        fingerprint on every machine and for any file layout. Also the folder's name.
    eval_fingerprint : str
        The same for the evaluation tokens only.
    tokenizer : str
        Name of the tokenizer.
    tokenizer_sha256 : str or None
        Hash of ``tokenizer.json`` next to the shards; None for bytes.
    vocab_size : int
        Vocabulary size without padding.
    dtype : str
        ``uint8``, ``uint16`` or ``uint32``; token files of others can have signed types.
    n_documents, n_train_documents, n_held_out_documents : int or None
        Distinct documents in total, for training and for evaluation; None if the documents of
        token files were not counted.
    n_duplicates : int
        Documents with the same text as another; not used. On disk the counts, ``rejects``
        and ``source`` describe the files that the folder was first built from.
    n_empty : int
        Documents without text; not used.
    n_skipped_files : int
        Files in folders that were skipped because they are not UTF-8 text.
    n_rejected : int
        Rows and named files that cannot be used, such as null or text that is not UTF-8.
    rejects : str or None
        File in ``data/rejects`` that lists them and the skipped files, one JSON object per line.
    n_markup_files : int
        Files of HTML, XML, JSON or CSV that were read as text, markup included.
    split : str
        ``documents``: whole documents are held out. ``stretch``: the end of each document is.
    held_out_share : float
        Share of all possible document hashes that is held out; of the bytes for ``stretch``, of the
        tokens for token files.
    eval_window_tokens : int
        Largest number of tokens that one held-out document adds to the evaluation set.
    bytes_per_token : float or None
        Mean bytes of UTF-8 text per token of the evaluation set (a document's end counts as one
        byte), so that bits per byte = nats per token / ln 2 / bytes_per_token. None for token
        files without their tokenizer.
    source : str
        Description of the text source; not part of the fingerprint.
    train, evaluation : tuple of Shard
        Where the tokens are.
    files : tuple of TokenFile
        Token files of the user from which the training tokens are read in place.
    end_token : int or None
        Token that ends a document; None if token files have none.
    is_scanned : bool
        Whether every token was compared with the vocabulary; if not, each batch is.
    tokenizer_pattern : str or None
        Pattern of a rank file, `scalelab.corpus.source.DataSource.tokenizer_pattern`.
    special_tokens : bool
        Whether special tokens that the text spells became special tokens.
    text_fingerprint : str or None
        Hash of the distinct documents, the same for every tokenizer, order and file layout; see
        `scalelab.corpus.text_identity`. None for token files.
    format : int
        Version of this layout.
    """

    fingerprint: str
    eval_fingerprint: str
    tokenizer: str
    tokenizer_sha256: str | None
    vocab_size: int
    dtype: str
    n_documents: int | None
    n_train_documents: int | None
    n_held_out_documents: int | None
    n_duplicates: int
    n_skipped_files: int
    held_out_share: float
    eval_window_tokens: int
    bytes_per_token: float | None
    source: str
    train: tuple[Shard, ...]
    evaluation: tuple[Shard, ...]
    n_empty: int = 0
    files: tuple[TokenFile, ...] = ()
    end_token: int | None = 0
    is_scanned: bool = True
    n_rejected: int = 0
    rejects: str | None = None
    n_markup_files: int = 0
    split: str = "documents"
    tokenizer_pattern: str | None = None
    special_tokens: bool = False
    text_fingerprint: str | None = None
    format: int = FORMAT

    @property
    def eval_dtype(self) -> str:
        """Type of an evaluation token on disk; the same for token files of any type."""
        return EVAL_DTYPE if self.files else self.dtype

    def to_json(self) -> str:
        """Return the content of ``manifest.json``."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


NAMES = {field.name for field in fields(Manifest)}
OPTIONAL = {
    *("n_empty", "files", "end_token", "is_scanned"),
    *("n_rejected", "rejects", "n_markup_files", "split"),
    *("tokenizer_pattern", "special_tokens", "text_fingerprint"),
}
"""Fields that older manifests do not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A place in a stream of tokens at which its writing can go on.

    Attributes
    ----------
    shards : tuple of Shard
        The closed shards.
    n_tokens : int
        Tokens of the next shard that are written.
    """

    shards: tuple[Shard, ...]
    n_tokens: int


class ShardWriter:
    """Writes a stream of tokens into numbered shards of limited size.

    Parameters
    ----------
    folder : Path
        Folder to write to.
    prefix : str
        ``train`` or ``eval``.
    dtype : dtype
        Type of a token on disk.
    shard_bytes : int
        Size at which a shard is closed, bytes.
    after : Mark, optional
        Where to go on in the files of an earlier writer; what it wrote later is cut off.

    Raises
    ------
    OSError
        If the files do not reach the mark.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str,
        dtype: np.dtype[Any],
        *,
        shard_bytes: int = SHARD_BYTES,
        after: Mark | None = None,
    ) -> None:
        self._folder = folder
        self._prefix = prefix
        self._dtype = dtype.newbyteorder("<")
        self._shard_tokens = max(1, shard_bytes // dtype.itemsize)
        self._shards: list[Shard] = []
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._n_tokens = 0
        if after is not None:
            self._go_on(after)

    def _go_on(self, after: Mark) -> None:
        itemsize = self._dtype.itemsize
        for shard in after.shards:
            if (self._folder / shard.name).stat().st_size != shard.n_tokens * itemsize:
                raise OSError(f"{shard.name} is not as it was")
        self._shards.extend(after.shards)
        if not after.n_tokens:
            return
        n_bytes = after.n_tokens * itemsize
        path = self._folder / self._next_name()
        if path.stat().st_size < n_bytes:
            raise OSError(f"{path.name} is cut")
        self._file = path.open("r+b", buffering=_HASH_BLOCK)
        self._file.truncate(n_bytes)
        while block := self._file.read(_HASH_BLOCK):
            self._hash.update(block)
        self._n_tokens = after.n_tokens

    def mark(self) -> Mark:
        """Return the current place, after all tokens until here are on disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        return Mark(shards=tuple(self._shards), n_tokens=self._n_tokens)

    def _next_name(self) -> str:
        return f"{self._prefix}-{len(self._shards):05d}.bin"

    def append(self, tokens: NDArray[Any]) -> None:
        """Append tokens, shape (n,), to the stream."""
        while len(tokens):
            if self._file is None:
                path = self._folder / self._next_name()
                self._file = path.open("wb", buffering=_HASH_BLOCK)
            part = tokens[: self._shard_tokens - self._n_tokens]
            content = np.ascontiguousarray(part, dtype=self._dtype).data
            self._file.write(content)
            self._hash.update(content)
            self._n_tokens += len(part)
            tokens = tokens[len(part) :]
            if self._n_tokens == self._shard_tokens:
                self._close_shard()

    def finish(self) -> tuple[Shard, ...]:
        """Close and sync the last shard and return all of them."""
        self._close_shard()
        return tuple(self._shards)

    def _close_shard(self) -> None:
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._shards.append(
            Shard(
                name=Path(self._file.name).name,
                n_tokens=self._n_tokens,
                sha256=self._hash.hexdigest(),
            )
        )
        self._file = None
        self._hash = hashlib.sha256()
        self._n_tokens = 0


def fingerprints(
    tokenizer: str,
    tokenizer_sha256: str | None,
    train: tuple[Shard, ...],
    evaluation: tuple[Shard, ...],
) -> tuple[str, str]:
    """Return the fingerprints of the whole dataset and of its evaluation set."""
    kind = [FORMAT, tokenizer, tokenizer_sha256]
    held_out = [shard.sha256 for shard in evaluation]
    seen = [shard.sha256 for shard in train]
    return _short_hash([*kind, seen, held_out]), _short_hash([*kind, held_out])


def _short_hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:FINGERPRINT_LENGTH]


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a dataset's folder after checking the sizes of its shards.

    Raises
    ------
    DataError
        When the folder or a shard is missing, incomplete, or of another format.
    """
    try:
        content = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        if content.get("format") != FORMAT or set(content) | OPTIONAL != NAMES:
            raise damaged(folder, f"a manifest of format {content.get('format')!r}")
        shards = {key: tuple(Shard(**s) for s in content[key]) for key in ("train", "evaluation")}
        files = tuple(TokenFile(**file) for file in content.get("files", ()))
        manifest = Manifest(**{**content, **shards, "files": files})
    except FileNotFoundError as error:
        raise damaged(folder, "no manifest") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise damaged(folder, f"a manifest that cannot be read ({error})") from error
    for token_file in manifest.files:
        token_file.require_unchanged(folder)
    for shard in _own_shards(manifest):
        is_held_out = shard in manifest.evaluation
        itemsize = np.dtype(manifest.eval_dtype if is_held_out else manifest.dtype).itemsize
        path = folder / shard.name
        size = path.stat().st_size if path.is_file() else None
        if size != shard.n_tokens * itemsize:
            found = "missing" if size is None else f"{size} bytes"
            raise damaged(folder, f"{shard.name} {found} of {shard.n_tokens * itemsize} bytes")
    return manifest


def check_hashes(folder: Path, manifest: Manifest) -> None:
    """Compare every shard and token file with its hash in the manifest.

    Raises
    ------
    DataError
        When one differs.
    """
    for token_file in manifest.files:
        token_file.require_unchanged(folder, reads_content=True)
    for shard in _own_shards(manifest):
        with (folder / shard.name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                raise damaged(folder, f"{shard.name} with changed content")


def _own_shards(manifest: Manifest) -> list[Shard]:
    """Return the shards that were written for this dataset."""
    shared = {file.path for file in manifest.files}
    return [s for s in (*manifest.train, *manifest.evaluation) if s.name not in shared]


def damaged(folder: Path, what: str) -> DataError:
    """Return the error for a damaged dataset folder."""
    return DataError(
        f"prepared data at {folder}: {what}",
        "the shards and the manifest as they were prepared",
        "Run `scalelab data prepare` with the same options again to repair the folder.",
    )

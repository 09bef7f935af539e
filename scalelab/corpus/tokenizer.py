"""Tokenizers made here: raw bytes, or a byte-level BPE trained on the corpus.

Both end each document with a token that cannot occur in text: byte 0 (files with NUL are not text),
or token 0 of the BPE. Both are lossless for any UTF-8 text.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.merged_ranks import encode_in_threads, has_long_blank, rank_encoder
from scalelab.corpus.tokenizer_names import END_TOKEN
from scalelab.errors import DataError

END_OF_DOCUMENT = "<|end|>"


class Tokenizer(Protocol):
    """Converts documents to tokens.

    Attributes
    ----------
    vocab_size : int
        Vocabulary size.
    dtype : dtype
        Smallest unsigned integer type for the tokens.
    file : Path or None
        File of the vocabulary; None for bytes.
    end_token : int
        Token that ends each document.
    """

    vocab_size: int
    dtype: np.dtype[Any]
    file: Path | None
    end_token: int

    def encode(self, documents: Iterable[bytes]) -> Iterator[NDArray[Any]]:
        """Yield the tokens of each document with its end token, shape (n,)."""
        ...

    def token_bytes(self) -> NDArray[np.int64]:
        """Return the bytes of text per token, shape (vocab_size,); the end token counts as one."""
        ...


class ByteTokenizer:
    """Every byte is a token; byte 0 ends a document."""

    vocab_size = 256
    dtype = np.dtype(np.uint8)
    file: Path | None = None
    end_token = END_TOKEN

    def encode(self, documents: Iterable[bytes]) -> Iterator[NDArray[Any]]:
        """Yield the bytes of each document and its end token, shape (n,)."""
        for document in documents:
            yield np.frombuffer(document + bytes([END_TOKEN]), dtype=np.uint8)

    def token_bytes(self) -> NDArray[np.int64]:
        """Return ones, shape (256,)."""
        return np.ones(self.vocab_size, dtype=np.int64)


class BpeTokenizer:
    """Byte-level BPE read from a file that `train_bpe` wrote.

    Parameters
    ----------
    file : Path
        ``tokenizer.json``.
    """

    def __init__(self, file: Path) -> None:
        import tokenizers

        self.file: Path | None = file
        try:
            content = file.read_text(encoding="utf-8")
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
            self.end_token: int = self._tokenizer.get_vocab()[END_OF_DOCUMENT]
        except Exception as error:  # the library raises only Exception
            raise DataError(
                f"{file}, which is not a tokenizer of scalelab ({error})",
                "the unchanged file of the trained tokenizer",
                "Delete it; the next preparation trains it again.",
            ) from error
        # The characters of the end marker in a text are encoded as text.
        self._tokenizer.encode_special_tokens = True
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self.dtype: np.dtype[Any] = smallest_dtype(self.vocab_size)
        self._by_ranks = rank_encoder(content, END_OF_DOCUMENT)

    def encode(self, documents: Iterable[bytes]) -> Iterator[NDArray[Any]]:
        """Yield the tokens of each document and its end token, shape (n,)."""
        return encode_in_threads(self._ids, documents, self.end_token, self.dtype)

    def _ids(self, text: str) -> list[int]:
        if self._by_ranks is None or has_long_blank(text):
            ids: list[int] = self._tokenizer.encode(text).ids
            return ids
        return self._by_ranks(text)

    def token_bytes(self) -> NDArray[np.int64]:
        """Return the bytes in each token, shape (vocab_size,).

        The byte-level alphabet has one character per byte, so a token's length is its bytes.
        """
        lengths = np.ones(self.vocab_size, dtype=np.int64)
        for token, index in self._tokenizer.get_vocab().items():
            if index != self.end_token:
                lengths[index] = len(token)
        return lengths


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedTokenizer:
    """A BPE tokenizer that several sources share.

    Attributes
    ----------
    key : str
        Hash of the text of all sources that it is trained on.
    file : callable
        Returns its file; trains it first if it does not exist.
    """

    key: str
    file: Callable[[], Path]


def cached_bpe(documents: Iterable[bytes], digest: str, vocab_size: int, cache: Path) -> Path:
    """Return the file of the BPE tokenizer of these documents; train it if it is not cached.

    ``digest`` is the hash of the documents, which are read only if there is no cached tokenizer.
    The vocabulary is smaller than ``vocab_size`` if the text has too few distinct pairs.
    """
    key = hashlib.sha256(f"{vocab_size} {digest}".encode()).hexdigest()[:16]
    file = cache / f"bpe-{vocab_size}-{key}.json"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = cache / f".{file.name}.{secrets.token_hex(4)}"
        try:
            partial.write_text(_train_bpe(documents, vocab_size), encoding="utf-8")
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
    return file


def _train_bpe(documents: Iterable[bytes], vocab_size: int) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.decode("utf-8") for text in documents), trainer)
    return str(tokenizer.to_str(pretty=True))


def smallest_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest type of two or four bytes for the tokens of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)

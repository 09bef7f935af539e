"""Tokenizers that others made: tokenizer.json, sentencepiece models and rank files of tiktoken.

Each is read by the library of its format. Special tokens that a text spells are encoded as text
unless asked, and no text begins or ends with a token that the text does not have. A document ends
with the tokenizer's own token for that; a tokenizer without one gets one more token.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.merged_ranks import BLANK_BLOCK, batches, has_long_blank
from scalelab.corpus.source import DataSource
from scalelab.corpus.tokenizer import Tokenizer, smallest_dtype
from scalelab.corpus.tokenizer_names import find_tokenizer, is_file_name
from scalelab.errors import DataError, UsageError

BATCH_BYTES = 4 << 20
"""Bytes of text that a library gets at a time."""
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end|>", "<|im_end|>")
"""Tokens that end a document in published tokenizers, in the order in which they are tried."""
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""Stands for a space in the tokens of sentencepiece."""
LARGEST_VOCABULARY = 1 << 22

# openai/tiktoken, tiktoken_ext/openai_public.py: r50k_base, cl100k_base and o200k_base.
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|"
        r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    "o200k": "|".join(
        (
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            *(r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
        )
    ),
}
"""Named patterns that cut text into words before tiktoken merges bytes."""


def source_tokenizer(source: DataSource) -> FileTokenizer | None:
    """Return the tokenizer of a source if it is a file; None if it is made here.

    Raises
    ------
    UsageError, DataError
        As `open_tokenizer`.
    """
    if not is_file_name(source.tokenizer):
        return None
    return open_tokenizer(
        find_tokenizer(source.tokenizer),
        pattern=source.tokenizer_pattern,
        end_token=source.end_token,
        is_special_parsed=source.special_tokens,
    )


def open_tokenizer(
    file: Path, *, pattern: str | None, end_token: int | None, is_special_parsed: bool
) -> FileTokenizer:
    """Return the tokenizer of a file.

    Parameters
    ----------
    file : Path
        ``*.json``, ``*.model`` or ``*.tiktoken``.
    pattern : str or None
        Name in `PATTERNS`, or a regular expression; only for ``*.tiktoken``, which needs it.
    end_token : int or None
        Token that ends a document; None for the tokenizer's own.
    is_special_parsed : bool
        Whether special tokens that a text spells become special tokens.

    Raises
    ------
    UsageError
        When an option does not fit the format, or its library is missing.
    DataError
        When the file is damaged.
    """
    suffix = file.suffix.lower()
    if pattern is not None and suffix != ".tiktoken":
        raise UsageError(
            f"--tokenizer-pattern with {file.name}",
            "a rank file *.tiktoken; other tokenizers have their pattern in the file",
            "Remove --tokenizer-pattern.",
        )
    if suffix == ".model":
        if is_special_parsed:
            raise UsageError(
                f"--special-tokens with {file.name}",
                "tokenizer.json or *.tiktoken; sentencepiece never reads special tokens in text",
                "Remove --special-tokens.",
            )
        return SentencePieceTokenizer(file, end_token)
    if suffix == ".tiktoken":
        return RankTokenizer(file, pattern, end_token, is_special_parsed=is_special_parsed)
    return JsonTokenizer(file, end_token, is_special_parsed=is_special_parsed)


class FileTokenizer(Tokenizer):
    """Base of tokenizers from files: the vocabulary, and the end of documents.

    Parameters
    ----------
    file : Path
        The file.
    n_tokens : int
        Tokens in the file.
    end_token : int or None
        Token that ends a document, as given by the user.
    own_end : int or None
        The tokenizer's own; None adds a token.
    """

    def __init__(
        self, file: Path, n_tokens: int, end_token: int | None, own_end: int | None
    ) -> None:
        if not 0 < n_tokens <= LARGEST_VOCABULARY:
            raise _damaged(file, f"a vocabulary of {n_tokens} tokens")
        self.file: Path | None = file
        end = own_end if end_token is None else end_token
        self.end_token: int = n_tokens if end is None else end
        if self.end_token >= LARGEST_VOCABULARY:
            raise UsageError(
                f"--end-token {end_token}",
                f"a token from 0 to {n_tokens}; {n_tokens} adds one to the vocabulary",
                f"Write for example --end-token {n_tokens}.",
            )
        self.vocab_size: int = max(n_tokens, self.end_token + 1)
        self.dtype: np.dtype[Any] = smallest_dtype(self.vocab_size)

    def encode(self, documents: Iterable[bytes]) -> Iterator[NDArray[Any]]:
        """Yield the tokens of each document and its end token, shape (n,)."""
        for batch in batches(documents, BATCH_BYTES):
            texts = [document.decode("utf-8") for document in batch]
            for ids in self._ids(texts):
                yield np.asarray([*ids, self.end_token], dtype=self.dtype)

    def token_bytes(self) -> NDArray[np.int64]:
        """Return the bytes of text in each token, shape (vocab_size,); special tokens have one."""
        lengths = np.ones(self.vocab_size, dtype=np.int64)
        for index in range(self.vocab_size):
            if index != self.end_token:
                lengths[index] = self._length(index)
        return lengths

    def _ids(self, texts: list[str]) -> Iterable[list[int]]:
        raise NotImplementedError

    def _length(self, index: int) -> int:
        raise NotImplementedError


class JsonTokenizer(FileTokenizer):
    """A ``tokenizer.json`` of Hugging Face's tokenizers library."""

    def __init__(self, file: Path, end_token: int | None, *, is_special_parsed: bool) -> None:
        from tokenizers import Tokenizer as Library

        text, content = _read_json(file)
        self._tokenizer = _guarded(file, lambda: Library.from_str(text))
        # These settings of a file are for batches of a model, not for a corpus.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = not is_special_parsed
        vocabulary = self._tokenizer.get_vocab()
        self._words = {index: token for token, index in vocabulary.items()}
        self._added = {token["id"]: token["content"] for token in content.get("added_tokens") or ()}
        steps = json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
        self._is_byte_level = '"ByteLevel"' in steps
        own = _declared_end(file, vocabulary)
        super().__init__(file, max(self._words, default=-1) + 1, end_token, own)

    def _ids(self, texts: list[str]) -> Iterable[list[int]]:
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return (encoding.ids for encoding in found)

    def _length(self, index: int) -> int:
        if index in self._added or index not in self._words:
            return len(self._added.get(index, "?").encode())
        word = self._words[index]
        # The byte-level alphabet has one character per byte.
        return len(word) if self._is_byte_level else _piece_length(word)


class SentencePieceTokenizer(FileTokenizer):
    """A ``*.model`` of sentencepiece."""

    def __init__(self, file: Path, end_token: int | None) -> None:
        library = _library("sentencepiece")
        content = file.read_bytes()
        self._model = _guarded(file, lambda: library.SentencePieceProcessor(model_proto=content))
        end = int(self._model.eos_id())
        super().__init__(file, int(self._model.vocab_size()), end_token, end if end >= 0 else None)

    def _ids(self, texts: list[str]) -> Iterable[list[int]]:
        found: list[list[int]] = self._model.encode(texts, out_type=int)
        return found

    def _length(self, index: int) -> int:
        if index >= self._model.vocab_size() or self._model.is_control(index):
            return 1
        if self._model.is_byte(index):
            return 1
        return _piece_length(self._model.id_to_piece(index))


class RankTokenizer(FileTokenizer):
    """A rank file of tiktoken, with the pattern that cuts text into words."""

    def __init__(
        self, file: Path, pattern: str | None, end_token: int | None, *, is_special_parsed: bool
    ) -> None:
        if pattern is None:
            raise UsageError(
                f"{file.name} without --tokenizer-pattern",
                f"the pattern that its tokenizer cuts text with: {', '.join(PATTERNS)}, or a "
                "regular expression; a rank file does not hold it",
                "Write for example --tokenizer-pattern cl100k.",
            )
        library = _library("tiktoken")
        self.ranks = _read_ranks(file)
        self.pattern = PATTERNS.get(pattern, pattern)
        n_tokens = max(self.ranks.values()) + 1
        end = n_tokens if end_token is None else end_token
        self._words = {rank: word for word, rank in self.ranks.items()}
        self._special = {} if end in self._words else {END_NAMES[0]: end}
        self._is_special_parsed = is_special_parsed
        self._encoding = _guarded(
            file,
            lambda: library.Encoding(
                file.stem,
                pat_str=self.pattern,
                mergeable_ranks=self.ranks,
                special_tokens=self._special,
            ),
            f"or with --tokenizer-pattern {pattern!r}, which is no regular expression",
        )
        super().__init__(file, n_tokens, end, None)

    def _ids(self, texts: list[str]) -> Iterable[list[int]]:
        if any(map(has_long_blank, texts)):
            raise DataError(
                f"a text with {BLANK_BLOCK:,} blanks in a row or more",
                "fewer: the regular expressions of tiktoken fail on them",
                "Shorten the blanks, or leave the text out.",
            )
        if self._is_special_parsed:
            parsed: list[list[int]] = self._encoding.encode_batch(texts, allowed_special="all")
            return parsed
        ordinary: list[list[int]] = self._encoding.encode_ordinary_batch(texts)
        return ordinary

    def _length(self, index: int) -> int:
        return len(self._words.get(index, b"?"))


def _read_ranks(file: Path) -> dict[bytes, int]:
    """Return the ranks by token; each line has a token in base64, a space and its rank."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line:
            continue
        try:
            word, rank = line.split()
            token, index = base64.b64decode(word, validate=True), int(rank)
        except (ValueError, binascii.Error) as error:
            raise _damaged(file, f"line {number}, which is not TOKEN RANK in base64") from error
        if not 0 <= index < LARGEST_VOCABULARY or not token or token in ranks:
            raise _damaged(file, f"line {number}, with a rank or a token that cannot be")
        ranks[token] = index
    if len(set(ranks.values())) != len(ranks):
        raise _damaged(file, "two tokens with one rank")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise _damaged(file, f"no token for byte {missing[0]}, so it cannot encode every text")
    return ranks


def _read_json(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"no JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise _damaged(file, "no model of the tokenizers library")
    return text, content


def _declared_end(file: Path, vocabulary: dict[str, int]) -> int | None:
    """Return the end token of ``tokenizer_config.json`` beside the file, or a well-known one."""
    try:
        config = json.loads((file.parent / "tokenizer_config.json").read_text(encoding="utf-8"))
        declared = config.get("eos_token")
    except (OSError, ValueError, AttributeError, RecursionError):
        declared = None
    name = declared.get("content") if isinstance(declared, dict) else declared
    names = (name, *END_NAMES) if isinstance(name, str) else END_NAMES
    return next((vocabulary[each] for each in names if each in vocabulary), None)


def _piece_length(piece: str) -> int:
    """Return the bytes of a piece of sentencepiece, such as ``<0x0A>`` or one with `SPACE`."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return 1
    return len(piece.replace(SPACE, " ").encode())


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"a tokenizer of {name}, which is not installed",
            f"the package {name}, or a tokenizer.json",
            "Run pip install 'scalelab[tokenizers]'.",
        ) from error


def _guarded(file: Path, make: Callable[[], Any], more: str = "") -> Any:
    """Return what the library makes of a file; DataError if it does not accept it."""
    try:
        return make()
    except BaseException as error:
        # A library in Rust panics with an exception that is no Exception.
        is_panic = type(error).__name__ == "PanicException"
        if not isinstance(error, Exception) and not is_panic:
            raise
        raise _damaged(file, f"{error} {more}".strip()) from error


def _damaged(file: Path, problem: str) -> DataError:
    return DataError(
        f"tokenizer {file}: {problem}",
        "a complete file of the tokenizers library, of sentencepiece or of tiktoken",
        "Copy the file again, or name another one, for example --tokenizer tokenizer.json.",
    )

"""The tokenizer of prepared data as a ``tokenizer.json``, which transformers loads as it is.

The file gives the ids that the training text had: special tokens that a text spells are text unless
the data was prepared with ``--special-tokens``, and no token is added before or after a text. Each
file is compared on `PROBES` with the tokenizer of the data; one that differs is not written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scalelab.corpus.dataset import Dataset
from scalelab.corpus.prepared_tokenizer import prepared_tokenizer
from scalelab.corpus.tokenizer import END_OF_DOCUMENT, ByteTokenizer, Tokenizer
from scalelab.corpus.tokenizer_files import (
    END_NAMES,
    JsonTokenizer,
    RankTokenizer,
    SentencePieceTokenizer,
)
from scalelab.errors import DataError

PROBES = (
    "",
    " ",
    "The quick brown fox, 12345.67 times.",
    "  two  spaces\tand tabs\t\n\n\nlines \r\n end ",
    "naïve café — “quotes” … ½ ﬁ Ａ e\u0301 \u00a0x",
    "Ā ā 漢字かな 한국어 עברית العربية हिन्दी",
    "👩‍👩‍👧‍👦 🇩🇪 \u200b zero width",
    f"{END_OF_DOCUMENT} <|endoftext|> </s> <s> <unk> [CLS] ▁",
    "def f(x):\n    return x**2  # it's HTTPServer's CamelCase_and_snake 0x1F\n",
    "a" * 300 + "\x01\x7f",
)
"""Texts on which a written tokenizer must give the ids of the data's tokenizer."""


def tokenizer_files(dataset: Dataset, seq_len: int) -> dict[str, str]:
    """Return names and contents of the files of a dataset's tokenizer.

    Parameters
    ----------
    dataset : Dataset
        The data.
    seq_len : int
        Tokens that the model sees at once.

    Raises
    ------
    DataError
        If the tokenizer is unknown, or a ``tokenizer.json`` would give other ids.
    UsageError
        If the library of its format is missing.
    """
    tokenizer = prepared_tokenizer(dataset)
    content = tokenizer_json(tokenizer)
    text = json.dumps(content, ensure_ascii=False, indent=1)
    _require_equal(text, tokenizer, is_special_parsed=dataset.manifest.special_tokens)
    end = _name_of(content, tokenizer.end_token)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "model_max_length": seq_len,
        "split_special_tokens": not dataset.manifest.special_tokens,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return {"tokenizer.json": text, "tokenizer_config.json": json.dumps(config, indent=1)}


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of a ``tokenizer.json`` for a tokenizer of a dataset.

    Raises
    ------
    DataError
        If its format cannot be written so.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return _bytes_json()
    if isinstance(tokenizer, (RankTokenizer, SentencePieceTokenizer)):
        raise _not_equal(tokenizer, "ranks and sentencepiece models cannot be written so")
    assert tokenizer.file is not None
    content: dict[str, Any] = json.loads(tokenizer.file.read_text(encoding="utf-8"))
    if isinstance(tokenizer, JsonTokenizer):
        content |= {"truncation": None, "padding": None}
        content["post_processor"] = _without_templates(content.get("post_processor"))
    return with_end(content, tokenizer.end_token)


def added_token(index: int, name: str, *, special: bool = True) -> dict[str, Any]:
    """Return an entry of ``added_tokens``."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": name, **flags, "special": special}


def with_end(content: dict[str, Any], end_token: int) -> dict[str, Any]:
    """Return a tokenizer with a token that ends documents, if it has none with that number."""
    if _name_of(content, end_token) is not None:
        return content
    taken = {*content["model"]["vocab"]} if isinstance(content["model"]["vocab"], dict) else set()
    taken |= {token["content"] for token in content["added_tokens"]}
    name = next(name for name in (*END_NAMES, f"<|end-{end_token}|>") if name not in taken)
    tokens = [*content["added_tokens"], added_token(end_token, name)]
    return {**content, "added_tokens": sorted(tokens, key=lambda token: token["id"])}


def byte_characters() -> list[str]:
    """Return the character of each byte in the byte-level alphabet (GPT-2, ``encoder.py``)."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def byte_level_steps(pre_tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a ``tokenizer.json`` around a byte-level BPE."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": byte_level(),
    }


def byte_level() -> dict[str, Any]:
    """Return the step between bytes and the characters of the byte-level alphabet."""
    flags = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "ByteLevel", **flags}


def bpe_model(vocab: dict[str, int], merges: list[list[str]], **more: Any) -> dict[str, Any]:
    """Return the model of a byte-level BPE."""
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
    return {**model, **more}


def _bytes_json() -> dict[str, Any]:
    """Return the byte tokenizer as a BPE without merges."""
    # The end has the place of byte 0, which does not occur in text.
    vocab = {character: byte for byte, character in enumerate(byte_characters()) if byte}
    content = byte_level_steps(byte_level())
    content["added_tokens"] = [added_token(ByteTokenizer.end_token, END_OF_DOCUMENT)]
    content["model"] = bpe_model({END_OF_DOCUMENT: ByteTokenizer.end_token, **vocab}, [])
    return content


def _without_templates(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a post-processor without the parts that add tokens before or after a text."""
    if step is None or step["type"] == "ByteLevel":
        return step
    if step["type"] != "Sequence":
        return None
    kept = [part for each in step["processors"] if (part := _without_templates(each)) is not None]
    return {"type": "Sequence", "processors": kept} if kept else None


def _name_of(content: dict[str, Any], index: int) -> str | None:
    """Return the text of a token."""
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    if index in added:
        return str(added[index])
    vocab = content["model"]["vocab"]
    if isinstance(vocab, list):
        return str(vocab[index][0]) if index < len(vocab) else None
    return next((name for name, each in vocab.items() if each == index), None)


def _require_equal(text: str, tokenizer: Tokenizer, *, is_special_parsed: bool) -> None:
    """Raise DataError if the written tokenizer gives other ids than that of the data."""
    from tokenizers import Tokenizer as Library

    try:
        written = Library.from_str(text)
    except Exception as error:  # the library raises only Exception
        raise _not_equal(tokenizer, f"the tokenizers library refuses it: {error}") from error
    written.encode_special_tokens = not is_special_parsed
    probes = [probe.encode() for probe in PROBES]
    for probe, found in zip(PROBES, tokenizer.encode(probes), strict=True):
        if written.encode(probe).ids != found[:-1].tolist():
            raise _not_equal(tokenizer, f"it encodes {probe[:40]!r} differently")
    name = written.id_to_token(tokenizer.end_token)
    if name is None or written.token_to_id(name) != tokenizer.end_token:
        raise _not_equal(tokenizer, f"it has no token {tokenizer.end_token} to end a document")


def _not_equal(tokenizer: Tokenizer, reason: str) -> DataError:
    return DataError(
        f"tokenizer {Path(tokenizer.file).name if tokenizer.file else 'bytes'} as a "
        f"tokenizer.json: {reason}",
        "a tokenizer that gives the ids of the training text",
        "Encode texts with the tokenizer of the data.",
    )

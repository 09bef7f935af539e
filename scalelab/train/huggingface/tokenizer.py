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
from scalelab.corpus.merged_ranks import byte_characters
from scalelab.corpus.prepared_tokenizer import prepared_tokenizer
from scalelab.corpus.tokenizer import END_OF_DOCUMENT, ByteTokenizer, Tokenizer
from scalelab.corpus.tokenizer_files import (
    JsonTokenizer,
    RankTokenizer,
    SentencePieceTokenizer,
)
from scalelab.errors import DataError
from scalelab.train.huggingface.tokenizer_parts import (
    added_token,
    bpe_model,
    byte_level,
    byte_level_steps,
    name_of,
    with_end,
)
from scalelab.train.huggingface.tokenizer_pieces import pieces_json
from scalelab.train.huggingface.tokenizer_ranks import ranks_json

PROBES = (
    "",
    " ",
    "The quick brown fox, 12345.67 times.",
    "  two  spaces\tand tabs\t\n\n\nlines \r\n end ",
    "naïve café — “quotes” … ½ ﬁ Ａ e\u0301 \u00a0x",
    "Ā ā 漢字かな 한국어 עברית العربية हिन्दी",
    "👩‍👩‍👧‍👦 🇩🇪 \u200b zero width",
    "def f(x):\n    return x**2  # it's HTTPServer's CamelCase_and_snake 0x1F\n",
    "".join(chr(97 + place * place % 26) for place in range(300)) + "\x01\x7f",
)
"""Texts on which a written tokenizer must give the ids of the data's tokenizer."""
SPELLED = f"{END_OF_DOCUMENT} <|endoftext|> </s> <s> <unk> [CLS] ▁"
"""A text with special tokens. A Unigram model of the tokenizers library reads them as such."""


def tokenizer_files(dataset: Dataset, seq_len: int) -> tuple[dict[str, str], list[str]]:
    """Return names and contents of the files of a dataset's tokenizer, and warnings.

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
    warnings = _compare(text, tokenizer, is_special_parsed=dataset.manifest.special_tokens)
    end = name_of(content, tokenizer.end_token)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "model_max_length": seq_len,
        "split_special_tokens": not dataset.manifest.special_tokens,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    files = {"tokenizer.json": text, "tokenizer_config.json": json.dumps(config, indent=1)}
    return files, warnings


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of a ``tokenizer.json`` for a tokenizer of a dataset.

    Raises
    ------
    DataError
        If its format cannot be written so.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return _bytes_json()
    if isinstance(tokenizer, RankTokenizer):
        return ranks_json(tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        return pieces_json(tokenizer)
    assert tokenizer.file is not None
    content: dict[str, Any] = json.loads(tokenizer.file.read_text(encoding="utf-8"))
    if isinstance(tokenizer, JsonTokenizer):
        content |= {"truncation": None, "padding": None}
        content["post_processor"] = _without_templates(content.get("post_processor"))
    return with_end(content, tokenizer.end_token)


def _bytes_json() -> dict[str, Any]:
    """Return the byte tokenizer as a BPE without merges."""
    # The end has the place of byte 0, which does not occur in text.
    vocab = {character: byte for character, byte in byte_characters().items() if byte}
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


def _compare(text: str, tokenizer: Tokenizer, *, is_special_parsed: bool) -> list[str]:
    """Return warnings; raise DataError if a tokenizer gives other ids than that of the data."""
    from tokenizers import Tokenizer as Library

    try:
        written = Library.from_str(text)
    except Exception as error:  # the library raises only Exception
        raise _not_equal(tokenizer, f"the tokenizers library refuses it: {error}") from error
    written.encode_special_tokens = not is_special_parsed
    texts = (*PROBES, SPELLED)
    ours = tokenizer.encode(each.encode() for each in texts)
    differing = [
        each
        for each, found in zip(texts, ours, strict=True)
        if written.encode(each).ids != found[:-1].tolist()
    ]
    for probe in differing:
        if probe != SPELLED:
            raise _not_equal(tokenizer, f"it encodes {probe[:40]!r} differently")
    name = written.id_to_token(tokenizer.end_token)
    if name is None or written.token_to_id(name) != tokenizer.end_token:
        raise _not_equal(tokenizer, f"it has no token {tokenizer.end_token} to end a document")
    if not differing:
        return []
    return [
        "transformers reads special tokens that a text spells, such as </s>, as special tokens; in "
        "the training text they were text"
    ]


def _not_equal(tokenizer: Tokenizer, reason: str) -> DataError:
    return DataError(
        f"tokenizer {Path(tokenizer.file).name if tokenizer.file else 'bytes'} as a "
        f"tokenizer.json: {reason}",
        "a tokenizer that gives the ids of the training text",
        "Encode texts with the tokenizer of the data.",
    )

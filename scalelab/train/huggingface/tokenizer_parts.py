"""Parts of a ``tokenizer.json`` of the tokenizers library."""

from __future__ import annotations

from typing import Any

from scalelab.corpus.tokenizer_files import END_NAMES


def added_token(index: int, name: str, *, special: bool = True) -> dict[str, Any]:
    """Return an entry of ``added_tokens``."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": name, **flags, "special": special}


def with_end(content: dict[str, Any], end_token: int) -> dict[str, Any]:
    """Return a tokenizer with a token that ends documents, if it has none with that number."""
    if name_of(content, end_token) is not None:
        return content
    taken = {*content["model"]["vocab"]} if isinstance(content["model"]["vocab"], dict) else set()
    taken |= {token["content"] for token in content["added_tokens"]}
    name = next(name for name in (*END_NAMES, f"<|end-{end_token}|>") if name not in taken)
    tokens = [*content["added_tokens"], added_token(end_token, name)]
    return {**content, "added_tokens": sorted(tokens, key=lambda token: token["id"])}


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


def name_of(content: dict[str, Any], index: int) -> str | None:
    """Return the text of a token."""
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    if index in added:
        return str(added[index])
    vocab = content["model"]["vocab"]
    if isinstance(vocab, list):
        return str(vocab[index][0]) if index < len(vocab) else None
    return next((name for name, each in vocab.items() if each == index), None)

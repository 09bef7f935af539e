"""A model of sentencepiece as a ``tokenizer.json``.

The fields are those of ``sentencepiece_model.proto``
(https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto).
"""

from __future__ import annotations

import base64
from typing import Any

from scalelab.corpus.tokenizer_files import SPACE, SentencePieceTokenizer
from scalelab.errors import DataError
from scalelab.logs.protobuf import Fields, fields, floating, integer, messages, text
from scalelab.train.huggingface.tokenizer_parts import added_token, bpe_model, with_end

PIECES, TRAINER, NORMALIZER = 1, 2, 3
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
UNIGRAM, BPE = 1, 2


def pieces_json(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """Return the content of a ``tokenizer.json`` with the pieces and the normalisation of a model.

    Raises
    ------
    DataError
        If the model is neither Unigram nor BPE.
    """
    assert tokenizer.file is not None
    whole = fields(tokenizer.file.read_bytes())
    trainer = _only(whole, TRAINER)
    pieces = [
        (text(p, 1), floating(p, 2) or 0.0, integer(p, 3) or NORMAL)
        for p in messages(whole, PIECES)
    ]
    kind = integer(trainer, 3) or UNIGRAM
    if kind not in (UNIGRAM, BPE):
        raise DataError(
            f"{tokenizer.file.name}, a model of words or characters",
            "a model of type unigram or bpe",
            "Encode texts with the tokenizer of the data.",
        )
    unknown = next((i for i, piece in enumerate(pieces) if piece[2] == UNKNOWN), 0)
    has_bytes = bool(integer(trainer, 35))
    added = [
        added_token(index, piece, special=type_ != USER_DEFINED)
        for index, (piece, _, type_) in enumerate(pieces)
        if type_ in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _normalizer(_only(whole, NORMALIZER)),
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _decoder(_only(whole, NORMALIZER)),
        "model": _unigram(pieces, unknown, has_bytes)
        if kind == UNIGRAM
        else _bpe(pieces, unknown, has_bytes),
    }
    return with_end(content, tokenizer.end_token)


Piece = tuple[str, float, int]


def _unigram(pieces: list[Piece], unknown: int, has_bytes: bool) -> dict[str, Any]:
    vocab = [[piece, score] for piece, score, _ in pieces]
    return {"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": has_bytes}


def _bpe(pieces: list[Piece], unknown: int, has_bytes: bool) -> dict[str, Any]:
    """Return a BPE that merges the pair whose piece has the highest score first."""
    scores = {piece: score for piece, score, kind in pieces if kind == NORMAL}
    order = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    merges = [
        (-score, order[piece[:cut]], order[piece[cut:]], piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return bpe_model(
        order,
        [[left, right] for *_, left, right in sorted(merges)],
        unk_token=pieces[unknown][0],
        fuse_unk=True,
        byte_fallback=has_bytes,
    )


def _normalizer(spec: Fields) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    charsmap = spec.get(2, [b""])[-1]
    if isinstance(charsmap, bytes) and charsmap:
        encoded = base64.b64encode(charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if _is_set(spec, 4):
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if _is_set(spec, 3):
        steps.append({"type": "Prepend", "prepend": SPACE})
    if _is_set(spec, 5):
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _decoder(spec: Fields) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if _is_set(spec, 3):
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _is_set(spec: Fields, number: int) -> bool:
    """Return a flag that is set unless the model says otherwise."""
    value = integer(spec, number)
    return value is None or bool(value)


def _only(found: Fields, number: int) -> Fields:
    return next(iter(messages(found, number)), {})

"""tiktoken and the tokenizers library give the same tokens, also for text that one cannot take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus import merged_ranks
from scalelab.corpus.merged_ranks import BLANK_BLOCK, has_long_blank, rank_encoder
from scalelab.corpus.tokenizer import END_OF_DOCUMENT, BpeTokenizer, cached_bpe


@pytest.fixture(scope="module")
def file(
    tmp_path_factory: pytest.TempPathFactory, make_documents: Callable[..., list[str]]
) -> Path:
    documents = [text.encode() for text in make_documents(60)]
    return cached_bpe(documents, "ranks", 500, tmp_path_factory.mktemp("cache"))


def reference(file: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True
    return list(tokenizer.encode(text).ids)


def test_every_character_has_the_tokens_of_the_tokenizers_library(file: Path) -> None:
    encode = rank_encoder(file.read_text(encoding="utf-8"), END_OF_DOCUMENT)
    assert encode is not None
    characters = [chr(code) for code in range(0x3200) if not 0xD800 <= code < 0xE000]
    text = "".join(f"a{c}b{c}1{c}.{c} {c}{c}  {c}\n" for c in characters)
    assert encode(text) == reference(file, text)


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.text(st.characters(codec="utf-8"), max_size=30),
            st.sampled_from(["the ", "'s", "   \n", "\t\t", END_OF_DOCUMENT, "日本", "é", " 12"]),
        ),
        max_size=12,
    )
)
def test_texts_have_the_tokens_of_the_tokenizers_library(file: Path, parts: list[str]) -> None:
    text = "".join(parts)
    (tokens,) = BpeTokenizer(file).encode([text.encode()])
    assert tokens[:-1].tolist() == reference(file, text)


@pytest.mark.parametrize("n_blanks", [BLANK_BLOCK - 1, 2 * BLANK_BLOCK, 1_100_000])
def test_a_million_blanks_are_encoded(file: Path, n_blanks: int) -> None:
    text = "x" + " " * n_blanks + "x"
    (tokens,) = BpeTokenizer(file).encode([text.encode()])
    assert tokens[:-1].tolist() == reference(file, text)
    assert has_long_blank(text) == (n_blanks >= 2 * BLANK_BLOCK)


def test_documents_keep_their_order_over_many_tasks(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged_ranks, "TASK_BYTES", 8)
    tokenizer = BpeTokenizer(file)
    texts = [f"document {index}".encode() for index in range(300)]
    each = [next(tokenizer.encode([text])) for text in texts]
    for one, other in zip(tokenizer.encode(texts), each, strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_tiktoken_the_tokens_are_the_same(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = next(BpeTokenizer(file).encode([b"some text, and more"]))
    monkeypatch.setattr(merged_ranks.importlib.util, "find_spec", lambda name: None)
    slow = BpeTokenizer(file)
    assert slow._by_ranks is None
    np.testing.assert_array_equal(next(slow.encode([b"some text, and more"])), fast)


def test_a_vocabulary_whose_merges_are_not_its_order_is_left_to_the_library(file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["merges"].reverse()
    assert rank_encoder(json.dumps(content), END_OF_DOCUMENT) is None

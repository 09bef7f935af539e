from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus.tokenizer import END_OF_DOCUMENT, BpeTokenizer, ByteTokenizer, cached_bpe
from scalelab.errors import DataError

texts = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60),
        st.sampled_from([END_OF_DOCUMENT, f"a{END_OF_DOCUMENT}b", "<unk>", "  \n\t ", "日本語🙂"]),
    ),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def bpe(
    tmp_path_factory: pytest.TempPathFactory, make_documents: Callable[..., list[str]]
) -> BpeTokenizer:
    documents = [text.encode() for text in make_documents(60)]
    return BpeTokenizer(cached_bpe(documents, "one", 320, tmp_path_factory.mktemp("cache")))


@settings(max_examples=60, deadline=None)
@given(texts=texts)
def test_bytes_are_the_bytes_and_an_end(texts: list[str]) -> None:
    documents = [text.encode() for text in texts]
    tokens = list(ByteTokenizer().encode(documents))
    assert [part.tobytes() for part in tokens] == [document + b"\0" for document in documents]


@settings(max_examples=60, deadline=None)
@given(texts=texts)
def test_bpe_gives_every_text_back_and_ends_it_once(bpe: BpeTokenizer, texts: list[str]) -> None:
    from tokenizers import Tokenizer

    assert bpe.file is not None
    reader = Tokenizer.from_file(str(bpe.file))
    for text, tokens in zip(texts, bpe.encode(text.encode() for text in texts), strict=True):
        assert tokens.dtype == bpe.dtype
        assert tokens[-1] == 0
        assert 0 not in tokens[:-1]
        assert reader.decode(tokens[:-1].tolist(), skip_special_tokens=False) == text
        assert bpe.token_bytes()[tokens].sum() == len(text.encode()) + 1


def test_the_vocabulary_has_the_size_asked_for_and_merges(bpe: BpeTokenizer) -> None:
    assert bpe.vocab_size == 320
    assert bpe.dtype == np.uint16
    (tokens,) = bpe.encode([b"compute and data and loss"])
    assert len(tokens) < 20
    assert sorted(set(bpe.token_bytes().tolist()))[-1] > 2


def test_a_text_too_poor_for_the_vocabulary_gives_a_smaller_one(tmp_path: Path) -> None:
    tokenizer = BpeTokenizer(cached_bpe([b"aaaa"], "poor", 400, tmp_path))
    assert 257 <= tokenizer.vocab_size < 400
    (tokens,) = tokenizer.encode(["ß".encode()])
    assert tokens.max() < tokenizer.vocab_size


def test_training_happens_once_for_each_text_and_size(tmp_path: Path) -> None:
    first = cached_bpe([b"some text here"], "text", 300, tmp_path)
    content = first.read_bytes()

    def unread():  # type: ignore[no-untyped-def]
        raise AssertionError("read again")
        yield b""

    assert cached_bpe(unread(), "text", 300, tmp_path) == first
    assert first.read_bytes() == content
    assert cached_bpe([b"some text here"], "text", 301, tmp_path) != first
    assert cached_bpe([b"other text"], "other", 300, tmp_path) != first
    assert not list(tmp_path.glob(".*"))


def test_training_gives_the_same_on_any_number_of_threads(
    tmp_path: Path, make_documents: Callable[..., list[str]]
) -> None:
    code = (
        "import sys; from pathlib import Path; from scalelab.corpus.tokenizer import cached_bpe\n"
        "texts = Path(sys.argv[1]).read_bytes().split(b'\\n')\n"
        "sys.stdout.write(cached_bpe(texts, 'x', 500, Path(sys.argv[2])).read_text())"
    )
    (tmp_path / "texts").write_text("\n".join(make_documents(300)))
    outputs = set()
    for threads in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "texts"), str(tmp_path / threads)],
            env={**os.environ, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            check=True,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_a_damaged_cached_tokenizer_is_said(tmp_path: Path) -> None:
    file = cached_bpe([b"some text"], "text", 300, tmp_path)
    file.write_text(file.read_text()[:500])
    with pytest.raises(DataError, match="Delete it"):
        BpeTokenizer(file)

"""One text file is a corpus: its end is held out, from the start of a line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus import pieces
from scalelab.corpus.dataset import prepare
from scalelab.corpus.pieces import encode_whole
from scalelab.corpus.tokenizer import BpeTokenizer, ByteTokenizer, cached_bpe
from scalelab.errors import DataError
from tests.corpus.prepared import eval_text, source_of, train_documents, train_text

WORDS = ["loss", "curve", "größer", "模型", "a", "\n", "\n\n", " ", "the end"]
texts = st.lists(st.sampled_from(WORDS), min_size=150, max_size=400).map(" ".join)


@settings(max_examples=20, deadline=None)
@given(text=texts, eval_tokens=st.integers(1, 200))
def test_the_end_of_one_file_is_held_out_and_the_rest_is_trained_on(
    tmp_path_factory: pytest.TempPathFactory, text: str, eval_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("one")
    (folder / "input.txt").write_text(text, encoding="utf-8")
    dataset = prepare(source_of(folder / "input.txt", eval_tokens), folder / "results")
    content = text.encode()
    (train,) = train_documents(dataset)
    evaluation = eval_text(dataset)
    # Every byte is on one side, in order; what is beyond the evaluation set is used by neither.
    assert dataset.manifest.split == "stretch"
    assert content.startswith(train)
    assert (content[len(train) :] + b"\0").startswith(evaluation)
    assert len(evaluation) == eval_tokens
    # At a line end if the first half is not reached before one, and never inside a character.
    assert train.decode("utf-8") is not None
    if b"\n" in content[len(content) // 2 + 2 : len(content) - eval_tokens]:
        assert train.endswith(b"\n")


def test_several_files_of_very_different_lengths_each_lose_their_end(tmp_path: Path) -> None:
    lengths = {"a.txt": 40_000, "b.txt": 20_000, "short.txt": 300}
    for name, length in lengths.items():
        lines = (f"{name} line {i} of many words" for i in range(length // 20))
        (tmp_path / name).write_text("\n".join(lines))
    total = sum(path.stat().st_size for path in tmp_path.glob("*.txt"))
    dataset = prepare(source_of(tmp_path, total // 3), tmp_path / "results")
    manifest = dataset.manifest
    assert manifest.split == "stretch"
    assert (manifest.n_documents, manifest.n_train_documents) == (3, 3)
    assert manifest.n_held_out_documents == 2 or manifest.n_held_out_documents == 3
    assert dataset.n_train_tokens > total / 2
    assert manifest.held_out_share == pytest.approx(1 / 3, abs=0.02)


def test_the_vocabulary_is_trained_on_the_first_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scalelab.corpus import tokenizer

    seen: list[bytes] = []
    train = tokenizer._train_bpe

    def watching(documents: Iterable[bytes], vocab_size: int) -> str:
        seen.extend(documents)
        return train(seen, vocab_size)

    monkeypatch.setattr(tokenizer, "_train_bpe", watching)
    text = "\n".join(f"line {i} says something of its number {i * i}" for i in range(2000))
    (tmp_path / "input.txt").write_text(text)
    dataset = prepare(source_of(tmp_path / "input.txt", 500, "bpe:400"), tmp_path / "results")
    assert b"".join(seen) == text.encode()[: (len(text) + 1) // 2]
    assert dataset.manifest.bytes_per_token > 1.3
    assert dataset.n_eval_tokens == 500


def test_a_text_that_is_too_short_is_told_what_would_do(tmp_path: Path) -> None:
    path = tmp_path / "input.txt"
    path.write_text("a word\n" * 1000)
    with pytest.raises(DataError, match="1 distinct document with 7,000 bytes") as caught:
        prepare(source_of(path, 4000), tmp_path / "results")
    assert "half of the text holds" in caught.value.given
    fewer = int(caught.value.do.rpartition(" ")[2].rstrip("."))
    assert prepare(source_of(path, fewer), tmp_path / "results").n_eval_tokens == fewer


@settings(max_examples=15, deadline=None)
@given(text=texts, piece=st.integers(20, 400))
def test_a_document_in_pieces_has_the_tokens_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, text: str, piece: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    training = [" ".join(WORDS * 20).encode(), b"the end of the loss curve " * 30]
    bpe = BpeTokenizer(cached_bpe(training, "pieces", 400, folder / "bpe"))
    content = np.frombuffer(text.encode() * 2, dtype=np.uint8)
    middle = len(content) // 2
    spans = np.array([[0, middle], [middle, len(content)]])
    for tokenizer in (ByteTokenizer(), bpe):
        whole = list(tokenizer.encode([text.encode()] * 2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pieces, "PIECE_BYTES", piece)
            patch.setattr(pieces, "SPILL_TOKENS", 5 * piece)
            found = list(encode_whole(tokenizer, content, spans, folder))
        for one, other in zip(whole, found, strict=True):
            assert one.tolist() == other.tolist()


def test_the_same_text_gives_the_same_dataset(tmp_path: Path) -> None:
    text = "\n".join(f"line {i}" for i in range(5000))
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(text)
    first, second = (
        prepare(source_of(tmp_path / name, 2000), tmp_path / f"results {name}")
        for name in ("a.txt", "b.txt")
    )
    assert first.fingerprint == second.fingerprint
    assert train_text(first) == train_text(second)

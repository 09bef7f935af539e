"""Evaluation sets: prepared once with the training tokenizer, and never of the training text."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scalelab.corpus import eval_sets
from scalelab.corpus.dataset import Dataset, open_dataset, prepare
from scalelab.corpus.eval_sets import EvalSet, find_eval_set, prepare_eval_sets
from scalelab.corpus.eval_text import EvalText, read_eval_sets
from scalelab.corpus.source import DataSource
from scalelab.errors import DataError, UsageError
from tests.corpus.conftest import make_documents
from tests.corpus.prepared import source_of, train_documents

Write = Callable[[Path, list[str]], Path]


@pytest.fixture
def training(tmp_path: Path, write_files: Write) -> tuple[DataSource, Dataset]:
    source = source_of(write_files(tmp_path / "train", make_documents(80)))
    return source, prepare(source, tmp_path / "r")


@pytest.fixture
def prepared(
    training: tuple[DataSource, Dataset], tmp_path: Path
) -> Callable[..., dict[str, EvalSet]]:
    """Return a function that prepares sets of the given texts."""

    def make(tokens: int | None = None, **paths: Path) -> dict[str, EvalSet]:
        texts = {name: EvalText((str(path),), tokens) for name, path in paths.items()}
        source, _ = training
        found = prepare_eval_sets(texts, source, (training,), tmp_path / "r", lambda *_: None)
        return {each.name: each for each in found}

    return make


def settle(folder: Path) -> Path:
    """Make files older than the clock tick that preparation distrusts."""
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    return folder


def test_a_set_has_the_asked_tokens_of_many_documents(
    prepared: Callable[..., dict[str, EvalSet]], tmp_path: Path, write_files: Write
) -> None:
    folder = write_files(tmp_path / "code", make_documents(40, seed=1))
    found = prepared(tokens=500, code=folder)["code"]
    assert found.dataset.n_eval_tokens == 500
    assert found.dataset.n_train_tokens == 0
    assert found.dataset.manifest.n_held_out_documents >= 20
    assert found.dataset.bytes_per_token == 1.0
    assert not found.warnings()
    again = open_dataset(tmp_path / "r" / "data" / found.dataset.fingerprint)
    assert again.n_eval_tokens == 500


def test_the_tokens_depend_only_on_the_text(
    prepared: Callable[..., dict[str, EvalSet]], tmp_path: Path, write_files: Write
) -> None:
    texts = make_documents(40, seed=1)
    one = prepared(tokens=500, code=write_files(tmp_path / "one", texts))["code"]
    other = prepared(tokens=500, web=write_files(tmp_path / "other", texts[::-1]))["web"]
    less = prepared(tokens=499, code=tmp_path / "one")["code"]
    assert one.dataset.fingerprint == other.dataset.fingerprint
    assert less.dataset.fingerprint != one.dataset.fingerprint


def test_a_set_that_is_smaller_than_asked_says_so(
    prepared: Callable[..., dict[str, EvalSet]], tmp_path: Path
) -> None:
    (tmp_path / "tiny.txt").write_text("ab")
    found = prepared(tokens=500, tiny=tmp_path / "tiny.txt")["tiny"]
    assert found.dataset.n_eval_tokens == 3  # with the end of the document
    (warning,) = found.warnings()
    assert "3 tokens, fewer than the 500" in warning


def test_prepared_sets_are_found_without_reading_their_text(
    prepared: Callable[..., dict[str, EvalSet]],
    training: tuple[DataSource, Dataset],
    tmp_path: Path,
    write_files: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settle(tmp_path / "train")
    folder = settle(write_files(tmp_path / "code", make_documents(40, seed=1)))
    source, dataset = training
    text = EvalText((str(folder),), 500)
    # The times of change are those of now, so the clock of the preparation is moved.
    monkeypatch.setattr(eval_sets, "UNSETTLED_S", -1e6)
    assert find_eval_set(text, source, dataset, tmp_path / "r") is None
    first = prepared(tokens=500, code=folder)["code"]
    monkeypatch.setattr(eval_sets, "spool_documents", None)
    assert prepared(tokens=500, code=folder)["code"].dataset == first.dataset
    found = find_eval_set(text, source, dataset, tmp_path / "r")
    assert found is not None
    assert found.fingerprint == first.dataset.fingerprint
    (folder / "0000.txt").write_text("changed")
    assert find_eval_set(text, source, dataset, tmp_path / "r") is None


def test_a_document_of_the_training_text_is_refused(
    prepared: Callable[..., dict[str, EvalSet]],
    training: tuple[DataSource, Dataset],
    tmp_path: Path,
    write_files: Write,
) -> None:
    folder = write_files(tmp_path / "code", make_documents(40, seed=1))
    _, dataset = training
    for index, text in enumerate(make_documents(80)[:12]):
        (folder / "copy.txt").write_text(text)
        if text.encode() not in train_documents(dataset):
            prepared(tokens=500, code=folder)  # held out, so not trained on
            continue
        with pytest.raises(DataError) as caught:
            prepared(tokens=500, code=folder)
        assert "evaluation set code, of which 1 document of 41" in caught.value.given
        assert str(folder / "copy.txt") in caught.value.given
        assert str(tmp_path / "train" / f"{index:04d}.txt") in caught.value.given
        assert "--eval-set code=PATH" in caught.value.do
    (folder / "copy.txt").unlink()
    prepared(tokens=500, code=folder)


def test_all_documents_shared_are_counted_and_some_named(
    prepared: Callable[..., dict[str, EvalSet]], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"and [0-9]+ more"):
        prepared(tokens=500, code=tmp_path / "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "evaluation set code: no text in"), (b"\xff\xfe\x00", "evaluation set code: ")],
)
def test_texts_that_cannot_be_used_name_their_set(
    prepared: Callable[..., dict[str, EvalSet]], tmp_path: Path, content: str | bytes, message: str
) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        prepared(code=path)
    assert message in caught.value.given
    with pytest.raises(DataError, match=r"evaluation set code: .*which does not exist"):
        prepared(code=tmp_path / "missing")


def test_a_set_is_cut_with_the_trained_tokenizer(tmp_path: Path, write_files: Write) -> None:
    folder = write_files(tmp_path / "train", make_documents(80))
    source = replace(source_of(folder), tokenizer="bpe:300")
    dataset = prepare(source, tmp_path / "r")
    own = write_files(tmp_path / "code", make_documents(40, seed=1))
    texts = {"code": EvalText((str(own),), 500)}
    trained = ((source, dataset),)
    (found,) = prepare_eval_sets(texts, source, trained, tmp_path / "r", lambda *_: None)
    manifest = found.dataset.manifest
    assert manifest.tokenizer_sha256 == dataset.manifest.tokenizer_sha256
    assert found.dataset.n_eval_tokens == 500
    assert 1.5 < (manifest.bytes_per_token or 0) < 6


def test_token_files_are_a_set_of_token_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("train.npy", "code.npy"):
        np.save(tmp_path / name, rng.integers(0, 50, 4000).astype("<u2"))
    (tmp_path / "text.txt").write_text("some text")
    source = DataSource(paths=(str(tmp_path / "train.npy"),), eval_tokens=500, vocab_size=50)
    dataset = prepare(source, tmp_path / "r")
    trained = ((source, dataset),)

    def sets_of(path: str, source: DataSource = source) -> EvalSet:
        texts = {"code": EvalText((str(tmp_path / path),), 600)}
        (found,) = prepare_eval_sets(texts, source, trained, tmp_path / "r", lambda *_: None)
        return found

    found = sets_of("code.npy")
    expected = np.load(tmp_path / "code.npy")[:600]
    assert np.array_equal(found.dataset.eval_sequences(599)[0], expected)
    assert any("not compared" in text for text in found.warnings())
    with pytest.raises(UsageError, match="Name the tokenizer"):
        sets_of("text.txt")
    np.save(tmp_path / "code.npy", rng.integers(50, 60, 4000).astype("<u2"))
    with pytest.raises(DataError, match="vocabulary"):
        sets_of("code.npy")


def test_token_files_are_no_set_of_text(
    prepared: Callable[..., dict[str, EvalSet]], tmp_path: Path
) -> None:
    np.save(tmp_path / "code.npy", np.zeros(100, dtype="<u2"))
    with pytest.raises(UsageError, match="Name the text itself"):
        prepared(code=tmp_path / "code.npy")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"code": "a"}, {"code": (("a",), None)}),
        ({"code": ["a", "b"]}, {"code": (("a", "b"), None)}),
        ({"code": {"paths": ["a"], "tokens": "64K"}}, {"code": (("a",), 64_000)}),
        ("code=a=b", {"code": (("a=b",), None)}),
        (["code=a", "web=b", "code=c"], {"code": (("a", "c"), None), "web": (("b",), None)}),
    ],
)
def test_the_forms_of_a_set(value: object, expected: dict[str, tuple[object, object]]) -> None:
    found = read_eval_sets(value)
    assert {name: (each["paths"], each["tokens"]) for name, each in found.items()} == expected


@pytest.mark.parametrize(
    "value",
    [
        *("code", {"code": ""}, {"code": []}, {"code": 3}, {"code": {"path": "a"}}, 7),
        *({"heldout": "a"}, {"a b": "a"}, {"code": {"paths": "a", "tokens": 0}}, {"A": "a"}),
    ],
)
def test_forms_that_are_refused(value: object) -> None:
    with pytest.raises(UsageError):
        read_eval_sets(value)

"""The fingerprint of a text: the same for every tokenizer, order and layout of files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scalelab.corpus.dataset import Dataset, open_dataset, prepare
from scalelab.corpus.mixing import prepare_mixture
from scalelab.corpus.shards import MANIFEST_NAME
from scalelab.corpus.text_identity import text_of
from tests.corpus.conftest import make_documents
from tests.corpus.prepared import source_of

Write = Callable[[Path, list[str]], Path]


@pytest.fixture
def folder(tmp_path: Path, write_files: Write) -> Path:
    return write_files(tmp_path / "text", make_documents(80))


def test_one_text_has_one_fingerprint_with_every_tokenizer_and_layout(
    folder: Path, tmp_path: Path, write_files: Write
) -> None:
    results = tmp_path / "r"
    other = write_files(tmp_path / "other", make_documents(80)[::-1])
    made = [
        prepare(source_of(folder), results),
        prepare(source_of(folder, tokenizer="bpe:300"), results),
        prepare(source_of(folder, eval_tokens=500), results),
        prepare(source_of(other), results),
    ]
    texts = {text_of(results / "data", each.fingerprint) for each in made}
    assert len(texts) == 1
    assert None not in texts
    assert len({each.fingerprint for each in made}) == 3
    longer = write_files(tmp_path / "longer", [*make_documents(80), "one more document"])
    assert _text(prepare(source_of(longer), results)) not in texts


def test_data_without_it_is_still_open_and_its_text_not_known(folder: Path, tmp_path: Path) -> None:
    made = prepare(source_of(folder), tmp_path / "r")
    manifest = made.folder / MANIFEST_NAME
    content = json.loads(manifest.read_text())
    del content["text_fingerprint"]
    manifest.write_text(json.dumps(content))
    assert open_dataset(made.folder).fingerprint == made.fingerprint
    assert _text(made) is None
    manifest.write_text("broken")
    assert _text(made) is None
    assert text_of(tmp_path / "r" / "data", "not-there") is None


def test_the_text_of_a_mixture_is_that_of_its_sources(
    folder: Path, tmp_path: Path, write_files: Write
) -> None:
    other = write_files(tmp_path / "other", make_documents(80, seed=1))
    mixed = [
        prepare_mixture(
            {"a": source_of(folder, tokenizer=name), "b": source_of(other, tokenizer=name)},
            tmp_path / "r",
        )
        for name in ("bytes", "bpe:300")
    ]
    texts = {text_of(tmp_path / "r" / "data", each.fingerprint) for each in mixed}
    assert len(texts) == 1
    assert None not in texts


def _text(made: Dataset) -> str | None:
    return text_of(made.folder.parent, made.fingerprint)

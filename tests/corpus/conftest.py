"""Small corpora with distinct documents."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

WORDS = "the a model of size law loss data token run curve grows with compute and falls slowly"


def make_documents(n: int, *, seed: int = 0, n_words: int = 60) -> list[str]:
    """Return n distinct texts of varying length; text i holds the word ``doc<i>``."""
    rng = np.random.default_rng(seed)
    words = WORDS.split()
    return [
        f"doc{seed}x{i} " + " ".join(rng.choice(words, size=int(rng.integers(5, 2 * n_words))))
        for i in range(n)
    ]


@pytest.fixture(name="make_documents", scope="session")
def make_documents_fixture() -> Callable[..., list[str]]:
    return make_documents


@pytest.fixture(scope="session")
def write_files() -> Callable[[Path, list[str]], Path]:
    """Write each text to its own file and return the folder."""

    def write(folder: Path, texts: list[str]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for i, text in enumerate(texts):
            (folder / f"{i:04d}.txt").write_text(text, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user of the machine may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def ordinary_user() -> Callable[[], object]:
    """A context in which permissions hold, also when the tests run as root."""

    @contextmanager
    def become() -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return become


@pytest.fixture
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the times of files that were written just now."""
    monkeypatch.setattr("scalelab.corpus.build.UNSETTLED_S", 0.0)


@pytest.fixture
def text(tmp_path: Path, write_files: Callable[[Path, list[str]], Path]) -> Path:
    """Return a folder of 80 documents."""
    return write_files(tmp_path / "text", make_documents(80))

"""Fixtures for runs on several ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from scalelab.corpus.dataset import Dataset
from scalelab.records.run_dir import RunDir
from tests.train.sharded.job import Job, starting


@pytest.fixture
def start(dataset: Dataset) -> Iterator[Callable[..., Job]]:
    """Return a function that starts a job of several ranks."""
    with starting(dataset.folder) as begin:
        yield begin


@pytest.fixture
def together(start: Callable[..., Job]) -> Callable[..., str]:
    """Return a function that makes an attempt with several ranks."""

    def make(run: RunDir, n_ranks: int, **options: Any) -> str:
        (status,) = start([run], n_ranks, **options).finish()
        return status

    return make

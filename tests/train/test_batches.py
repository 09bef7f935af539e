"""Batches on a GPU are loaded ahead of the steps; doubles stand in for pinned memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scalelab.corpus.dataset import Dataset
from scalelab.corpus.token_stream import TokenStream
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.train import batches
from scalelab.train.engine import Engine
from scalelab.train.loop import train
from scalelab.train.session import Session
from tests.train.outcome import curve

SHAPE = (2, 5)


class Event:
    """Double of ``torch.cuda.Event``: complete unless ``pending``."""

    def __init__(self, *, blocking: bool) -> None:
        assert blocking, "a thread that spins takes a core from the steps"
        self.is_complete = threading.Event()
        self.is_complete.set()

    def record(self) -> None:
        self.is_complete.set()

    def synchronize(self) -> None:
        assert self.is_complete.wait(100)


@pytest.fixture(autouse=True)
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    def pinned(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(batches, "_pinned", pinned)


def numbered(index: int, tokens: NDArray[np.integer]) -> None:
    tokens[...] = 1 + index


def test_batches_come_in_order_and_are_loaded_ahead() -> None:
    loaded: list[int] = []
    both = threading.Event()

    def load(index: int, tokens: NDArray[np.integer]) -> None:
        numbered(index, tokens)
        loaded.append(index)
        if len(loaded) == batches.N_BUFFERS:
            both.set()

    with batches.batches_ahead(load, SHAPE, 7) as take:
        assert both.wait(100)
        found = [int(take().tokens[0, 0]) for _ in range(7)]
    assert found == [1, 2, 3, 4, 5, 6, 7]
    assert loaded == [0, 1, 2, 3, 4, 5, 6]


def test_a_buffer_is_not_written_before_the_device_has_read_it() -> None:
    with batches.batches_ahead(numbered, SHAPE, 4) as take:
        first = take()
        first.copied.is_complete.clear()
        second = take()
        # The thread now has the first buffer back, and waits for its copy.
        assert not first.copied.is_complete.wait(0.05)
        assert (first.tokens == 1).all()
        assert (second.tokens == 2).all()
        first.copied.record()
        assert (take().tokens == 3).all()


def test_an_error_of_the_thread_reaches_the_loop() -> None:
    def load(index: int, tokens: NDArray[np.integer]) -> None:
        if index == 1:
            raise OSError("the file system is gone")
        numbered(index, tokens)

    with batches.batches_ahead(load, SHAPE, 4) as take:
        take()
        with pytest.raises(OSError, match="gone"):
            take()
    assert all(thread.name != "batches" for thread in threading.enumerate())


def test_the_thread_ends_with_the_loop() -> None:
    with batches.batches_ahead(numbered, SHAPE, 10**9) as take:
        take()
    assert all(thread.name != "batches" for thread in threading.enumerate())


@pytest.mark.parametrize("n_runs", [1, 3])
def test_a_run_has_the_same_bits_with_batches_loaded_ahead(
    make_run: Callable[..., RunDir],
    dataset: Dataset,
    execution: ExecutionSpec,
    monkeypatch: pytest.MonkeyPatch,
    n_runs: int,
) -> None:
    passes: list[int] = []
    read_rows = TokenStream.read_rows

    def counted(self: TokenStream, starts: Any, rows: Any) -> None:
        passes.append(len(rows))
        read_rows(self, starts, rows)

    monkeypatch.setattr(TokenStream, "read_rows", counted)
    found = {}
    for device in ("cpu", "cuda"):
        runs = [make_run(device, seed=seed) for seed in range(n_runs)]
        sessions = [Session(run, execution, {}, None) for run in runs]
        engine = Engine([session.spec for session in sessions], execution)
        for index, session in enumerate(sessions):
            session.use(dataset)
            engine.initialize(index)
        engine.execution = replace(execution, device=device)
        passes.clear()
        train(engine, sessions, lambda: None)
        found[device] = [curve(run) for run in runs]
        # One pass over the tokens for all runs of a step; the rest is the evaluation.
        batch_rows = n_runs * sessions[0].spec.batch_seqs
        assert passes.count(batch_rows) == sessions[0].spec.n_steps
        assert len(passes) == sessions[0].spec.n_steps + n_runs
    assert found["cuda"] == found["cpu"]

"""The batches of consecutive steps; for a GPU, a thread loads them ahead of the steps.

On a GPU, a step may take less time than its batch takes to load. Two pinned buffers take turns: the
thread fills one while the device reads the other, and the copy to the device is asynchronous. The
content of a batch depends only on seed and step, so the thread changes no result. On a CPU there is
no core to spare for a thread, and the batch is loaded when the step needs it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalelab.sweep.execution import ExecutionSpec

N_BUFFERS = 2

Load = Callable[[int, NDArray[np.integer]], None]
"""Writes the tokens of the n-th next step (0 is the next one) to an array."""


@dataclass(frozen=True, eq=False, slots=True)
class PinnedBatch:
    """A batch in pinned host memory.

    Attributes
    ----------
    tokens : Tensor of int32
        The device reads it; do not change it before ``copied``.
    copied : torch.cuda.Event
        Recorded by the step after its copy.
    """

    tokens: Tensor
    copied: torch.cuda.Event


def open_batches(
    execution: ExecutionSpec, load: Load, shape: tuple[int, ...], n_steps: int
) -> contextlib.AbstractContextManager[Callable[[], Any]]:
    """Give a function that returns the next batch, as `Engine.step` takes it.

    Parameters
    ----------
    execution : ExecutionSpec
        Of the engine: one GPU gets `batches_ahead`, others get `batches_on_demand`.
    load, shape, n_steps
        As in `batches_ahead`.
    """
    if execution.device == "cuda" and execution.n_devices == 1:
        return batches_ahead(load, shape, n_steps)
    return batches_on_demand(load, shape)


@contextlib.contextmanager
def batches_on_demand(
    load: Load, shape: tuple[int, ...]
) -> Iterator[Callable[[], NDArray[np.int64]]]:
    """Give a function that loads and returns the next batch, in an array that it uses again."""
    tokens = np.empty(shape, dtype=np.int64)
    n_taken = 0

    def take() -> NDArray[np.int64]:
        nonlocal n_taken
        load(n_taken, tokens)
        n_taken += 1
        return tokens

    yield take


@contextlib.contextmanager
def batches_ahead(
    load: Load, shape: tuple[int, ...], n_steps: int
) -> Iterator[Callable[[], PinnedBatch]]:
    """Give a function that returns the next batch, which a thread loads ahead of the step.

    The function raises what ``load`` raised. It may be called ``n_steps`` times, and each batch
    must be used by a step before the next call.

    Parameters
    ----------
    load : callable
        Called in the thread, once for each step in order.
    shape : tuple of int
        Of a batch.
    n_steps : int
        Number of batches.
    """
    buffers = [_pinned_batch(shape) for _ in range(N_BUFFERS)]
    free: queue.SimpleQueue[PinnedBatch] = queue.SimpleQueue()
    filled: queue.SimpleQueue[PinnedBatch | BaseException] = queue.SimpleQueue()
    is_closed = threading.Event()

    def fill() -> None:
        try:
            for index in range(n_steps):
                batch = free.get()
                if is_closed.is_set():
                    return
                batch.copied.synchronize()
                load(index, batch.tokens.numpy())
                filled.put(batch)
        except BaseException as error:
            filled.put(error)

    used: list[PinnedBatch] = []

    def take() -> PinnedBatch:
        if used:
            free.put(used.pop())
        batch = filled.get()
        if isinstance(batch, BaseException):
            raise batch
        used.append(batch)
        return batch

    for buffer in buffers:
        free.put(buffer)
    thread = threading.Thread(target=fill, name="batches", daemon=True)
    thread.start()
    try:
        yield take
    finally:
        is_closed.set()
        free.put(buffers[0])
        thread.join()


def _pinned_batch(shape: tuple[int, ...]) -> PinnedBatch:
    # A blocking event lets the thread sleep while it waits, and leaves its core to the steps.
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    return PinnedBatch(_pinned(shape), copied)


def _pinned(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, pin_memory=True)

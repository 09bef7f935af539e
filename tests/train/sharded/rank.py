"""The program of each rank in the tests of sharded runs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scalelab.sweep.execution import ExecutionSpec
from scalelab.train import loop, session
from scalelab.train.sharded import engine as sharded
from scalelab.train.sharded import group as distributed
from scalelab.train.sharded.optimizer import ShardedOptimizer
from tests.train.outcome import run_attempt

OPTIONS = ("stop_at", "pause_s", "faulty_rank", "drifting_rank")


def work(
    environment: Mapping[str, str],
    runs: Sequence[Path],
    dataset: Path,
    execution: ExecutionSpec,
    answer: Any,
    *,
    stop_at: int | None = None,
    pause_s: float = 0.0,
    faulty_rank: int | None = None,
    drifting_rank: int | None = None,
) -> None:
    """Attempt the runs, the last one up to a step.

    A rank may fail, the first be slow, or one compute gradients of what is whole everywhere a
    little differently.
    """
    os.environ.update(environment)
    torch.set_num_threads(1)
    loop.POLL_INTERVAL_S = 0.0
    steps = [0]
    statuses: list[str] = []
    original = session.Session.observe

    def observe(self: session.Session, *arguments: Any) -> str | None:
        time.sleep(pause_s)
        reason = original(self, *arguments)
        steps[0] = self.step
        return reason

    def should_stop() -> str | None:
        is_last = len(statuses) == len(runs) - 1
        return "enough" if stop_at is not None and is_last and steps[0] >= stop_at else None

    def fail(self: sharded.ShardedEngine, own: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    session.Session.observe = observe  # type: ignore[method-assign]
    rank = int(environment["RANK"])
    if rank == faulty_rank:
        sharded.ShardedEngine.step = fail  # type: ignore[assignment,method-assign]
    if rank == drifting_rank:
        step = ShardedOptimizer.step

        def drift(self: ShardedOptimizer, rate: float) -> torch.Tensor:
            for name, weight in self.weights.items():
                if not self.shards.is_split(name):
                    assert weight.grad is not None
                    weight.grad.neg_()  # AdamW would hide a change of scale
            return step(self, rate)

        ShardedOptimizer.step = drift  # type: ignore[method-assign]
    for run in runs:
        steps[0] = 0
        statuses.append(run_attempt(run, dataset, execution, should_stop=should_stop))
    answer.send(statuses)
    if rank == 0:
        distributed.dismiss(execution)
    else:
        assert distributed.follow(execution) is None

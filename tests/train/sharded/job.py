"""Jobs of several ranks, for the tests of sharded runs."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from tests.train.sharded.rank import OPTIONS, work

CONTEXT = multiprocessing.get_context("forkserver")
# fully_shard imports torch._dynamo at its first use, which takes 1 s in each rank.
CONTEXT.set_forkserver_preload(["tests.train.sharded.rank", "torch._dynamo"])


@dataclass
class Job:
    """Ranks that train a list of runs, one after the other."""

    ranks: list[Any]
    answers: list[Any]

    def finish(self) -> list[str]:
        """Return how the runs ended; all ranks must agree."""
        assert self.exit_codes() == [0] * len(self.ranks)
        found = [answer.recv() for answer in self.answers]
        assert all(statuses == found[0] for statuses in found)
        statuses: list[str] = found[0]
        return statuses

    def exit_codes(self) -> list[int]:
        for process in self.ranks:
            process.join(300)
        return [process.exitcode for process in self.ranks]


def _free_port() -> int:
    """Return a port that stays free until rank 0 takes it.

    The system gives other programs, such as a browser beside these tests, ports from 32768 on;
    processes of a parallel test run begin at different numbers.
    """
    for number in itertools.count(os.getpid() * 7):
        port = 20_000 + number % 12_000
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise AssertionError


@contextlib.contextmanager
def starting(dataset: Path) -> Iterator[Callable[..., Job]]:
    """Give a function that starts a job; its options are those of `work` and of ExecutionSpec."""
    started: list[Any] = []

    def begin(runs: list[RunDir], n_ranks: int, **options: Any) -> Job:
        own = {name: options.pop(name) for name in list(options) if name in OPTIONS}
        execution = ExecutionSpec(metrics_interval_steps=4, step="direct", **options)
        port = _free_port()
        job = Job([], [])
        for rank in range(n_ranks):
            receiver, sender = CONTEXT.Pipe(duplex=False)
            environment = {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(n_ranks),
            }
            paths = [run.path for run in runs]
            words = (environment, paths, dataset, execution, sender)
            job.ranks.append(CONTEXT.Process(target=work, args=words, kwargs=own))
            job.answers.append(receiver)
            job.ranks[-1].start()
            sender.close()
        started.extend(job.ranks)
        return job

    try:
        yield begin
    finally:
        for process in started:
            if process.exitcode is None:
                process.kill()
                process.join()

"""One run on all processes of a job: rank 0 decides, the other ranks follow.

Only rank 0 uses the run folder, its claim, the clock and the signals. It runs the ordinary training
loop with a `GroupEngine`, which announces each call to the other ranks. They wait in `follow`, so
all ranks agree on each step, checkpoint and end. The other ranks do not read the dataset; rank 0
sends each its share of the batch.

Announcements and tokens travel between CPUs (gloo), gradients and weights between devices.
"""

from __future__ import annotations

import contextlib
import enum
import json
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from scalelab.sweep.devices import require_multi_device
from scalelab.sweep.execution import ExecutionSpec, execution_from_mapping
from scalelab.sweep.run_spec import RunSpec, run_spec_from_mapping
from scalelab.train.engine import Readings, require_device
from scalelab.train.execution import is_out_of_memory
from scalelab.train.host import torch_settings
from scalelab.train.sharded.engine import ShardedEngine
from scalelab.train.sharded.ranks import RankFailedError, RanksLostError, own_ranks
from scalelab.train.sharded.shards import new_meshes

REPORT_WAIT_S = 5.0
"""Seconds that rank 0 waits for the error report of a rank that ended."""
_NETWORK_WORDS = ("gloo", "NCCL", "Connection", "Broken pipe", "Socket")
_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
_HEADER_LENGTH = 3

_stores: list[Store] = []
"""Store for the ranks' error reports; one element once this process has joined the group."""


class _Call(enum.IntEnum):
    BEGIN = enum.auto()
    INITIALIZE = enum.auto()
    LOAD = enum.auto()
    STEP = enum.auto()
    STATE = enum.auto()
    EVALUATE = enum.auto()
    EVALUATE_AVERAGE = enum.auto()
    END = enum.auto()
    DISMISS = enum.auto()


class GroupEngine:
    """Engine of rank 0 for one run on all ranks (`scalelab.train.loop.RunsEngine`).

    Parameters
    ----------
    spec : RunSpec
        The run.
    execution : ExecutionSpec
        How the steps are executed.

    Raises
    ------
    UsageError
        When the ranks cannot share the run.
    RankFailedError
        When another rank failed and reported why. All methods can raise it.
    RanksLostError
        When another rank ended without a report. All methods can raise it.
    """

    def __init__(self, spec: RunSpec, execution: ExecutionSpec) -> None:
        self.specs = (spec,)
        self.execution = execution
        self._measured: list[Tensor] = []
        # Check before announcing the run: after such an error the ranks still agree.
        require_multi_device(spec, execution)
        with _reporting_ranks():
            _join(execution)
            _announce(_Call.BEGIN)
            _send_text(json.dumps({"spec": asdict(spec), "execution": asdict(execution)}))
            self._sharded = ShardedEngine(spec, execution)

    def initialize(self, run: int) -> None:
        """Set the run's weights to their initial values."""
        with _reporting_ranks():
            _announce(_Call.INITIALIZE)
            self._sharded.initialize()

    def load_state(self, run: int, state: dict[str, Any]) -> None:
        """Restore the run from a state of this or of a single-device engine."""
        with _reporting_ranks():
            _announce(_Call.LOAD, state["step"])
            self._sharded.load_state(state["step"], state)

    def state(self, run: int) -> dict[str, Any]:
        """Return the state that determines the rest of the run, as of a single-device engine."""
        with _reporting_ranks():
            _announce(_Call.STATE)
            return self._sharded.state()

    def step(self, tokens: NDArray[np.int64]) -> None:
        """Take one optimizer step with tokens of shape (B, T + 1)."""
        with _reporting_ranks():
            _announce(_Call.STEP, *tokens.shape)
            own = _scatter(self._sharded, torch.from_numpy(tokens), *tokens.shape)
            self._measured.append(self._sharded.step(own))

    def read(self) -> Readings:
        """Return and clear the readings of the steps since the last call."""
        with _reporting_ranks():
            measured, self._measured = self._measured, []
            values = torch.stack(measured).cpu() if measured else torch.zeros(0, 3)
        losses, norms, squares = values.numpy().T[:, :, None]
        return Readings(
            losses=losses,
            norms=norms,
            micro_squares=squares if self._sharded.n_micro > 1 else None,
        )

    def evaluate(self, run: int, sequences: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the mean loss of each sequence (n, T + 1), nats per token, summed in fp64."""
        return self._evaluate(_Call.EVALUATE, sequences)

    def evaluate_average(
        self, run: int, sequences: NDArray[np.int64]
    ) -> NDArray[np.float64] | None:
        """Return `evaluate` with the weight average; None if the run does not keep one."""
        if not self.specs[0].ema_decay:
            return None
        return self._evaluate(_Call.EVALUATE_AVERAGE, sequences)

    def _evaluate(self, call: _Call, sequences: NDArray[np.int64]) -> NDArray[np.float64]:
        n_groups = self.execution.n_data_parallel
        n_each = -(-len(sequences) // n_groups)
        padded = np.resize(sequences, (n_each * n_groups, sequences.shape[1]))
        with _reporting_ranks():
            _announce(call, *padded.shape)
            own = _scatter(self._sharded, torch.from_numpy(padded), *padded.shape)
            means = _evaluated(self._sharded, call, own)
            parts = [torch.empty_like(means) for _ in range(self.execution.n_devices)]
            dist.gather(means, parts)
        # The ranks of a tensor-parallel group have the same sequences.
        firsts = parts[:: self.execution.tensor_parallel]
        return torch.cat(firsts).numpy()[: len(sequences)]


def end_run(statuses: Sequence[str], execution: ExecutionSpec) -> None:
    """Tell the other ranks how the run ended, whether or not it started."""
    with _reporting_ranks():
        _join(execution)
        _announce(_Call.END)
        _send_text(json.dumps(list(statuses)))


def dismiss(execution: ExecutionSpec) -> None:
    """Make the other ranks leave `follow` and the group; call it after rank 0's last run."""
    with _reporting_ranks():
        _join(execution)
        _announce(_Call.DISMISS)
        _leave()


def follow(execution: ExecutionSpec) -> tuple[str, ...] | None:
    """Execute rank 0's calls until its run ends; return how it ended, or None when dismissed.

    Only the execution's device is used; rank 0 sends the rest with the run. Ranks other than 0
    ignore stop signals, because a rank that exits by itself leaves the others waiting.

    Raises
    ------
    Exception
        Any failure of this rank, after it has reported the reason to rank 0.
    """
    ranks = own_ranks()
    before = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        _join(execution)
        return _follow()
    except Exception as error:
        if _stores:
            with contextlib.suppress(Exception):
                _stores[0].set(_report_key(ranks.rank), f"{type(error).__name__}: {error}")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow() -> tuple[str, ...] | None:
    engine: ShardedEngine | None = None
    with contextlib.ExitStack() as settings:
        while True:
            call, *shape = _receive_call()
            if call == _Call.DISMISS:
                _leave()
                return None
            if call == _Call.END:
                return tuple(json.loads(_receive_text()))
            if call == _Call.BEGIN:
                content = json.loads(_receive_text())
                execution = execution_from_mapping(content["execution"])
                settings.enter_context(torch_settings(execution))
                engine = ShardedEngine(run_spec_from_mapping(content["spec"]), execution)
                continue
            assert engine is not None
            _execute(engine, _Call(call), shape)


def _execute(engine: ShardedEngine, call: _Call, shape: Sequence[int]) -> None:
    if call == _Call.INITIALIZE:
        engine.initialize()
    elif call == _Call.LOAD:
        engine.load_state(shape[0], None)
    elif call == _Call.STATE:
        engine.state()
    elif call == _Call.STEP:
        engine.step(_scatter(engine, None, *shape))
    else:
        dist.gather(_evaluated(engine, call, _scatter(engine, None, *shape)))


def _evaluated(engine: ShardedEngine, call: _Call, own: Tensor) -> Tensor:
    return engine.evaluate_average(own) if call == _Call.EVALUATE_AVERAGE else engine.evaluate(own)


def _join(execution: ExecutionSpec) -> None:
    """Join the process group that the environment describes, unless already joined."""
    if _stores:
        return
    require_device(execution)
    if execution.device == "cuda":
        torch.cuda.set_device(own_ranks().local_rank % torch.cuda.device_count())
    store, rank, n_ranks = next(rendezvous("env://"))
    dist.init_process_group(
        _BACKENDS[execution.device],
        store=PrefixStore("group", store),
        rank=rank,
        world_size=n_ranks,
    )
    _stores.append(store)


def _leave() -> None:
    _stores.clear()
    new_meshes.cache_clear()
    dist.destroy_process_group()


def _announce(call: _Call, *numbers: int) -> None:
    header = torch.zeros(_HEADER_LENGTH, dtype=torch.int64)
    header[: len(numbers) + 1] = torch.tensor([int(call), *numbers])
    dist.broadcast(header, 0)


def _receive_call() -> list[int]:
    header = torch.zeros(_HEADER_LENGTH, dtype=torch.int64)
    dist.broadcast(header, 0)
    numbers: list[int] = header.tolist()
    return numbers


def _send_text(text: str) -> None:
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    dist.broadcast(torch.tensor([len(data)]), 0)
    dist.broadcast(data, 0)


def _receive_text() -> str:
    length = torch.zeros(1, dtype=torch.int64)
    dist.broadcast(length, 0)
    data = torch.zeros(int(length), dtype=torch.uint8)
    dist.broadcast(data, 0)
    return data.numpy().tobytes().decode()


def _scatter(engine: ShardedEngine, rows: Tensor | None, n_rows: int, length: int) -> Tensor:
    """Send each rank its share of the rows, which only rank 0 has; return this rank's."""
    execution = engine.execution
    own = torch.empty(n_rows // execution.n_data_parallel, length, dtype=torch.int64)
    shares = None
    if rows is not None:
        parts = [part.contiguous() for part in rows.chunk(execution.n_data_parallel)]
        shares = [part for part in parts for _ in range(execution.tensor_parallel)]
    dist.scatter(own, shares)
    return own.to(engine.device)


def _report_key(rank: int) -> str:
    return f"failed/{rank}"


@contextlib.contextmanager
def _reporting_ranks() -> Iterator[None]:
    """Convert a network error into the error of the rank that caused it."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        is_network = isinstance(error, dist.DistError) or any(
            word in str(error) for word in _NETWORK_WORDS
        )
        if not is_network or is_out_of_memory(error):
            raise
        reason = _report_of_another()
        if reason is not None:
            raise RankFailedError(reason) from error
        raise RanksLostError(f"a rank ended without a report: {error}") from error


def _report_of_another() -> str | None:
    """Return the error report of another rank, waiting up to `REPORT_WAIT_S` for it."""
    if not _stores:
        return None
    deadline = time.monotonic() + REPORT_WAIT_S
    while True:
        for rank in range(1, own_ranks().n_ranks):
            with contextlib.suppress(dist.DistError):
                if _stores[0].check([_report_key(rank)]):
                    return f"rank {rank}: {_stores[0].get(_report_key(rank)).decode()}"
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.05)

"""One run on all processes of a job: rank 0 decides, the others do as they are told.

Rank 0 alone has the run's folder, its claim, the clock and the signals. It trains by the ordinary
loop, with a `GroupEngine` whose every call is announced to the others, who wait in `follow`; so no
two ranks can disagree about a step, a checkpoint or the end. The others never touch the run's
folder and read no text: their share of a batch comes with the call.

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

from scalelab.sweep.run_spec import ExecutionSpec, RunSpec, build, run_spec_from_mapping
from scalelab.train.engine import Readings, require_device
from scalelab.train.host import torch_settings
from scalelab.train.sharded.engine import ShardedEngine, require_shardable
from scalelab.train.sharded.ranks import RankFailedError, RanksLostError, own_ranks
from scalelab.train.sharded.shards import new_meshes

REPORT_WAIT_S = 5.0
"""How long rank 0 waits for the reason of a rank that is gone."""
_NETWORK_WORDS = ("gloo", "NCCL", "Connection", "Broken pipe", "Socket")
_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
_HEADER_LENGTH = 3

_stores: list[Store] = []
"""Where ranks leave the reason of a failure; one once the group is joined."""


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
    """One run on all ranks as rank 0 sees it: the engine that the training loop works with.

    Parameters
    ----------
    spec : RunSpec
        The run.
    execution : ExecutionSpec
        How the steps are executed.

    Raises
    ------
    UsageError
        When the run cannot be spread over the ranks.
    RankFailedError
        When another rank failed; every method may raise it.
    RanksLostError
        When another rank is gone without a word; as above.
    """

    def __init__(self, spec: RunSpec, execution: ExecutionSpec) -> None:
        self.specs = (spec,)
        self.execution = execution
        self._measured: list[Tensor] = []
        # Before the others hear of it: such an error leaves the ranks in step.
        require_shardable(spec, execution)
        with _together():
            _join(execution)
            _announce(_Call.BEGIN)
            _send_text(json.dumps({"spec": asdict(spec), "execution": asdict(execution)}))
            self._sharded = ShardedEngine(spec, execution)

    def initialize(self, run: int) -> None:
        """Give the run its initial weights."""
        with _together():
            _announce(_Call.INITIALIZE)
            self._sharded.initialize()

    def load_state(self, run: int, state: dict[str, Any]) -> None:
        """Put the run where `state`, or that of a single device's engine, found it."""
        with _together():
            _announce(_Call.LOAD, state["step"])
            self._sharded.load_state(state["step"], state)

    def state(self, run: int) -> dict[str, Any]:
        """Return what determines the rest of the run, as a single device's engine would."""
        with _together():
            _announce(_Call.STATE)
            return self._sharded.state()

    def step(self, tokens: NDArray[np.int64]) -> None:
        """Take one optimizer step with tokens of shape (B, T + 1)."""
        with _together():
            _announce(_Call.STEP, *tokens.shape)
            own = _scatter(self._sharded, torch.from_numpy(tokens), *tokens.shape)
            self._measured.append(self._sharded.step(own))

    def read(self) -> Readings:
        """Return what the steps since the last call measured, and forget it."""
        with _together():
            measured, self._measured = self._measured, []
            values = torch.stack(measured).cpu() if measured else torch.zeros(0, 3)
        losses, norms, squares = values.numpy().T[:, :, None]
        return Readings(
            losses=losses,
            norms=norms,
            micro_squares=squares if self._sharded.n_micro > 1 else None,
        )

    def evaluate(self, run: int, sequences: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the mean loss of every sequence (n, T + 1), nats per token, summed in fp64."""
        return self._evaluate(_Call.EVALUATE, sequences)

    def evaluate_average(
        self, run: int, sequences: NDArray[np.int64]
    ) -> NDArray[np.float64] | None:
        """Return what `evaluate` does of the average of the weights; None where none is kept."""
        if not self.specs[0].ema_decay:
            return None
        return self._evaluate(_Call.EVALUATE_AVERAGE, sequences)

    def _evaluate(self, call: _Call, sequences: NDArray[np.int64]) -> NDArray[np.float64]:
        n_groups = self.execution.n_data_parallel
        n_each = -(-len(sequences) // n_groups)
        padded = np.resize(sequences, (n_each * n_groups, sequences.shape[1]))
        with _together():
            _announce(call, *padded.shape)
            own = _scatter(self._sharded, torch.from_numpy(padded), *padded.shape)
            means = _evaluated(self._sharded, call, own)
            parts = [torch.empty_like(means) for _ in range(self.execution.n_devices)]
            dist.gather(means, parts)
        # The ranks of a tensor-parallel group have the same sequences.
        firsts = parts[:: self.execution.tensor_parallel]
        return torch.cat(firsts).numpy()[: len(sequences)]


def end_run(statuses: Sequence[str], execution: ExecutionSpec) -> None:
    """Tell the other ranks that the run is over and how it ended, begun or not."""
    with _together():
        _join(execution)
        _announce(_Call.END)
        _send_text(json.dumps(list(statuses)))


def dismiss(execution: ExecutionSpec) -> None:
    """Let the other ranks leave `follow` for good; for the end of rank 0's work."""
    with _together():
        _join(execution)
        _announce(_Call.DISMISS)
        _leave()


def follow(execution: ExecutionSpec) -> tuple[str, ...] | None:
    """Do what rank 0 says until its run ends; return how that was, None when dismissed.

    Of the execution only the device counts: how a run is executed comes with the run. Stop signals
    are for rank 0 alone: a rank that went by itself would leave the others hanging.

    Raises
    ------
    Exception
        Whatever went wrong, after rank 0 was told the reason.
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
    with contextlib.ExitStack() as switches:
        while True:
            call, *shape = _listen()
            if call == _Call.DISMISS:
                _leave()
                return None
            if call == _Call.END:
                return tuple(json.loads(_receive_text()))
            if call == _Call.BEGIN:
                content = json.loads(_receive_text())
                execution = build(ExecutionSpec, content["execution"])
                switches.enter_context(torch_settings(execution))
                engine = ShardedEngine(run_spec_from_mapping(content["spec"]), execution)
                continue
            assert engine is not None
            _obey(engine, _Call(call), shape)


def _obey(engine: ShardedEngine, call: _Call, shape: Sequence[int]) -> None:
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
    """Meet the other ranks where the environment says, unless that was done."""
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


def _listen() -> list[int]:
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
    """Give every rank its group's share of rows, which rank 0 has."""
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
def _together() -> Iterator[None]:
    """Say of an error that came from another rank what happened there."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        is_network = isinstance(error, dist.DistError) or any(
            word in str(error) for word in _NETWORK_WORDS
        )
        if not is_network or isinstance(error, torch.OutOfMemoryError):
            raise
        reason = _reason_of_another()
        if reason is not None:
            raise RankFailedError(reason) from error
        raise RanksLostError(f"a rank is gone: {error}") from error


def _reason_of_another() -> str | None:
    """Return what another rank left before it went, waiting a moment for it."""
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

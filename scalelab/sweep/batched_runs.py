"""Which runs share their steps: those of one shape, where a calibration says that it pays. Pure.

A pack of K runs is one step for all of them, so it saves what a step costs beside its products. A
larger pack is not taken where it would leave workers without a run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

from scalelab.sweep.run_spec import ExecutionSpec, RunSpec
from scalelab.sweep.trunk import predecessors
from scalelab.theory.accounting import count_params

BATCHED_SIZES = (2, 4, 8, 16)
"""Sizes that a calibration tries, as long as they become faster."""
GAIN_MIN = 1.1
"""Least gain for which runs are packed: a timing is known to a few per cent."""


SMALL_PARAMS = {"cpu": 100_000, "cuda": 3_000_000}
"""Largest models of which packs are timed: above, batching was never faster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchedRuns:
    """How a run is packed.

    Attributes
    ----------
    size : int
        Most runs in its step, itself included.
    gain : float
        Speed of a worker with so many over that with one.
    """

    size: int = 1
    gain: float = 1.0


def batch_key(spec: RunSpec) -> tuple[Hashable, ...]:
    """Return what runs have in common that can share a step: shape, batch, optimizer and text."""
    return (
        spec.shape,
        spec.seq_len,
        spec.batch_seqs,
        spec.z_loss,
        spec.ema_decay,
        spec.optimizer,
        spec.parametrization,
        spec.precision,
        spec.data_fingerprint,
    )


def is_small(spec: RunSpec, execution: ExecutionSpec) -> bool:
    """Say whether a run is so small that timing packs of it is worth the time."""
    return count_params(spec.shape).total <= SMALL_PARAMS[execution.device]


def equal_runs(specs: Iterable[RunSpec]) -> dict[str, int]:
    """Return, by run_id, how many of the runs could share its step, itself included.

    Branches of a trunk are trained apart: each starts where another left off.
    """
    runs = {spec.run_id: spec for spec in specs}
    before = predecessors(runs.values())
    on_trunks = {spec.run_id for spec in before.values()}.union(before)
    keys = {run_id: batch_key(spec) for run_id, spec in runs.items() if run_id not in on_trunks}
    n_equal = Counter(keys.values())
    return {run_id: n_equal[keys[run_id]] if run_id in keys else 1 for run_id in runs}


def choose_batched_runs(
    specs: Iterable[RunSpec], gains_of: Callable[[RunSpec], Mapping[int, float]], n_workers: int
) -> dict[str, BatchedRuns]:
    """Return how each run is packed, by run_id.

    Parameters
    ----------
    specs : iterable of RunSpec
        The runs that are left to train.
    gains_of : callable
        What a calibration measured for a run's step: gain by size, empty where nothing was.
    n_workers : int
        Workers that train them.
    """
    specs = list(specs)
    n_equal = equal_runs(specs)
    return {
        spec.run_id: best_batching(n_equal[spec.run_id], gains_of(spec), n_workers)
        for spec in specs
    }


def best_batching(n_equal: int, gains: Mapping[int, float], n_workers: int) -> BatchedRuns:
    """Return the batching with which so many equal runs are done first; alone unless it pays.

    A size between two measured ones is taken to gain what the smaller of them does.
    """

    def rounds(batching: BatchedRuns) -> float:
        n_packs = math.ceil(n_equal / batching.size)
        return math.ceil(n_packs / n_workers) * batching.size / batching.gain

    alone = best = BatchedRuns()
    for size in range(2, math.ceil(n_equal / n_workers) + 1):
        measured = [known for known in gains if known <= size]
        if measured and size <= max(gains):
            batching = BatchedRuns(size=size, gain=gains[max(measured)])
            best = min(best, batching, key=rounds)
    return best if rounds(alone) >= GAIN_MIN * rounds(best) else alone

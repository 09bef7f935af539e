"""Choice of batched runs: runs of equal shape that train in one step, where that is faster.

K batched runs take one step together, which saves the fixed cost of K - 1 steps. The choice keeps
all workers busy and uses the gains that a calibration measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.trunk import predecessors
from scalelab.theory.accounting import count_params

BATCHED_SIZES = (2, 4, 8, 16)
"""Numbers of batched runs that a calibration tries, until speed stops rising."""
GAIN_MIN = 1.1
"""Minimum speed gain for batching; timings are accurate to a few per cent."""

EQUAL_FIELDS = (
    *("shape", "seq_len", "batch_seqs", "precision"),
    *("balance_weight", "router_z_weight"),
    *("z_loss", "logit_softcap", "is_document_masked", "end_token"),
    *("ema_decay", "optimizer", "parametrization"),
)
"""Fields in which batched runs must agree; they must also train on the same data."""
SMALL_PARAMS = {"cpu": 100_000, "cuda": 3_000_000}
"""Largest models, in parameters, for which batching is timed; it never helped larger ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchedRuns:
    """How many runs share the step of a run.

    Attributes
    ----------
    size : int
        Maximum number of runs in the step, including the run itself.
    gain : float
        Speed of a worker with this many batched runs, relative to one run.
    """

    size: int = 1
    gain: float = 1.0


def batch_key(spec: RunSpec) -> tuple[Hashable, ...]:
    """Return what must be equal for runs to share a step: `EQUAL_FIELDS` and the data."""
    return (*(getattr(spec, name) for name in EQUAL_FIELDS), spec.data_fingerprint)


def is_small(spec: RunSpec, execution: ExecutionSpec) -> bool:
    """Return whether a run is small enough for batching to be timed."""
    return count_params(spec.shape).total <= SMALL_PARAMS[execution.device]


def equal_runs(specs: Iterable[RunSpec]) -> dict[str, int]:
    """Return, by run_id, how many of the runs could share its step, including itself.

    Branches of a trunk are not batched, because each starts from the state of another branch.
    Neither are runs in fp8, whose products are of single matrices.
    """
    runs = {spec.run_id: spec for spec in specs}
    before = predecessors(runs.values())
    on_trunks = {spec.run_id for spec in before.values()}.union(before)
    keys = {
        run_id: batch_key(spec)
        for run_id, spec in runs.items()
        if run_id not in on_trunks and spec.precision != "fp8"
    }
    n_equal = Counter(keys.values())
    return {run_id: n_equal[keys[run_id]] if run_id in keys else 1 for run_id in runs}


def choose_batched_runs(
    specs: Iterable[RunSpec],
    gains_of: Callable[[RunSpec], Mapping[int, float]],
    n_workers: int,
    *,
    most: int = 0,
) -> dict[str, BatchedRuns]:
    """Return the batching of each run, by run_id.

    Parameters
    ----------
    specs : iterable of RunSpec
        Runs that remain to be trained.
    gains_of : callable
        Measured gains of a run's step by number of batched runs; empty if not measured.
    n_workers : int
        Workers that train at once.
    most : int
        Maximum number of runs in a step; 0 for no limit.
    """
    specs = list(specs)
    n_equal = equal_runs(specs)
    return {
        spec.run_id: best_batching(n_equal[spec.run_id], gains_of(spec), n_workers, most=most)
        for spec in specs
    }


def best_batching(
    n_equal: int, gains: Mapping[int, float], n_workers: int, *, most: int = 0
) -> BatchedRuns:
    """Return the batching that finishes ``n_equal`` equal runs first; one run per step if no gain.

    A size between two measured sizes gets the gain of the smaller one. ``most`` limits the size.
    """

    def rounds(batching: BatchedRuns) -> float:
        n_steps = math.ceil(n_equal / batching.size)
        return math.ceil(n_steps / n_workers) * batching.size / batching.gain

    alone = best = BatchedRuns()
    largest = math.ceil(n_equal / n_workers)
    for size in range(2, (min(largest, most) if most else largest) + 1):
        measured = [known for known in gains if known <= size]
        if measured and size <= max(gains):
            batching = BatchedRuns(size=size, gain=gains[max(measured)])
            best = min(best, batching, key=rounds)
    return best if rounds(alone) >= GAIN_MIN * rounds(best) else alone

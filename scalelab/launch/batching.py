"""Choosing the batched runs of a job: those that are faster in one step on the job's device."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Sequence

from scalelab.errors import SpecError
from scalelab.launch.calibration import batching_gains
from scalelab.launch.reconcile import MAX_LOST_ATTEMPTS
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results
from scalelab.sweep.batched_runs import batch_key, choose_batched_runs, equal_runs, is_small
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec

SECONDS_PER_SIZE = 0.25


def batched_groups(
    run_ids: Sequence[str], results: Results, execution: ExecutionSpec
) -> list[list[str]]:
    """Return the runs of a job in order, with batched runs in one group.

    A finished run, or a run whose spec cannot be read, is a group by itself.
    """
    specs: dict[str, RunSpec] = {}
    for run_id in run_ids:
        with contextlib.suppress(SpecError):
            if results.run(run_id).accepted() is None:
                specs[run_id] = results.run(run_id).read_spec()
    sizes = batch_sizes(list(specs.values()), execution, n_workers=1)
    groups: list[list[str]] = []
    unfilled: dict[Hashable, list[str]] = {}
    for run_id in run_ids:
        size = 1
        if run_id in sizes:
            size = batched_runs_kept(results.run(run_id), sizes[run_id])
        if size == 1:
            groups.append([run_id])
            continue
        key = (batch_key(specs[run_id]), size)
        if key not in unfilled:
            groups.append(unfilled.setdefault(key, []))
        unfilled[key].append(run_id)
        if len(unfilled[key]) == size:
            del unfilled[key]
    return groups


def batch_sizes(
    specs: Sequence[RunSpec], execution: ExecutionSpec, n_workers: int
) -> dict[str, int]:
    """Return the number of batched runs in the step of each run, by run_id.

    Times steps where several small runs could be batched. Runs of a user's program never are.
    """
    if execution.program is not None:
        return {}
    n_equal = equal_runs(specs)
    gains: dict[Hashable, dict[int, float]] = {}
    for spec in specs:
        is_alone = n_equal[spec.run_id] == 1 or execution.batched_runs == 1
        if not is_alone and batch_key(spec) not in gains and is_small(spec, execution):
            gains[batch_key(spec)] = batching_gains(spec, execution, SECONDS_PER_SIZE)
    batches = choose_batched_runs(
        specs,
        lambda spec: gains.get(batch_key(spec), {}),
        n_workers=n_workers,
        most=execution.batched_runs,
    )
    return {run_id: batch.size for run_id, batch in batches.items()}


def batched_runs_kept(run: RunDir, size: int) -> int:
    """Return the largest number of runs in a step of a run, the same as in its first attempt.

    With the ``direct`` step batching changes no bit of the result, so the number may change. After
    repeated lost attempts the run is trained alone, so that it cannot kill other runs.
    """
    n_lost = sum("ended" not in attempt.read_note() for attempt in run.attempts())
    if n_lost >= MAX_LOST_ATTEMPTS - 1:
        return 1
    begun = run.begun_execution()
    if not begun or begun.get("step") == "direct":
        return size
    return int(begun.get("batched_runs") or 1)

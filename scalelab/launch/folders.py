"""Train the planned runs of a sweep on a machine that has only torch, Triton and NumPy.

Plan with ``scalelab sweep .. --plan-only`` where scalelab is installed, and copy the results folder
to the other machine. There, from a checkout of the source::

    PYTHONPATH=.:kernels python -m scalelab.launch.folders RESULTS --sweep NAME

Bring the folder back with ``scalelab merge``, then ``scalelab fit``. The local launcher's
workers train the runs, those with the fewest FLOPs first, so that a sweep that is stopped early has
whole budgets. Run the same command again to continue.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scalelab.errors import EXIT_OK, DataError, RunsFailedError, ScalelabError
from scalelab.launch.base import LaunchReport, LaunchRequest, LaunchView
from scalelab.launch.batching import batch_sizes
from scalelab.launch.devices import gpu_slots, worker_slots
from scalelab.launch.local.pool import launch_local
from scalelab.launch.programs.source import saved_program
from scalelab.launch.worker import EXIT_STOPPED
from scalelab.records.files import read_json
from scalelab.records.sweep_dir import EXECUTION_FILE, Results
from scalelab.sweep.execution import (
    AUTO,
    ExecutionSpec,
    execution_from_mapping,
    representative_specs,
)
from scalelab.sweep.run_size import planned_flops
from scalelab.units import plural


def train_folders(
    results: Results,
    sweep: str,
    *,
    device: str | None = None,
    n_workers: int | None = None,
    deadline_s: float | None = None,
) -> LaunchReport:
    """Train the unfinished runs of a planned sweep on this machine.

    Parameters
    ----------
    results : Results
        With the sweep's plan, run folders and tokens.
    sweep : str
        Name of the sweep.
    device : str, optional
        ``cpu`` or ``cuda``; default: ``cuda`` if there is a GPU.
    n_workers : int, optional
        Runs at the same time; default one for each GPU or core.
    deadline_s : float, optional
        Seconds after which runs save a checkpoint and stop.

    Raises
    ------
    DataError
        If there is no such sweep.
    UsageError
        If another process launches it, or there is no such device.
    """
    ends_s = None if deadline_s is None else time.monotonic() + deadline_s
    saved = results.load_plan(sweep)
    specs = {run_id: results.run(run_id).read_spec() for run_id in saved.run_ids}
    flops = {run_id: planned_flops(spec) for run_id, spec in specs.items()}
    device = device or ("cuda" if gpu_slots() else "cpu")
    execution = requested_execution(results, sweep, device)
    todo = [spec for run_id, spec in specs.items() if results.run(run_id).accepted() is None]
    n_workers = n_workers or len(worker_slots(device))
    request = LaunchRequest(
        results=results,
        sweep=sweep,
        run_ids=tuple(sorted(specs, key=lambda run_id: flops[run_id])),
        execution=execution,
        n_workers=n_workers,
        batched_runs=batch_sizes(todo, execution, n_workers),
        qualify=representative_specs(specs.values()),
    )

    def watch(view: LaunchView) -> None:
        if view.note:
            n_done = sum(status == "done" for status in view.statuses.values())
            passed_s = time.time() - view.started_s
            print(f"{passed_s:5.0f} s  {n_done}/{len(view.statuses)} done  {view.note}", flush=True)
        if ends_s is not None and time.monotonic() >= ends_s:
            # The pool answers as to Ctrl-C: each worker saves a checkpoint.
            raise KeyboardInterrupt

    return launch_local(request, watch)


def requested_execution(results: Results, sweep: str, device: str) -> ExecutionSpec:
    """Return the execution that the sweep was planned with, on this device; default ``auto``."""
    content = read_json(results.sweep(sweep) / EXECUTION_FILE) or {}
    automatic = {"step": AUTO, "kernels": AUTO, "attention": AUTO}
    execution = execution_from_mapping({**automatic, **content, "device": device})
    return replace(execution, program=saved_program(results, sweep))


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if all runs ended, 75 if some are left, 3 if some failed."""
    parser = argparse.ArgumentParser(
        prog="python -m scalelab.launch.folders",
        description="Train the planned runs of a sweep with only torch and NumPy installed.",
    )
    parser.add_argument("results", type=Path, help="results folder with the plan and the tokens")
    parser.add_argument("--sweep", help="name of the sweep; default: the latest")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is a GPU")
    parser.add_argument("--workers", type=int, help="runs at the same time, for example 3")
    parser.add_argument("--deadline-s", type=float, help="stop after this time, for example 1500")
    given = parser.parse_args(words)
    results = Results(given.results.resolve())
    try:
        names = results.sweep_names()
        if not given.sweep and not names:
            raise DataError(
                f"no planned sweep in {results.path}",
                "a results folder with a plan",
                "Plan one with `scalelab sweep .. --plan-only` and copy its results folder.",
            )
        report = train_folders(
            results,
            given.sweep or names[0],
            device=given.device,
            n_workers=given.workers,
            deadline_s=given.deadline_s,
        )
    except ScalelabError as error:
        print(f"scalelab: {error}", file=sys.stderr)
        return error.exit_code
    counts = {status: report.count(status) for status in sorted(set(report.statuses.values()))}
    print(", ".join(plural(count, f"{status} run") for status, count in counts.items()))
    if counts.get("failed"):
        return RunsFailedError.exit_code
    return EXIT_STOPPED if report.is_interrupted else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())

"""The training speed that a sweep's cost is computed with: measured here, or that of a named GPU.

A measurement takes a few seconds; the result is kept in the user's cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from scalelab.errors import DataError, ScalelabError
from scalelab.launch.calibration import measure, read_cache
from scalelab.launch.devices import gpu_names, worker_slots
from scalelab.sweep.batched_runs import equal_runs
from scalelab.sweep.batched_runs import is_small as is_batchable
from scalelab.sweep.cost import Speed, step_key
from scalelab.sweep.execution import ExecutionSpec, default_precision, representative_specs
from scalelab.sweep.gpu_counts import describe_numbers, gpu_numbers
from scalelab.sweep.plan import Plan
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.speeds import named_speed, speed_from_calibration, unmeasured_cpu_speed
from scalelab.sweep.tables import SlurmTable
from scalelab.theory.hardware import Hardware, find_hardware, match_hardware

MEASURED_SPECS = 12
MEASURED_STEP_FLOPS = {"cpu": 3e9, "cuda": 1e13}
"""Largest steps that are timed for a plan, in FLOPs; a GPU takes milliseconds for 1e13."""


def default_device() -> str:
    """Return ``cuda`` if the driver reports a GPU, else ``cpu``."""
    return "cuda" if gpu_names() else "cpu"


def default_workers(device: str) -> int:
    """Return one worker per core or per GPU; raise UsageError if there is none."""
    return len(worker_slots(device))


def machine_speed(
    execution: ExecutionSpec, n_workers: int, *, precision: str | None = None
) -> Speed:
    """Return the cached speed of this machine, or a rough estimate marked as unmeasured.

    ``precision`` is that of the runs; its default depends on the device.
    """
    precision = precision or default_precision(execution.device)
    try:
        cached = read_cache(execution, n_workers, precision)
        speed = speed_from_calibration(cached, n_workers, hardware=_known_gpu(execution.device))
    except DataError:
        speed = _assumed_speed(execution.device, n_workers)
    return replace(speed, max_batched_runs=execution.batched_runs)


def slurm_speed(table: SlurmTable, execution: ExecutionSpec) -> Speed:
    """Return the speed of jobs on a cluster, without measuring anything.

    On GPUs it is the named device at its assumed utilisation, times the GPUs of a run. On CPUs it
    is the speed of this machine. Where runs have different numbers of GPUs, it is that of one GPU;
    `with_devices` adds those of each run.
    """
    if execution.device != "cuda":
        return machine_speed(execution, table.array_parallelism)
    hardware, numbers = find_hardware(table.gpu), gpu_numbers(table.gpus_per_run)
    if len(numbers) == 1:
        each = max(1, *numbers)
        return named_speed(hardware, table.array_parallelism, devices_each=each)
    speed = named_speed(hardware, table.array_parallelism)
    device = f"{describe_numbers(table.gpus_per_run)} x {speed.device}"
    return replace(speed, device=device)


def with_devices(speed: Speed, table: SlurmTable, gpus: Mapping[str, int]) -> Speed:
    """Return a speed of `slurm_speed` that knows the GPUs of each run by run_id."""
    is_per_run = len(gpu_numbers(table.gpus_per_run)) > 1
    return replace(speed, n_devices=gpus) if is_per_run else speed


def usd_per_gpu_hour(table: SlurmTable) -> float:
    """Return the price of one GPU-hour of a job, USD; 0 if jobs use no GPU."""
    return find_hardware(table.gpu).usd_per_hour if table.uses_gpus else 0.0


def speed_for(plan: Plan, execution: ExecutionSpec, n_workers: int) -> Speed:
    """Return this machine's speed; measure it now where the plan's steps were not timed before.

    Large steps take long to time: they are interpolated between the general points. A GPU compiles
    kernels for each shape, so it times only three shapes and those of batched runs. If a GPU cannot
    be measured, the speed is assumed, so that the runs can start.
    """
    precision = plan.rows[0].spec.precision if plan.rows else default_precision(execution.device)
    speed = machine_speed(execution, n_workers, precision=precision)
    if execution.device == "cpu" and "triton" in (execution.kernels, execution.attention):
        # Interpreted kernels take minutes for what a measurement times.
        return replace(speed, note=f"{speed.note}; interpreted kernels are much slower")
    n_equal = equal_runs(row.spec for row in plan.rows)
    wanted: dict[tuple[Any, ...], tuple[RunSpec, bool]] = {}
    for row in plan.rows:
        spec = row.spec
        is_small = row.flops / spec.n_steps <= MEASURED_STEP_FLOPS[execution.device]
        is_known = any(point.matches(spec) for point in speed.exact)
        is_batched = (
            execution.batched_runs != 1
            and n_equal[spec.run_id] > n_workers
            and is_batchable(spec, execution)
        )
        if (is_small and not is_known) or (is_batched and not speed.batching_gains(spec)):
            wanted.setdefault(step_key(spec), (spec, is_batched))
    if speed.is_measured and not wanted:
        return speed
    if execution.device == "cuda":
        chosen = representative_specs(row.spec for row in plan.rows)
        wanted = {key: one for key, one in wanted.items() if one[1] or one[0] in chosen}
        if speed.is_measured and not wanted:
            return speed
    specs = tuple(wanted.values())[:MEASURED_SPECS]
    try:
        return measure_machine_speed(
            execution, n_workers, specs, precision=precision, keeps_points=speed.is_measured
        )
    except ScalelabError as error:
        if execution.device != "cuda":
            raise
        return replace(speed, note=f"{speed.note}; not measured: {error.given}")


def measure_machine_speed(
    execution: ExecutionSpec,
    n_workers: int,
    specs: Sequence[tuple[RunSpec, bool]] = (),
    *,
    precision: str | None = None,
    keeps_points: bool = False,
) -> Speed:
    """Measure this machine's speed as `scalelab.launch.calibration.measure` and return it."""
    precision = precision or default_precision(execution.device)
    content = measure(execution, n_workers, specs, precision=precision, keeps_points=keeps_points)
    speed = speed_from_calibration(content, n_workers, hardware=_known_gpu(execution.device))
    return replace(speed, max_batched_runs=execution.batched_runs)


def _assumed_speed(device: str, n_workers: int) -> Speed:
    hardware = _known_gpu(device)
    return unmeasured_cpu_speed(n_workers) if hardware is None else named_speed(hardware, n_workers)


def _known_gpu(device: str) -> Hardware | None:
    names = gpu_names() if device == "cuda" else ()
    return match_hardware(names[0]) if names else None

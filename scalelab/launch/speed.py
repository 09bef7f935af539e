"""The training speed of this machine: measured once in a few seconds, kept in the user's cache.

The calibration runs as many workers as a sweep would, at the same time, because cores that are all
busy are slower than one alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from scalelab.errors import DataError, ScalelabError
from scalelab.launch.devices import gpu_names, worker_slots
from scalelab.records.files import write_atomically
from scalelab.records.machine import cpu_name
from scalelab.sweep.batched_runs import equal_runs
from scalelab.sweep.batched_runs import is_small as is_batchable
from scalelab.sweep.cost import Speed, named_speed, speed_from_calibration, unmeasured_cpu_speed
from scalelab.sweep.plan import Plan
from scalelab.sweep.run_spec import ExecutionSpec, RunSpec
from scalelab.sweep.spec import SlurmTable
from scalelab.theory.hardware import Hardware, find_hardware, match_hardware

CALIBRATION_TIMEOUT_S = 300
TRAINER_REVISION = 3
"""Raised when the trainer's speed changes: what was measured before is then measured again."""
MEASURED_SPECS = 12
MEASURED_STEP_FLOPS = 3e9
SECONDS_PER_POINT = 0.25
STEP_FIELDS = ("device", "step", "n_threads")
"""What tells one kind of step from another, as a calibration notes it."""
_PROGRAM = "from scalelab.launch.job import calibrate; calibrate()"


def default_device() -> str:
    """Return ``cuda`` where the driver shows a GPU, else ``cpu``."""
    return "cuda" if gpu_names() else "cpu"


def default_workers(device: str) -> int:
    """Return one worker a core, or one a GPU; UsageError where none is seen."""
    return len(worker_slots(device))


def machine_speed(device: str, n_workers: int) -> Speed:
    """Return the cached speed of this machine, or a rough one that says it was not measured."""
    try:
        return speed_from_calibration(
            _read_cache(device, n_workers), n_workers, hardware=_known_gpu(device)
        )
    except (OSError, ValueError, DataError):
        return unmeasured_cpu_speed(n_workers)


def slurm_speed(table: SlurmTable, execution: ExecutionSpec) -> Speed:
    """Return the speed that jobs of a cluster are reckoned with; nothing is measured for it here.

    On GPUs the named device at the stated utilisation, all of a run's GPUs together; on CPUs what
    this machine was measured to do.
    """
    if execution.device != "cuda":
        return machine_speed("cpu", table.array_parallelism)
    return named_speed(
        find_hardware(table.gpu),
        table.array_parallelism,
        devices_each=max(1, table.gpus_per_run),
    )


def usd_per_gpu_hour(table: SlurmTable) -> float:
    """Return the price of one of a job's GPUs, nothing where it asks for none."""
    return find_hardware(table.gpu).usd_per_hour if table.gpus_per_run else 0.0


def speed_for(plan: Plan, execution: ExecutionSpec, n_workers: int) -> Speed:
    """Return this machine's speed, measured now where the plan's own steps were not timed before.

    Steps so large that timing them would take long are reckoned from the general points.
    """
    speed = machine_speed(execution.device, n_workers)
    n_equal = equal_runs(row.spec for row in plan.rows)
    wanted: dict[tuple[int, ...], tuple[RunSpec, bool]] = {}
    for row in plan.rows:
        spec = row.spec
        is_small = row.flops / spec.n_steps <= MEASURED_STEP_FLOPS
        is_known = any(point.matches(spec) for point in speed.exact)
        is_packed = n_equal[spec.run_id] > n_workers and is_batchable(spec, execution)
        if (is_small and not is_known) or (is_packed and not speed.batching_gains(spec)):
            key = (spec.shape.d_model, spec.shape.n_layers, spec.seq_len, spec.batch_seqs)
            wanted.setdefault(key, (spec, is_packed))
    if speed.is_measured and not wanted:
        return speed
    specs = tuple(wanted.values())[:MEASURED_SPECS]
    return measure_machine_speed(execution, n_workers, specs, is_general_kept=speed.is_measured)


def measure_machine_speed(
    execution: ExecutionSpec,
    n_workers: int,
    specs: Sequence[tuple[RunSpec, bool]] = (),
    *,
    is_general_kept: bool = False,
) -> Speed:
    """Measure this machine's speed with all workers busy, cache it and return it.

    Parameters
    ----------
    execution : ExecutionSpec
        How runs are executed.
    n_workers : int
        Runs at once.
    specs : sequence of (RunSpec, bool)
        Runs whose own steps are timed besides the general points, and whether in packs too.
    is_general_kept : bool
        Whether general points that were measured before, for the same kind of step, are kept: they
        take most of the time.

    Raises
    ------
    ScalelabError
        When the trainer cannot run here.
    """
    device = execution.device
    slots = worker_slots(device)
    general = _known_points(execution, n_workers) if is_general_kept else []
    workers = []
    for index in range(n_workers):
        slot = slots[index % len(slots)]
        request = {
            "slot": slot if isinstance(slot, int) else None,
            "execution": asdict(execution),
            "specs": [asdict(spec) for spec, _ in specs],
            "is_packed": [is_packed for _, is_packed in specs],
            "is_general": not general,
            "seconds": SECONDS_PER_POINT,
        }
        environment = {"OMP_NUM_THREADS": "1"}
        if isinstance(slot, str):
            environment["CUDA_VISIBLE_DEVICES"] = slot
        workers.append((_start_calibration(environment), json.dumps(request)))
    # Each is fed before the first is waited for, so that all are measured at the same time.
    for worker, request_text in workers:
        assert worker.stdin is not None
        worker.stdin.write(request_text)
        worker.stdin.close()
        worker.stdin = None
    content = _median_of([_answer(worker) for worker, _ in workers])
    content["points"] = content["points"] or general
    earlier = _known_exact(device, n_workers)
    measured = {json.dumps(_key(point)): point for point in [*earlier, *content["exact"]]}
    content["exact"] = list(measured.values())
    path = cache_path(device, n_workers)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({**content, "measured_s": time.time()}, indent=1))
    return speed_from_calibration(content, n_workers, hardware=_known_gpu(device))


def _start_calibration(environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def _answer(worker: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = worker.communicate(timeout=CALIBRATION_TIMEOUT_S)
    if worker.returncode != 0:
        last = err.strip().splitlines()[-1] if err.strip() else "no message"
        raise ScalelabError(
            f"a calibration that failed: {last}",
            "a trainer that runs here",
            "Run `scalelab doctor`; pip install 'scalelab[train]' brings the trainer.",
        )
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


def _read_cache(device: str, n_workers: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(cache_path(device, n_workers).read_text(encoding="utf-8"))
    return content


def _known_exact(device: str, n_workers: int) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = _read_cache(device, n_workers)["exact"]
    except (OSError, ValueError, KeyError):
        return []
    return found


def _known_points(execution: ExecutionSpec, n_workers: int) -> list[dict[str, Any]]:
    """Return the general points of the same kind of step, nothing where none were measured."""
    try:
        content = _read_cache(execution.device, n_workers)
        earlier, points = content["execution"], content["points"]
    except (OSError, ValueError, KeyError):
        return []
    is_same = all(earlier.get(name) == getattr(execution, name) for name in STEP_FIELDS)
    return list(points) if is_same else []


def cache_path(device: str, n_workers: int) -> Path:
    """Return where the speed of this machine, trainer and number of workers is kept."""
    try:
        torch_version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch_version = "none"
    processors = "|".join(gpu_names()) if device == "cuda" else cpu_name()
    words = (platform.node(), processors, device, n_workers, torch_version, TRAINER_REVISION)
    key = "|".join(map(str, words))
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return base / "scalelab" / f"speed-{digest}.json"


def _known_gpu(device: str) -> Hardware | None:
    names = gpu_names() if device == "cuda" else ()
    return match_hardware(names[0]) if names else None


def _key(point: Mapping[str, Any]) -> list[Any]:
    return [point[name] for name in ("d_model", "n_layers", "seq_len", "batch_seqs")]


def _median_of(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one calibration with the median speeds of several made at the same time."""
    return {**answers[0], **{part: _median_points(answers, part) for part in ("points", "exact")}}


def _median_points(answers: list[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    return [
        {
            **same[0],
            **{
                name: statistics.median(point[name] for point in same)
                for name in ("flops_per_s", "tokens_per_s", "eval_tokens_per_s")
            },
            "batching_gains": _median_gains([point.get("batching_gains", {}) for point in same]),
        }
        for same in zip(*(answer[part] for answer in answers), strict=True)
    ]


def _median_gains(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the gains of the sizes that all workers tried."""
    sizes = [size for size in found[0] if all(size in gains for gains in found)]
    return {size: statistics.median(gains[size] for gains in found) for size in sizes}

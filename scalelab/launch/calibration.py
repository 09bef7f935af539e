"""Measuring the training speed of this machine, with as many busy workers as a sweep uses.

All workers are timed at once, because a core is slower while the other cores are busy.
"""

from __future__ import annotations

import contextlib
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

from scalelab.errors import ScalelabError
from scalelab.launch.devices import gpu_names, worker_slots
from scalelab.records.files import read_json, write_atomically
from scalelab.records.machine import SAFE_PATH, cache_folder, cpu_name, ctrl_c_blocked
from scalelab.sweep.execution import ExecutionSpec, execution_from_mapping
from scalelab.sweep.run_spec import RunSpec, run_spec_from_mapping

TIMEOUT_S = {"cpu": 300, "cuda": 600}
TRAINER_REVISION = 6
"""Increased when the trainer's speed changes, so that old measurements are repeated."""

SECONDS_PER_POINT = 0.15
STEP_FIELDS = ("device", "step", "kernels", "attention", "n_threads")
"""Execution fields that a calibration depends on, as requested."""

_PROGRAM = "from scalelab.launch.calibration import calibrate; calibrate()"


def measure(
    execution: ExecutionSpec,
    n_workers: int,
    specs: Sequence[tuple[RunSpec, bool]] = (),
    *,
    precision: str,
    keeps_points: bool = False,
) -> dict[str, Any]:
    """Measure with all workers busy, cache the calibration and return it.

    Parameters
    ----------
    execution : ExecutionSpec
        How runs are executed.
    n_workers : int
        Runs at once.
    specs : sequence of (RunSpec, bool)
        Runs to time in addition to the general points, and whether to time them batched too.
    precision : str
        Precision of the general points.
    keeps_points : bool
        Whether to reuse cached general points: they take most of the time.

    Raises
    ------
    ScalelabError
        If the trainer cannot run here.
    """
    slots = worker_slots(execution.device)
    cached = read_cache(execution, n_workers, precision)
    general = list(cached.get("points", [])) if keeps_points else []
    workers = []
    for index in range(n_workers):
        slot = slots[index % len(slots)]
        request = {
            "slot": slot if isinstance(slot, int) else None,
            "execution": asdict(execution),
            "specs": [asdict(spec) for spec, _ in specs],
            "is_batched": [is_batched for _, is_batched in specs],
            "is_general": not general,
            # Narrow models have no products in fp8.
            "precision": "bf16" if precision == "fp8" else precision,
            "seconds": SECONDS_PER_POINT,
        }
        environment = {**os.environ, **SAFE_PATH, "OMP_NUM_THREADS": "1"}
        if isinstance(slot, str):
            environment["CUDA_VISIBLE_DEVICES"] = slot
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", _PROGRAM]
        with ctrl_c_blocked():
            worker = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
            )
        workers.append((worker, json.dumps(request)))
    try:
        # Every worker gets its request before the first answer is awaited: all are timed at once.
        for worker, request_text in workers:
            assert worker.stdin is not None
            worker.stdin.write(request_text)
            worker.stdin.close()
            worker.stdin = None
        answers = [_answer(worker, TIMEOUT_S[execution.device]) for worker, _ in workers]
    finally:
        for worker, _ in workers:
            worker.kill()
            worker.wait()
    content = {**answers[0], "exact": _median_points(answers, "exact")}
    content["points"] = _median_points(answers, "points") or general
    exact = {json.dumps(_key(p)): p for p in [*cached.get("exact", []), *content["exact"]]}
    content["exact"] = list(exact.values())
    # Without a writable home, the speed is measured for each plan.
    with contextlib.suppress(OSError):
        path = cache_path(execution, n_workers, precision)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({**content, "measured_s": time.time()}, indent=1))
    return content


def calibrate() -> None:
    """Measure this process's training speed: a JSON request on stdin, the answer on stdout.

    The request holds ``slot`` (a core, or None), ``execution``, ``specs`` (runs to time),
    ``is_batched`` (for each, whether to time it batched too), ``is_general`` (whether to measure
    the general points), their ``precision`` and ``seconds`` for each measurement.
    """
    request = json.load(sys.stdin)
    if request["slot"] is not None:
        os.sched_setaffinity(0, {request["slot"]})

    from scalelab.train.calibrate import WIDTHS, measure_batched_runs, measure_run, measure_speed

    execution = execution_from_mapping(request["execution"])
    widths = WIDTHS[execution.device] if request["is_general"] else ()
    answer = measure_speed(
        execution,
        widths=widths,
        precision=request["precision"],
        seconds_per_point=request["seconds"],
    )
    answer["exact"] = []
    for content, is_batched in zip(request["specs"], request["is_batched"], strict=True):
        spec = run_spec_from_mapping(content)
        point = measure_run(spec, execution, request["seconds"])
        gains = measure_batched_runs(spec, execution, request["seconds"]) if is_batched else {}
        answer["exact"].append({**point, "batching_gains": gains})
    json.dump(answer, sys.stdout)


def batching_gains(spec: RunSpec, execution: ExecutionSpec, seconds: float) -> dict[int, float]:
    """Return the measured speedup of batching a run, by number of runs; empty if it fails on a GPU.

    On a GPU another process measures: an error there would end the use of the GPU in this one.
    """
    if execution.device == "cpu":
        from scalelab.train.calibrate import measure_batched_runs

        return measure_batched_runs(spec, execution, seconds)
    request = {
        "slot": None,
        "execution": asdict(execution),
        "specs": [asdict(spec)],
        "is_batched": [True],
        "is_general": False,
        "precision": spec.precision,
        "seconds": seconds,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S[execution.device],
            env={**os.environ, **SAFE_PATH},
        )
        found = json.loads(done.stdout.splitlines()[-1])["exact"][0]["batching_gains"]
    except (OSError, subprocess.SubprocessError, ValueError, LookupError) as error:
        print(f"scalelab: batched runs were not timed ({type(error).__name__})", file=sys.stderr)
        return {}
    return {int(size): gain for size, gain in found.items()}


def _answer(worker: subprocess.Popen[str], timeout_s: float) -> dict[str, Any]:
    try:
        out, err = worker.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise ScalelabError(
            f"a speed measurement of more than {timeout_s:g} s",
            "a trainer that runs on this machine",
            "Run `scalelab doctor`.",
        ) from None
    if worker.returncode != 0:
        last = err.strip().splitlines()[-1] if err.strip() else "no message"
        raise ScalelabError(
            f"a failed speed measurement: {last}",
            "a trainer that runs on this machine",
            "Run `scalelab doctor`. To install the trainer: pip install 'scalelab[train]'",
        )
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


def cache_path(execution: ExecutionSpec, n_workers: int, precision: str) -> Path:
    """Return the cache file for this machine, trainer revision, kind of step and workers."""
    try:
        torch_version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch_version = "none"
    processors = "|".join(gpu_names()) if execution.device == "cuda" else cpu_name()
    words = (platform.node(), processors, n_workers, precision, torch_version, TRAINER_REVISION)
    step = (getattr(execution, name) for name in STEP_FIELDS)
    key = "|".join(map(str, (*words, *step)))
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return cache_folder() / f"speed-{digest}.json"


def read_cache(execution: ExecutionSpec, n_workers: int, precision: str) -> dict[str, Any]:
    """Return the cached calibration; empty if there is none that can be read."""
    try:
        return read_json(cache_path(execution, n_workers, precision)) or {}
    except OSError:
        return {}


def _key(point: Mapping[str, Any]) -> list[Any]:
    step = [point[name] for name in ("d_model", "n_layers", "seq_len", "batch_seqs")]
    return [*step, *point.get("experts", ()), point.get("kind", "")]


def _median_points(answers: list[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    """Return the timed steps with the median speeds of the workers' answers."""
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
    """Return the median gain of each batch size that all workers timed."""
    sizes = [size for size in found[0] if all(size in gains for gains in found)]
    return {size: statistics.median(gains[size] for gains in found) for size in sizes}

"""Training speed of this machine, from a few seconds of real steps: the basis of a plan's cost."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.records.qualification import cached_verdicts, choice, read_verdict, with_way
from scalelab.sweep.batched_runs import BATCHED_SIZES
from scalelab.sweep.execution import ExecutionSpec, candidates, is_auto, step_kind
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params, train_flops_per_token
from scalelab.theory.shape import ModelShape
from scalelab.train.batches import open_batches
from scalelab.train.engine import EVAL_TOKENS_PER_BATCH, Engine, batch_shape
from scalelab.train.execution import on_this_cpu
from scalelab.train.host import device_name, torch_settings
from scalelab.train.qualify.platform import this_platform

WIDTHS = {"cpu": (16, 32, 64, 128, 256), "cuda": (128, 512)}
"""Widths of the general points; few on a GPU, where each compiles its kernels."""
WARMUP_STEPS = 2
STEPS_MIN = 3
TIMED_SCHEDULE: dict[str, Any] = {
    "n_steps": 1 << 10,
    "warmup_steps": 0,
    "schedule": "cosine",
    "decay_steps": 0,
    "lr_end_ratio": 0.0,
}
"""A short schedule: an engine computes the learning rates of all steps when it is built, and steps
beyond the last take the last one."""


def measure_speed(
    execution: ExecutionSpec | None = None,
    *,
    widths: Sequence[int] = WIDTHS["cpu"],
    n_layers: int = 4,
    seq_len: int = 128,
    batch_seqs: int = 16,
    vocab_size: int = 256,
    precision: str = "fp32",
    seconds_per_point: float = 0.5,
) -> dict[str, Any]:
    """Train a model of each width briefly and return its speed.

    Parameters
    ----------
    execution : ExecutionSpec
        How the runs are executed; None means one eager CPU thread.
    widths : sequence of int
        Values of d_model; `shape_of_width` gives the rest.
    n_layers, seq_len, batch_seqs, vocab_size : int
        Of all points.
    precision : str
        Of all points.
    seconds_per_point : float
        Duration of the timed steps of a point, after the warm-up.

    Returns
    -------
    dict
        ``device``: its name. ``points``: a dict for each width, as `measure_run` returns it.
    """
    execution = execution or ExecutionSpec()
    points = []
    for width in widths:
        shape = shape_of_width(width, n_layers=n_layers, vocab_size=vocab_size)
        spec = synthetic_run(shape, seq_len=seq_len, batch_seqs=batch_seqs)
        spec = replace(spec, precision=precision)
        points.append(measure_run(spec, execution, seconds_per_point))
    return {"device": device_name(execution.device), "points": points}


def measure_run(spec: RunSpec, execution: ExecutionSpec, seconds: float) -> dict[str, Any]:
    """Return the speed of a run's steps and of its evaluation, on random tokens.

    A request with ``auto`` is timed as `timed_execution`.

    Returns
    -------
    dict
        ``d_model``, ``n_layers``, ``n_params``, ``experts`` (`ModelShape.experts`), ``seq_len``,
        ``batch_seqs``, ``kind`` (`step_kind`), ``step_s`` (the median), ``tokens_per_s``,
        ``flops_per_s`` (exact convention), ``eval_tokens_per_s`` and ``start_s`` (to build and
        initialise the run).
    """
    rng = np.random.default_rng(0)
    execution = timed_execution(execution, spec)
    spec = replace(spec, **TIMED_SCHEDULE)
    with torch_settings(execution):
        started = time.perf_counter()
        engine = Engine([spec], execution)
        engine.initialize(0)
        start_s = time.perf_counter() - started
        tokens = rng.integers(0, spec.shape.vocab_size, batch_shape([spec]))
        times = _step_times(engine, tokens, seconds)
        # The batch of an evaluation does not depend on the batch of a step.
        n_seqs = max(1, EVAL_TOKENS_PER_BATCH[engine.device.type] // spec.seq_len)
        held_out = rng.integers(0, spec.shape.vocab_size, (n_seqs, spec.seq_len + 1))
        engine.evaluate(0, held_out)
        started = time.perf_counter()
        engine.evaluate(0, held_out)
        eval_s = time.perf_counter() - started
    step_s = statistics.median(times)
    tokens_per_s = spec.tokens_per_step / step_s
    flops = train_flops_per_token(spec.shape, spec.seq_len)["exact"]
    return {
        "d_model": spec.shape.d_model,
        "n_layers": spec.shape.n_layers,
        "n_params": count_params(spec.shape).total,
        "experts": spec.shape.experts,
        "seq_len": spec.seq_len,
        "batch_seqs": spec.batch_seqs,
        "kind": step_kind(spec),
        "step_s": step_s,
        "tokens_per_s": tokens_per_s,
        "flops_per_s": tokens_per_s * flops,
        "eval_tokens_per_s": n_seqs * spec.seq_len / eval_s,
        "start_s": start_s,
    }


def measure_batched_runs(
    spec: RunSpec,
    execution: ExecutionSpec,
    seconds: float,
    sizes: Sequence[int] = BATCHED_SIZES,
) -> dict[int, float]:
    """Return the speedup of batching a run, by the number of batched runs.

    The sizes are tried in order, until one is not faster than the best before it. A request with
    ``auto`` is timed as `timed_execution`.
    """
    alone = best = batched_speed(spec, replace(execution, batched_runs=1), seconds)
    gains = {}
    for size in sizes:
        speed = batched_speed(spec, replace(execution, batched_runs=size), seconds)
        gains[size] = speed / alone
        if speed <= best:
            break
        best = speed
    return gains


def timed_execution(request: ExecutionSpec, spec: RunSpec) -> ExecutionSpec:
    """Return the way in which a request is timed: the best that the user's cache knows to be right.

    Without a verdict on this GPU it is the planned way; on a CPU as `on_this_cpu` says.
    """
    request = on_this_cpu(request, spec)
    ways = candidates(request, spec)
    folder = cached_verdicts()
    if request.device != "cuda" or not is_auto(request) or folder is None:
        return ways[0]
    verdict = read_verdict(folder / this_platform(request.device).file_name)
    way = choice(verdict, spec, max(1, request.batched_runs), ways)
    return ways[0] if way is None else with_way(request, way)


def batched_speed(spec: RunSpec, execution: ExecutionSpec, seconds: float) -> float:
    """Return tokens/s of all batched runs together, on random tokens."""
    spec = replace(spec, **TIMED_SCHEDULE)
    execution = timed_execution(execution, spec)
    times = time_steps(spec, execution, execution.batched_runs, seconds)
    return execution.batched_runs * spec.tokens_per_step / statistics.median(times)


def time_steps(spec: RunSpec, execution: ExecutionSpec, n_runs: int, seconds: float) -> list[float]:
    """Train ``n_runs`` batched runs on random tokens; return the seconds of each timed step."""
    specs = [replace(spec, seed=seed) for seed in range(n_runs)]
    with torch_settings(execution):
        engine = Engine(specs, execution)
        for run in range(n_runs):
            engine.initialize(run)
        tokens = np.random.default_rng(0).integers(0, spec.shape.vocab_size, batch_shape(specs))
        return _step_times(engine, tokens, seconds)


def _step_times(
    engine: Engine, tokens: np.ndarray[Any, np.dtype[np.int64]], seconds: float
) -> list[float]:
    """Time steps for that many seconds, at least `STEPS_MIN`, after `WARMUP_STEPS` untimed ones.

    Of steps that take longer than that each, one is timed: they vary little.

    On a GPU a time is the mean of as many steps as a run takes between two readings of its losses,
    because host and device work at the same time in between.
    """
    is_gpu = engine.device.type == "cuda"
    n_each = engine.execution.metrics_interval_steps if is_gpu else 1

    def load(index: int, batch: NDArray[np.integer]) -> None:
        batch[...] = tokens

    times: list[float] = []

    def is_enough() -> bool:
        timed = times[WARMUP_STEPS:]
        least = 1 if timed and timed[0] * n_each > seconds else STEPS_MIN
        return len(timed) >= least and sum(timed) * n_each >= seconds

    with open_batches(engine.execution, load, tokens.shape, sys.maxsize) as next_batch:
        while not is_enough():
            started = time.perf_counter()
            for _ in range(n_each):
                engine.step(next_batch())
            engine.read()
            times.append((time.perf_counter() - started) / n_each)
    return times[WARMUP_STEPS:]


def shape_of_width(d_model: int, *, n_layers: int, vocab_size: int) -> ModelShape:
    """Return a shape of this width with d_head = d_model / 4 (8 to 64) and d_ff = 8/3 d_model."""
    d_head = max(8, min(64, d_model // 4)) // 2 * 2
    return ModelShape(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=max(1, d_model // d_head),
        d_head=d_head,
        d_ff=-(-d_model * 8 // 3 // 8) * 8,
        vocab_size=vocab_size,
    )


def synthetic_run(shape: ModelShape, *, seq_len: int, batch_seqs: int) -> RunSpec:
    """Return a run without a dataset, for timing; `dataclasses.replace` sets other fields."""
    return RunSpec(
        shape=shape,
        seq_len=seq_len,
        batch_seqs=batch_seqs,
        n_steps=10_000,
        lr=1e-3,
        warmup_steps=10,
        data_fingerprint="random",
        eval_fingerprint="random",
        tokenizer="random",
        seed=0,
    )

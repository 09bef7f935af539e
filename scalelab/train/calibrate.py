"""How fast this machine trains, from a few seconds of real steps: what the plan's cost rests on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scalelab.sweep.batched_runs import BATCHED_SIZES
from scalelab.sweep.run_spec import ExecutionSpec, RunSpec
from scalelab.theory.accounting import count_params, train_flops_per_token
from scalelab.theory.shape import ModelShape
from scalelab.train.engine import EVAL_TOKENS_PER_BATCH, Engine
from scalelab.train.host import device_name
from scalelab.train.switches import torch_switches

WIDTHS = (16, 32, 64, 128, 256)
WARMUP_STEPS = 2
STEPS_MIN = 3
PACK_STEPS_MAX = 1 << 14
"""Steps that timing a pack may take; a quarter of a second holds a few thousand at most."""


def measure_speed(
    execution: ExecutionSpec | None = None,
    *,
    widths: Sequence[int] = WIDTHS,
    n_layers: int = 4,
    seq_len: int = 128,
    batch_seqs: int = 16,
    vocab_size: int = 256,
    seconds_per_point: float = 0.5,
) -> dict[str, Any]:
    """Train each width for a moment and return its speed.

    Parameters
    ----------
    execution : ExecutionSpec
        How the runs would be executed; None is one eager CPU thread.
    widths : sequence of int
        Values of d_model; heads have 16 to 64 values.
    n_layers, seq_len, batch_seqs, vocab_size : int
        Of every point.
    seconds_per_point : float
        Of timed steps, after the first ones.

    Returns
    -------
    dict
        ``device``: its name. ``execution``: device, step and threads. ``points``: one dict a width
        with ``d_model``, ``n_layers``, ``n_params``, ``seq_len``, ``batch_seqs``, ``step_s`` (the
        median), ``tokens_per_s``, ``flops_per_s`` (exact convention), ``eval_tokens_per_s`` and
        ``start_s`` (building and initialising the run).
    """
    execution = execution or ExecutionSpec()
    points = []
    for width in widths:
        shape = shape_of_width(width, n_layers=n_layers, vocab_size=vocab_size)
        spec = synthetic_run(shape, seq_len=seq_len, batch_seqs=batch_seqs)
        points.append(measure_run(spec, execution, seconds_per_point))
    return {
        "device": device_name(execution.device),
        "execution": {
            "device": execution.device,
            "step": execution.step,
            "n_threads": execution.n_threads,
        },
        "points": points,
    }


def measure_run(spec: RunSpec, execution: ExecutionSpec, seconds: float) -> dict[str, float]:
    """Return the speed of one run's steps and of its evaluation, on random tokens."""
    with torch_switches(execution):
        return _measured_run(spec, execution, seconds)


def _measured_run(spec: RunSpec, execution: ExecutionSpec, seconds: float) -> dict[str, float]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, spec.shape.vocab_size, (spec.batch_seqs, spec.seq_len + 1))
    started = time.perf_counter()
    engine = Engine([spec], execution)
    engine.initialize(0)
    start_s = time.perf_counter() - started
    times = step_times(engine, tokens, seconds)
    # As many sequences at a time as an evaluation takes, whatever the batch of a step is.
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
        "seq_len": spec.seq_len,
        "batch_seqs": spec.batch_seqs,
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
    """Return how many times faster packs of a run are than the run alone, by their size.

    Larger packs are tried as long as they are faster.
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


def batched_speed(spec: RunSpec, execution: ExecutionSpec, seconds: float) -> float:
    """Return tokens/s of all runs of a pack together, on random tokens."""
    n_runs = execution.batched_runs
    # A short schedule: the rates of every step of every run are reckoned before the first one.
    spec = replace(spec, n_steps=PACK_STEPS_MAX, warmup_steps=0, schedule="cosine", decay_steps=0)
    with torch_switches(execution):
        engine = Engine([replace(spec, seed=seed) for seed in range(n_runs)], execution)
        for run in range(n_runs):
            engine.initialize(run)
        lead = () if n_runs == 1 else (n_runs,)
        size = (*lead, spec.batch_seqs, spec.seq_len + 1)
        tokens = np.random.default_rng(0).integers(0, spec.shape.vocab_size, size)
        times = step_times(engine, tokens, seconds)
    return n_runs * spec.tokens_per_step / statistics.median(times)


def step_times(
    engine: Engine, tokens: np.ndarray[Any, np.dtype[np.int64]], seconds: float
) -> list[float]:
    """Return what steps take, after a few that are not counted: at least three of them."""
    for _ in range(WARMUP_STEPS):
        timed_step(engine, tokens)
    times: list[float] = []
    while len(times) < STEPS_MIN or sum(times) < seconds:
        times.append(timed_step(engine, tokens))
    return times


def timed_step(engine: Engine, tokens: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """Take a step, wait for it, and return the seconds."""
    started = time.perf_counter()
    engine.step(tokens)
    engine.read()
    return time.perf_counter() - started


def shape_of_width(d_model: int, *, n_layers: int, vocab_size: int) -> ModelShape:
    """Return a shape of this width with heads of 16 to 64 values and a SwiGLU of 8/3 the width."""
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
    """Return a run over no dataset, for timing alone; `dataclasses.replace` changes the rest."""
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

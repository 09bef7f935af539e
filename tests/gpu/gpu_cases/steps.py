"""The runs that the cases train: models by size, their execution as a sweep plans it, an engine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from gpu_cases.timing import device, synchronize
from scalelab.sweep.execution import AUTO, ExecutionSpec, planned_execution
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import ModelShape
from scalelab.train.batches import open_batches
from scalelab.train.calibrate import shape_of_width, synthetic_run
from scalelab.train.engine import Engine, batch_shape
from scalelab.train.host import torch_settings

VOCAB = 32_000
MODELS = {
    "10M": (256, 3, 64),
    "50M": (512, 11, 64),
    "124M": (768, 14, 64),
    "350M": (1024, 25, 64),
    "1.3B": (2048, 24, 128),
}
"""Width, blocks and head size; tied head, vocabulary of 32,000."""
TOKENS_PER_STEP = {"10M": 131_072, "50M": 65_536, "124M": 65_536, "350M": 32_768, "1.3B": 16_384}
SMALL = {"0.1M": (48, 3), "0.3M": (80, 4), "1M": (128, 5)}
"""Width and blocks of runs that train batched: bytes, 8 sequences of 256 tokens."""
N_STEPS = 100_000
WINDOW = 10
"""Steps between readings, as in a sweep (`ExecutionSpec.metrics_interval_steps`)."""


def model_spec(
    name: str, seq_len: int, *, is_tiny: bool, n_layers: int | None = None, **fields: Any
) -> RunSpec:
    """Return the run of a model of this size, or of one like it with other ``n_layers``."""
    d_model, depth, d_head = (16, 1, 8) if is_tiny else MODELS[name]
    shape = ModelShape(
        n_layers=n_layers or depth,
        d_model=d_model,
        n_heads=d_model // d_head,
        d_head=d_head,
        d_ff=-(-d_model * 8 // 192) * 64,
        vocab_size=17 if is_tiny else VOCAB,
        is_tied=True,
    )
    seq_len, batch_seqs = (8, 2) if is_tiny else (seq_len, TOKENS_PER_STEP[name] // seq_len)
    return make_run(shape, seq_len, batch_seqs, **fields)


def small_spec(name: str, *, is_tiny: bool, n_layers: int | None = None) -> RunSpec:
    """Return a run that is small enough to train batched, as `model_spec`."""
    d_model, depth = (16, 1) if is_tiny else SMALL[name]
    vocab_size = 17 if is_tiny else 256
    shape = shape_of_width(d_model, n_layers=n_layers or depth, vocab_size=vocab_size)
    return make_run(shape, *((8, 2) if is_tiny else (256, 8)))


def make_run(shape: ModelShape, seq_len: int, batch_seqs: int, **fields: Any) -> RunSpec:
    """Return a run on random tokens, in bf16 unless the fields say otherwise."""
    spec = synthetic_run(shape, seq_len=seq_len, batch_seqs=batch_seqs)
    return replace(spec, **({"precision": "bf16", "n_steps": N_STEPS} | fields))


def request(n_runs: int = 1) -> ExecutionSpec:
    """Return the execution that a sweep on a GPU asks for by default."""
    return ExecutionSpec(
        device="cuda", step=AUTO, kernels=AUTO, attention=AUTO, batched_runs=n_runs
    )


def execution_of(spec: RunSpec, *, n_runs: int = 1, is_tiny: bool = False) -> ExecutionSpec:
    """Return the execution that a sweep plans for this run on a GPU.

    At toy sizes the same kernels are interpreted on a CPU, which has no CUDA graph.
    """
    planned = planned_execution(request(n_runs), spec)
    if is_tiny:
        return replace(planned, device="cpu", step="eager", attention="sdpa")
    return planned


def reference_of(spec: RunSpec, *, n_runs: int = 1) -> ExecutionSpec:
    """Return plain torch, step by step, with attention that is repeatable."""
    return ExecutionSpec(
        device=device(),
        step="eager",
        kernels="reference",
        attention="explicit" if spec.seq_len <= 512 else "sdpa",
        batched_runs=n_runs,
    )


def make_engine(spec: RunSpec, execution: ExecutionSpec, *, n_runs: int = 1) -> Engine:
    """Return an engine of runs that differ in their seeds, at their first weights."""
    engine = Engine([replace(spec, seed=seed) for seed in range(n_runs)], execution)
    for run in range(n_runs):
        engine.initialize(run)
    return engine


def random_tokens(engine: Engine, seed: int = 0) -> Any:
    """Return one step's tokens."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, engine.specs[0].shape.vocab_size, batch_shape(engine.specs))


def next_batches(engine: Engine, n_distinct: int) -> AbstractContextManager[Callable[[], Any]]:
    """Give batches as a sweep does, on a GPU from a thread; `random_tokens` of 0, 1, .. in turn."""
    ready = [random_tokens(engine, seed) for seed in range(n_distinct)]

    def load(index: int, tokens: Any) -> None:
        tokens[...] = ready[index % n_distinct]

    return open_batches(engine.execution, load, ready[0].shape, sys.maxsize)


def step_seconds(engine: Engine, seconds: float, *, is_tiny: bool) -> list[float]:
    """Return the mean time of a step in each of several windows of `WINDOW` steps.

    A window includes what a sweep does: copying each step's tokens to the device, and reading the
    losses once. The first two windows are not timed.
    """
    n_steps, n_warmup, n_least = (1, 0, 1) if is_tiny else (WINDOW, 2, 3)
    seconds = 0.0 if is_tiny else seconds
    times: list[float] = []
    with torch_settings(engine.execution), next_batches(engine, n_steps) as take:
        while len(times) < n_warmup + n_least or sum(times[n_warmup:]) * n_steps < (
            0.0 if is_tiny else seconds
        ):
            synchronize()
            started = time.perf_counter()
            for _ in range(n_steps):
                engine.step(take())
            engine.read()
            times.append((time.perf_counter() - started) / n_steps)
    return times[n_warmup:]

"""Checked steps: what a run's first steps give by one way, and what they should give.

The truth is the gradient of the same model in float64, at an odd number of sequences and positions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scalelab_kernels import accuracy
from torch import Tensor

from scalelab.records.qualification import kernel_class
from scalelab.sweep.execution import AUTO, ExecutionSpec, candidates
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.engine import Engine, batch_shape
from scalelab.train.gradients import Autograd
from scalelab.train.precision import DTYPES

CHECKED_SEQS = 3
CHECKED_STEPS = 3
CHECKED_POSITIONS = {"cuda": 257, "cpu": 9}
"""Most positions of a checked step. Float64 and interpreted kernels are slow."""
END_SHARE = 1 / 16
"""Share of the tokens that end a document, where attention stays inside documents."""
NO_CLIP = 1e30
"""Some ways clip their gradients in place, before they can be compared."""
DRAWS = 3
MANY_VALUES = 50_000_000
"""Weights of all runs above which one draw of tokens is enough: their errors average out."""
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp8": 5e-2}
"""Largest difference of the losses of `CHECKED_STEPS` steps from the reference's, nats, in addition
to twice the difference that the precision makes. A wrong optimizer is far above."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Gradients in float64 and what the plain reference makes of them, for one run's shape."""

    specs: tuple[RunSpec, ...]
    tokens: list[NDArray[np.int64]]
    grads: list[Tensor]
    own_errors: dict[str, float]
    own_losses: NDArray[np.float32]
    loss_limit: float


def plain_reference(execution: ExecutionSpec, spec: RunSpec) -> ExecutionSpec:
    """Return the way that all others are compared with: eager steps of plain torch."""
    return candidates(replace(execution, step=AUTO, kernels=AUTO, attention=AUTO), spec)[-1]


def odd_runs(spec: RunSpec, n_runs: int, device: str) -> tuple[RunSpec, ...]:
    """Return short runs of the same model with an odd number of sequences and positions."""
    n_positions = max(1, (min(spec.seq_len, CHECKED_POSITIONS[device]) - 1) | 1)
    short = replace(
        spec,
        seq_len=min(n_positions, spec.seq_len),
        batch_seqs=CHECKED_SEQS,
        n_steps=4 * CHECKED_STEPS,
        grad_clip=NO_CLIP,
        warmup_steps=0,
        schedule="cosine",
        decay_steps=0,
    )
    return tuple(replace(short, seed=spec.seed + run) for run in range(n_runs))


def find_truth(specs: tuple[RunSpec, ...], execution: ExecutionSpec) -> Truth:
    """Return the truth of some batched runs, and the errors of the plain reference."""
    plain = plain_reference(execution, specs[0])
    engine = start_engine(specs, plain)
    saved = [engine.state(run) for run in range(len(specs))]
    n_draws = 1 if engine.master.numel() > MANY_VALUES else DRAWS
    dtype = torch.float32 if half_or_single(specs[0]) != torch.float32 else torch.float64
    tokens, grads = [], []
    # fp32 runs round nothing to fewer bits: their operations then run in float64 throughout.
    wide_specs = [replace(spec, precision="fp32") for spec in specs]
    squares: dict[str, list[float]] = {}
    for draw in range(n_draws):
        rng = np.random.default_rng(draw)
        batch = rng.integers(0, specs[0].shape.vocab_size, batch_shape(specs))
        load_states(engine, saved)
        wide = engine.master.double()
        exact = torch.zeros_like(wide)
        wide_execution = replace(plain, attention="explicit")
        gradients = Autograd(wide_specs, wide_execution, engine.layout, wide, exact, None)
        gradients.take(torch.from_numpy(batch).to(engine.device))
        own, *_ = take_step(engine, batch)
        add_squares(squares, engine, own, exact)
        tokens.append(batch)
        grads.append(exact.to(dtype))
        del gradients, wide, exact
    own_losses = losses_from(engine, saved, tokens[0])
    # Large learning rates spread rounding: the reference in fp32 shows how far.
    wide_losses = take_losses(start_engine(wide_specs, plain), tokens[0])
    own_gap = float(np.abs(own_losses - wide_losses).max())
    return Truth(
        specs=specs,
        tokens=tokens,
        grads=grads,
        own_errors=roots(squares),
        own_losses=own_losses,
        loss_limit=accuracy.tolerance(own_gap, LOSS_TOLERANCE[specs[0].precision]),
    )


def start_engine(specs: Sequence[RunSpec], execution: ExecutionSpec) -> Engine:
    """Return an engine with initialized runs."""
    engine = Engine(specs, execution)
    for run in range(len(specs)):
        engine.initialize(run)
    return engine


def load_states(engine: Engine, saved: Sequence[dict[str, Any]]) -> None:
    """Restore the runs of an engine."""
    for run, state in enumerate(saved):
        engine.load_state(run, state)


def take_step(engine: Engine, tokens: NDArray[np.int64]) -> tuple[Tensor, ...]:
    """Take a step; return copies of gradients, weights, losses and norms."""
    engine.step(tokens)
    readings = engine.read()
    values = (torch.from_numpy(np.array(part)) for part in (readings.losses, readings.norms))
    return engine.grad.clone(), engine.master.clone(), *values


def losses_from(
    engine: Engine, saved: Sequence[dict[str, Any]], tokens: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the losses of the first steps from a state, on the same tokens."""
    load_states(engine, saved)
    return take_losses(engine, tokens)


def take_losses(
    engine: Engine, tokens: NDArray[np.int64], enough_s: float = math.inf
) -> NDArray[np.float32]:
    """Take `CHECKED_STEPS` steps, fewer after ``enough_s``; return their losses, (steps, K)."""
    started = time.perf_counter()
    losses: list[NDArray[np.float32]] = []
    while len(losses) < CHECKED_STEPS and (not losses or time.perf_counter() - started < enough_s):
        engine.step(tokens)
        losses.append(np.array(engine.read().losses[0]))
    return np.stack(losses)


def tokens_of(specs: Sequence[RunSpec]) -> NDArray[np.int64]:
    """Return random tokens of a step, with ends of documents where attention is masked by them."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, specs[0].shape.vocab_size, batch_shape(specs))
    if specs[0].is_document_masked:
        tokens[rng.random(tokens.shape) < END_SHARE] = specs[0].end_token
    return tokens


def gap_reason(gap: float) -> str:
    """Return the reason of a way whose losses are too far from the reference's."""
    return f"losses of {CHECKED_STEPS} steps differ by {gap:.3g} nats from the reference's"


def is_same(a: Tensor, b: Tensor) -> bool:
    """Say whether two values have the same bits; NaN, which is found later, counts as equal."""
    return torch.equal(a, b) or torch.equal(a.nan_to_num(nan=0.5), b.nan_to_num(nan=0.5))


def add_squares(
    squares: dict[str, list[float]], engine: Engine, grad: Tensor, exact: Tensor
) -> None:
    """Add the squared error and the squared norm of the gradient of each kind of weight."""
    found, wanted = engine.layout.views(grad), engine.layout.views(exact)
    for name, value in found.items():
        sums = squares.setdefault(name.rpartition(".")[2], [0.0, 0.0])
        is_finite = bool(value.isfinite().all())
        apart = float((value.double() - wanted[name].double()).square().sum())
        sums[0] += apart if is_finite else math.inf
        sums[1] += float(wanted[name].double().square().sum())


def roots(squares: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the relative error of each kind of weight."""
    return {name: math.sqrt(apart / (size or 1.0)) for name, (apart, size) in squares.items()}


def half_or_single(spec: RunSpec) -> torch.dtype:
    """Return the dtype of a run's activations."""
    return DTYPES[kernel_class(spec, 1)["dtype"]]

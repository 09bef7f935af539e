"""Correctness of whole steps: the planned execution against plain torch, replays and resuming."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gpu_cases.steps import (
    execution_of,
    make_engine,
    make_run,
    next_batches,
    random_tokens,
    reference_of,
)
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import ModelShape
from scalelab.train.engine import Engine, Readings
from scalelab.train.host import torch_settings

STEPS = 12
LOSS_TOLERANCE = 2e-2
"""Largest difference of a loss within `STEPS` steps, nats; a wrong gradient is far above."""
FP32_TOLERANCE = 1e-4
"""Largest relative difference of an fp32 loss between CPU and GPU within `STEPS` steps."""
NORM_TOLERANCE = 0.02
"""Largest relative difference of the first gradient norm from fp32's."""
SHAPES = {
    "wide": ModelShape(
        n_layers=2, d_model=768, n_heads=12, d_head=64, d_ff=2048, vocab_size=32_000, is_tied=True
    ),
    "grouped": ModelShape(
        n_layers=2, d_model=512, n_heads=4, n_kv_heads=2, d_head=128, d_ff=1408, vocab_size=1_031
    ),
    "small": ModelShape(n_layers=3, d_model=48, n_heads=4, d_head=12, d_ff=128, vocab_size=256),
    "aligned": ModelShape(n_layers=2, d_model=128, n_heads=4, d_head=32, d_ff=320, vocab_size=256),
    "toy": ModelShape(n_layers=1, d_model=16, n_heads=2, d_head=8, d_ff=24, vocab_size=17),
}


def check(
    *, is_tiny: bool, shape: str, n_runs: int = 1, micro: int = 0, **fields: Any
) -> dict[str, Any]:
    """Check the planned execution of a shape; raise AssertionError where it is wrong.

    The direction of the first gradients may differ from that of plain torch in fp32 twice as much
    as that of plain torch in bf16 does. Losses of later steps stay near those of plain torch. Two
    engines, and a run resumed from its state in the middle, give the same bits.
    """
    n_runs = min(n_runs, 2) if is_tiny else n_runs
    seq_len, batch_seqs = (8, 2) if is_tiny else ((512, 4) if shape != "small" else (256, 8))
    fields = {"lr": 1e-3, "warmup_steps": 1, "n_steps": STEPS} | fields
    spec = make_run(SHAPES["toy" if is_tiny else shape], seq_len, batch_seqs, **fields)
    settings = {"micro_batch_seqs": micro, "metrics_interval_steps": STEPS}
    planned = replace(execution_of(spec, n_runs=n_runs, is_tiny=is_tiny), **settings)
    reference = replace(reference_of(spec, n_runs=n_runs), **settings)
    found = compare(spec, planned, reference, n_runs, n_steps=2 if is_tiny else STEPS)
    found["says"] = (
        f"{planned.step} + {planned.kernels} + {planned.attention}: gradient error "
        f"{found['gradient_error']:.1e} (torch {found['reference_error']:.1e}), "
        f"losses {found['loss_apart_nats']:.1e} nats apart"
    )
    return found


def compare(
    spec: RunSpec,
    planned: ExecutionSpec,
    reference: ExecutionSpec,
    n_runs: int,
    *,
    n_steps: int,
) -> dict[str, Any]:
    """Return errors of the planned execution; raise AssertionError where it is wrong."""
    spec = replace(spec, n_steps=n_steps)
    exact, true, _ = trained(replace(spec, precision="fp32"), in_fp32(reference), n_runs, 1)
    plain, expected, _ = trained(spec, reference, n_runs, n_steps)
    ours, readings, engine = trained(spec, planned, n_runs, n_steps)
    again, same, other = trained(spec, planned, n_runs, n_steps)
    assert torch.equal(ours, again), "the gradients of two engines differ"
    assert (readings.losses == same.losses).all(), "the losses of two engines differ"
    require_equal_states(engine, other, "two engines")
    resumed = continued(spec, planned, n_runs, n_steps)
    require_equal_states(engine, resumed, "a run and its resumed copy")
    error, allowed = relative_error(ours, exact), relative_error(plain, exact)
    assert error <= 2 * allowed + 1e-3, f"gradient error {error:.3g}, torch has {allowed:.3g}"
    norms = abs(readings.norms[0] / true.norms[0] - 1).max()
    assert norms <= NORM_TOLERANCE, f"gradient norms are off by {100 * norms:.1f} %"
    apart = float(abs(readings.losses - expected.losses).max())
    assert apart <= LOSS_TOLERANCE, f"losses are {apart:.3g} nats from those of plain torch"
    return {"gradient_error": error, "reference_error": allowed, "loss_apart_nats": apart}


def devices(*, is_tiny: bool) -> dict[str, Any]:
    """Check that a small fp32 run has the same losses on the GPU as on the CPU."""
    fields = {
        "precision": "fp32",
        "lr": 1e-3,
        "warmup_steps": 1,
        "n_steps": 2 if is_tiny else STEPS,
    }
    spec = make_run(SHAPES["toy" if is_tiny else "aligned"], 8 if is_tiny else 64, 4, **fields)
    on_cpu = ExecutionSpec(metrics_interval_steps=STEPS)
    on_gpu = replace(execution_of(spec, is_tiny=is_tiny), metrics_interval_steps=STEPS)
    (_, expected, _), (_, found, _) = (
        trained(spec, execution, 1, spec.n_steps) for execution in (on_cpu, on_gpu)
    )
    apart = float(abs(found.losses / expected.losses - 1).max())
    assert apart <= FP32_TOLERANCE, f"losses differ by {apart:.1e} of themselves"
    return {"relative_loss_apart": apart, "says": f"losses differ by {apart:.1e} of themselves"}


def in_fp32(execution: ExecutionSpec) -> ExecutionSpec:
    """Return an execution for fp32: FlashAttention has no fp32 kernels."""
    return replace(execution, attention="explicit")


def trained(
    spec: RunSpec, execution: ExecutionSpec, n_runs: int, n_steps: int
) -> tuple[Tensor, Readings, Engine]:
    """Train; return the gradients of the first step in unit norm, readings, and the engine.

    The optimizer may have scaled the gradients to clip them, hence unit norm.
    """
    engine = make_engine(spec, execution, n_runs=n_runs)
    gradients = None
    with torch_settings(execution), next_batches(engine, n_steps) as take:
        for _ in range(n_steps):
            engine.step(take())
            if gradients is None:
                rows = engine.grad.view(n_runs, -1)
                gradients = rows / rows.norm(dim=1, keepdim=True)
        readings = engine.read()
    assert gradients is not None
    return gradients, readings, engine


def continued(spec: RunSpec, execution: ExecutionSpec, n_runs: int, n_steps: int) -> Engine:
    """Train half the steps, move the states to a new engine, and train the rest."""
    half = n_steps // 2
    first = make_engine(spec, execution, n_runs=n_runs)
    with torch_settings(execution):
        for step in range(half):
            first.step(random_tokens(first, step))
        first.read()
        second = Engine(first.specs, execution)
        for run in range(n_runs):
            second.load_state(run, first.state(run))
        for step in range(half, n_steps):
            second.step(random_tokens(second, step))
        second.read()
    return second


def require_equal_states(a: Engine, b: Engine, who: str) -> None:
    """Raise AssertionError unless all states are equal bit for bit."""
    for run in range(a.n_runs):
        left, right = a.state(run), b.state(run)
        for name, value in left.items():
            is_equal = (
                torch.equal(value, right[name])
                if isinstance(value, Tensor)
                else value == right[name]
            )
            assert is_equal, f"{name} of {who} differs in run {run}"


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Return the error in the 2-norm."""
    assert bool(value.isfinite().all()), "a gradient is not finite"
    return float((value.double() - exact.double()).norm() / exact.double().norm())

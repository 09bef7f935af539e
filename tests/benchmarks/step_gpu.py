"""Time the training step of 124M parameters with kernels and without, on a GPU.

Without kernels, torch compiles the whole step: forward and backward as one graph and the clipped
AdamW as another, with SDPA attention. It runs both without and with a CUDA graph, and the faster
one counts. With kernels: eager, compiled and captured, with SDPA or our attention. All use the same
tokens, and the program compares their losses before it shows times::

    TRITON_INTERPRET=0 python tests/benchmarks/step_gpu.py [--json FILE]
    TRITON_INTERPRET=1 python tests/benchmarks/step_gpu.py --tiny
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gpu_timing import arguments, device, header, publish

from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params, train_flops_per_token
from scalelab.theory.shape import ModelShape
from scalelab.train.engine import Engine

GOAL = 1.25
LOSS_TOLERANCE = 2e-2
"""Tolerance of the loss after `CHECK_STEPS` steps in bf16, nats; a wrong gradient is far above."""
CHECK_STEPS = 3
WARMUP_STEPS, TIMED_STEPS = 2, 20
GPT2_SMALL = ModelShape(
    n_layers=12, d_model=768, n_heads=12, d_head=64, d_ff=2048, vocab_size=50_304, is_tied=True
)
TOY = ModelShape(n_layers=1, d_model=16, n_heads=2, d_head=8, d_ff=16, vocab_size=64, is_tied=True)


def make_spec(*, is_tiny: bool) -> RunSpec:
    """Return the run whose step is timed: GPT-2 small, 32 sequences of 1,024 tokens, bf16."""
    return RunSpec(
        shape=TOY if is_tiny else GPT2_SMALL,
        seq_len=8 if is_tiny else 1024,
        batch_seqs=2 if is_tiny else 32,
        n_steps=1000,
        lr=3e-4,
        warmup_steps=1,
        data_fingerprint="random",
        eval_fingerprint="random",
        tokenizer="bytes",
        seed=0,
        precision="bf16",
    )


def make_engine(spec: RunSpec, execution: ExecutionSpec, *, is_tiny: bool) -> Engine:
    """Return an engine; without kernels, its optimizer is compiled too."""
    engine = Engine([spec], execution)
    backend = "eager" if is_tiny else "inductor"
    if execution.step == "compiled":
        engine.gradients._loss_sums = torch.compile(
            engine.gradients.model.loss_sums, dynamic=False, fullgraph=True, backend=backend
        )
    if execution.kernels == "reference":
        plain = engine.optimizer.ops
        compiled = torch.compile(plain.adamw_step_, dynamic=False, backend=backend)
        engine.optimizer.ops = replace(plain, adamw_step_=compiled)
    engine.initialize(0)
    return engine


def make_ways(*, is_tiny: bool) -> dict[str, tuple[ExecutionSpec, bool]]:
    """Return the execution of each way, and whether it is captured after compiling."""
    compiled = ExecutionSpec(
        device=device(), step="compiled", attention="sdpa", metrics_interval_steps=64
    )
    kernels = replace(compiled, kernels="triton")
    ways = {
        "torch, compiled": (compiled, False),
        "kernels, eager": (replace(kernels, step="eager"), False),
        "kernels, compiled": (kernels, False),
        "kernels and attention, compiled": (replace(kernels, attention="triton"), False),
    }
    if not is_tiny:
        ways["torch, compiled and captured"] = (compiled, True)
        ways["kernels, compiled and captured"] = (kernels, True)
    return ways


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def losses_and_step_ms(
    engine: Engine, tokens: Any, *, is_captured: bool, is_tiny: bool
) -> tuple[Any, float]:
    """Return the losses of the first steps, and the median time of later ones in milliseconds."""
    for _ in range(1 if is_tiny else CHECK_STEPS):
        engine.step(tokens)
    losses = engine.read().losses[:, 0]
    if is_captured:
        # The compiled graphs are warm here, as a capture requires.
        engine._capture()
        assert engine._graph is not None
        take = engine._graph.replay
    else:
        take = engine._take_step
    times = []
    n_warmup, n_timed = (0, 1) if is_tiny else (WARMUP_STEPS, TIMED_STEPS)
    for _ in range(n_warmup + n_timed):
        synchronize()
        started = time.perf_counter()
        take()
        synchronize()
        times.append(1e3 * (time.perf_counter() - started))
    return losses, statistics.median(times[n_warmup:])


def main() -> None:
    """Compare losses, time the ways, print the table, and write it with ``--json``."""
    options = arguments(__doc__)
    spec = make_spec(is_tiny=options.tiny)
    tokens = np.random.default_rng(0).integers(
        0, spec.shape.vocab_size, (spec.batch_seqs, spec.seq_len + 1)
    )
    found: dict[str, Any] = {**header(is_tiny=options.tiny), "cases": []}
    times: dict[str, float] = {}
    losses: dict[str, Any] = {}
    peaks: dict[str, float] = {}
    for name, (execution, is_captured) in make_ways(is_tiny=options.tiny).items():
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        engine = make_engine(spec, execution, is_tiny=options.tiny)
        losses[name], times[name] = losses_and_step_ms(
            engine, tokens, is_captured=is_captured, is_tiny=options.tiny
        )
        if torch.cuda.is_available():
            peaks[name] = torch.cuda.max_memory_allocated() / 2**30
        del engine
    plain = losses["torch, compiled"]
    apart = {name: float(np.abs(found - plain).max()) for name, found in losses.items()}
    too_far = {name: gap for name, gap in apart.items() if not gap <= LOSS_TOLERANCE}
    if too_far:
        raise SystemExit(f"losses differ from the compiled torch step's by {too_far}: not timed")
    ours = min(ms for name, ms in times.items() if name.startswith("kernels"))
    theirs = min(ms for name, ms in times.items() if name.startswith("torch"))
    flops = train_flops_per_token(spec.shape, spec.seq_len)["exact"] * spec.tokens_per_step
    found["cases"].append(
        {
            "op": f"step of {count_params(spec.shape).total / 1e6:.0f}M parameters",
            "size": f"{spec.batch_seqs} x {spec.seq_len}",
            "ms": {"kernel": ours, **times},
            "tflop_s": flops / ours / 1e9,
            "share": flops / ours / 1e9 / found["matmul_tflop_s"],
            "ratios": {name: ms / ours for name, ms in times.items()},
            "peak_gib": peaks,
            "loss_apart_nats": apart,
            "goals": {
                "torch": {
                    "wanted": GOAL,
                    "reached": theirs / ours,
                    "is_met": theirs / ours >= GOAL,
                }
            },
        }
    )
    publish(found, options.json)


if __name__ == "__main__":
    main()

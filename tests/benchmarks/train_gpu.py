"""Model FLOPs utilization of the training step by size, and the speedup of batching, on a GPU.

MFU uses PaLM's convention over the device's peak: one captured step with our kernels, in bf16, with
a vocabulary of 32,000, at 1,024 and 2,048 positions. Batched runs of one shape are compared with
the same runs one after the other::

    TRITON_INTERPRET=0 python tests/benchmarks/train_gpu.py [--json FILE]
    python tests/benchmarks/train_gpu.py --tiny
"""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import torch
from gpu_timing import arguments, device, header, publish

from scalelab.sweep.execution import ExecutionSpec
from scalelab.theory.shape import ModelShape
from scalelab.train.bench import bench_train
from scalelab.train.calibrate import shape_of_width, synthetic_run

VOCAB = 32_000
BATCHED = 16
SECONDS = 4.0
MODELS = {
    "10M": (256, 3, 64, 0.36),
    "50M": (512, 11, 64, 0.44),
    "124M": (768, 14, 64, 0.48),
    "350M": (1024, 25, 64, 0.52),
    "1.3B": (2048, 24, 128, 0.57),
}
"""Width, blocks, head size and MFU goal on an H200."""
TOKENS_PER_STEP = {"10M": 131_072, "50M": 65_536, "124M": 65_536, "350M": 32_768, "1.3B": 16_384}
SMALL = {"0.1M": (48, 3, 5.0), "0.3M": (80, 4, 5.0), "1M": (128, 5, None)}
"""Width, blocks and speedup goal of batched runs."""


def large_shape(name: str, *, is_tiny: bool) -> ModelShape:
    """Return a model of this size with a tied head."""
    d_model, n_layers, d_head, _ = MODELS[name]
    if is_tiny:
        d_model, n_layers, d_head = 16, 1, 8
    return ModelShape(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=d_model // d_head,
        d_head=d_head,
        d_ff=-(-d_model * 8 // 192) * 64,
        vocab_size=61 if is_tiny else VOCAB,
        is_tied=True,
    )


def execution(*, is_tiny: bool) -> ExecutionSpec:
    """Return the execution: a captured step with our kernels."""
    if is_tiny:
        return ExecutionSpec(device=device())
    return ExecutionSpec(device="cuda", step="graph", kernels="triton", attention="sdpa")


def free_memory() -> None:
    """Free the memory of the last model."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def goal(wanted: float | None, reached: float, name: str) -> dict[str, Any]:
    """Return a goal in the format of the table."""
    if wanted is None:
        return {}
    return {name: {"wanted": wanted, "reached": reached, "is_met": reached >= wanted}}


def utilisation(name: str, seq_len: int, *, is_tiny: bool) -> dict[str, Any]:
    """Return the row of one size and length."""
    n_positions = 8 if is_tiny else seq_len
    batch_seqs = 2 if is_tiny else TOKENS_PER_STEP[name] // seq_len
    spec = replace(
        synthetic_run(
            large_shape(name, is_tiny=is_tiny), seq_len=n_positions, batch_seqs=batch_seqs
        ),
        precision="bf16",
    )
    seconds = 0.01 if is_tiny else SECONDS
    measured = bench_train(spec, execution(is_tiny=is_tiny), seconds=seconds)
    free_memory()
    mfu = measured["mfu"] or 0.0
    return {
        "op": f"step of {name} parameters",
        "size": f"{batch_seqs} x {n_positions}",
        "ms": {"kernel": 1e3 * measured["step_s"]},
        "tflop_s": measured["tflops_per_s"],
        "share": measured["share_of_matmul"],
        "ratios": {},
        "mfu": measured["mfu"],
        "tokens_per_s": measured["tokens_per_s"],
        "n_params": measured["n_params"],
        "goals": goal(MODELS[name][3], mfu, "mfu"),
    }


def batching(name: str, *, is_tiny: bool) -> dict[str, Any]:
    """Return the row of batched runs of one small size."""
    d_model, n_layers, wanted = SMALL[name]
    shape = shape_of_width(
        16 if is_tiny else d_model, n_layers=1 if is_tiny else n_layers, vocab_size=256
    )
    spec = synthetic_run(shape, seq_len=8 if is_tiny else 256, batch_seqs=2 if is_tiny else 8)
    spec = replace(spec, precision="bf16")
    seconds = 0.01 if is_tiny else SECONDS / 2
    alone, batched = (
        bench_train(spec, execution(is_tiny=is_tiny), n_runs=n_runs, seconds=seconds)
        for n_runs in (1, 2 if is_tiny else BATCHED)
    )
    free_memory()
    ratio = batched["tokens_per_s"] / alone["tokens_per_s"]
    return {
        "op": f"{batched['n_runs']} batched runs of {name} parameters",
        "size": f"{spec.batch_seqs} x {spec.seq_len}",
        "ms": {"kernel": 1e3 * batched["step_s"]},
        "tflop_s": batched["tflops_per_s"],
        "share": batched["share_of_matmul"],
        "ratios": {"one after the other": ratio},
        "tokens_per_s": batched["tokens_per_s"],
        "n_params": batched["n_params"],
        "goals": goal(wanted, ratio, "one after the other"),
    }


def main() -> None:
    """Measure all sizes, print the table, and write it with ``--json``."""
    options = arguments(__doc__)
    found: dict[str, Any] = {**header(is_tiny=options.tiny), "cases": []}
    for name in MODELS:
        for seq_len in (1024, 2048):
            found["cases"].append(utilisation(name, seq_len, is_tiny=options.tiny))
    for name in SMALL:
        found["cases"].append(batching(name, is_tiny=options.tiny))
    publish(found, options.json)


if __name__ == "__main__":
    main()

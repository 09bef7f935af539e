"""CPU time of our steps beside a plain torch trainer: ``python tests/benchmarks/eager_step.py``.

One process, one thread, T = 256, batch 8, fp32; the steps of all sides alternate, and the median
CPU time of a step counts, with ``--least`` the least one. ``plain`` is the trainer of
`train_baseline`, which is a lighter model: learned positions instead of rotary ones, GELU instead
of SwiGLU. ``twin`` is our model as plain torch modules. ``--bf16`` adds our step in bf16, as a
worker takes it on a CPU with AMX, and Llama of transformers in bf16 in four ways.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

SHAPES = {
    "0.04M": {"d_model": 24, "n_layers": 4},
    "0.2M": {"d_model": 64, "n_layers": 4},
    "0.9M": {"d_model": 128, "n_layers": 4},
    "4.8M": {"d_model": 256, "n_layers": 6},
    "14M": {"d_model": 384, "n_layers": 8},
}
BATCH_SEQS = 8
WARM_UP_STEPS = 3


def engine_step(
    d_model: int, n_layers: int, step: str, precision: str = "fp32"
) -> Callable[[], None]:
    """Return a function that takes one of our steps."""
    import numpy as np
    from train_baseline import SEQ_LEN, VOCAB, our_shape

    from scalelab.sweep.execution import ExecutionSpec, planned_execution
    from scalelab.train.calibrate import synthetic_run
    from scalelab.train.engine import Engine

    spec = synthetic_run(our_shape(d_model, n_layers), seq_len=SEQ_LEN, batch_seqs=BATCH_SEQS)
    spec = replace(spec, precision=precision)
    request = ExecutionSpec(step=step, attention="auto", kernels="reference")
    execution = planned_execution(request, spec)
    engine = Engine([spec], execution)
    engine.initialize(0)
    tokens = np.random.default_rng(0).integers(VOCAB, size=(BATCH_SEQS, SEQ_LEN + 1))

    def take() -> None:
        engine.step(tokens)
        engine.read()

    return take


def llama_steps(d_model: int, n_layers: int) -> dict[str, Callable[[], None]]:
    """Return functions that take a step of Llama in bf16, by how it is in bf16."""
    import torch
    from train_baseline import llama, plain_step

    def autocast(attention: str) -> Callable[[], None]:
        model = llama(d_model, n_layers, attention)

        def loss_of(tokens: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return model(input_ids=tokens, labels=tokens).loss

        return plain_step(loss_of, model, BATCH_SEQS)

    def rounded_weights() -> Callable[[], None]:
        model = llama(d_model, n_layers).bfloat16()
        return plain_step(lambda x: model(input_ids=x, labels=x).loss, model, BATCH_SEQS)

    def rounded_by_onednn() -> Callable[[], None]:
        model = llama(d_model, n_layers)
        step = plain_step(lambda x: model(input_ids=x, labels=x).loss, model, BATCH_SEQS)
        setting = torch.backends.mkldnn.matmul

        def take() -> None:
            setting.fp32_precision = "bf16"
            step()
            setting.fp32_precision = "none"

        return take

    return {
        "llama, autocast, sdpa": autocast("sdpa"),
        "llama, autocast, explicit": autocast("eager"),
        "llama, bf16 weights": rounded_weights(),
        "llama, fp32 rounded by oneDNN": rounded_by_onednn(),
    }


def cpu_ms(
    d_model: int, n_layers: int, n_steps: int, *, is_bf16: bool, is_least: bool = False
) -> dict[str, float]:
    """Return the CPU milliseconds of a step of each side: the median, or the least."""
    import torch
    from plain_twin import plain_twin
    from train_baseline import SEQ_LEN, our_shape, plain_model, plain_step

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    plain = plain_model(d_model, n_layers)
    twin = plain_twin(our_shape(d_model, n_layers), SEQ_LEN)
    sides = {
        "plain": plain_step(plain, plain, BATCH_SEQS),
        "twin": plain_step(twin, twin, BATCH_SEQS),
        "eager": engine_step(d_model, n_layers, "eager"),
        "direct": engine_step(d_model, n_layers, "direct"),
    }
    if is_bf16:
        sides["bf16"] = engine_step(d_model, n_layers, "direct", "bf16")
        if find_spec("transformers"):
            sides |= llama_steps(d_model, n_layers)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(WARM_UP_STEPS + n_steps):
        for name, take in sides.items():
            started = time.process_time()
            take()
            if turn >= WARM_UP_STEPS:
                times[name].append(1e3 * (time.process_time() - started))
    middle = min if is_least else statistics.median
    return {name: middle(each) for name, each in times.items()}


def main() -> None:
    """Print a table, or with ``--json`` the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--bf16", action="store_true", help="also steps in bf16")
    parser.add_argument("--least", action="store_true", help="the least time, not the median")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(Path(__file__).parent))
    found = {}
    for name in arguments.shapes.split(","):
        found[name] = cpu_ms(
            **SHAPES[name],
            n_steps=arguments.steps,
            is_bf16=arguments.bf16,
            is_least=arguments.least,
        )
        plain = found[name]["plain"]
        if not arguments.json:
            cells = (f"{side} {ms:.1f} ms ({plain / ms:.2f})" for side, ms in found[name].items())
            print(f"{name}: {', '.join(cells)}", flush=True)
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()

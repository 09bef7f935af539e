"""Profile of a CPU step by kind of call: ``python tests/benchmarks/step_profile.py``.

Uses one core and the shapes of `train_baseline`. Each recorded call is timed separately; its
smallest time over several steps counts, summed by kind. Products also show their FLOP/s, and that
of a large product in the same process.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any

import numpy as np
from train_baseline import SEQ_LEN, SHAPES, SMALL, SMALL_NAME, VOCAB, our_shape

from scalelab.sweep.execution import ExecutionSpec
from scalelab.train.bench import matmul_flops_per_s
from scalelab.train.calibrate import synthetic_run
from scalelab.train.direct.calls import Calls
from scalelab.train.engine import Engine
from scalelab.train.host import torch_settings

STEPS = 15
WARM_UP_STEPS = 3
KINDS = {"mm": "products with weights", "addmm": "products with weights"}
KINDS |= dict.fromkeys(("bmm", "baddbmm"), "products of attention")


def product_flops(call: Any) -> float:
    """Return the FLOPs of a call: of its last two matrices if it is a product, otherwise 0."""
    if call.func.__name__ not in KINDS:
        return 0.0
    left, right = call.args[-2:]
    return 2.0 * left.numel() * right.shape[-1]


def profile(d_model: int, n_layers: int, batch_seqs: int) -> None:
    """Print the seconds of a step by kind of call."""
    found: dict[int, tuple[Any, float]] = {}

    def execute(calls: Calls) -> None:
        for call in calls._calls:
            started = time.perf_counter()
            call()
            seconds = time.perf_counter() - started
            found[id(call)] = (call, min(seconds, found.get(id(call), (call, seconds))[1]))

    execution = ExecutionSpec(step="direct")
    spec = synthetic_run(our_shape(d_model, n_layers), seq_len=SEQ_LEN, batch_seqs=batch_seqs)
    tokens = np.random.default_rng(0).integers(VOCAB, size=(batch_seqs, SEQ_LEN + 1))
    with torch_settings(execution):
        engine = Engine([spec], execution)
        engine.initialize(0)
        for _ in range(WARM_UP_STEPS):
            engine.step(tokens)
            engine.read()
        plain, Calls.execute = Calls.execute, execute  # type: ignore[method-assign]
        for _ in range(STEPS):
            engine.step(tokens)
            engine.read()
        Calls.execute = plain  # type: ignore[method-assign]
        large = matmul_flops_per_s("cpu", "fp32")
    total = sum(seconds for _, seconds in found.values())
    kinds: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for call, seconds in found.values():
        row = kinds[KINDS.get(call.func.__name__, "passes over activations")]
        row[0] += 1
        row[1] += seconds
        row[2] += product_flops(call)
    print(f"{1e3 * total:.1f} ms in {len(found)} calls; a large product: {large / 1e9:.0f} GFLOP/s")
    for kind, (n_calls, seconds, flops) in sorted(kinds.items()):
        rate = f", {flops / seconds / 1e9:.0f} GFLOP/s" if flops else ""
        print(f"  {kind}: {100 * seconds / total:.0f} % in {n_calls} calls{rate}")


def main() -> None:
    """Profile the selected shapes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=",".join([*SHAPES, SMALL_NAME]))
    for name in parser.parse_args().shapes.split(","):
        print(name)
        profile(**(SMALL if name == SMALL_NAME else SHAPES[name]))


if __name__ == "__main__":
    main()

"""Correctness of each kernel at the shapes of models, by `scalelab_kernels.accuracy`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from scalelab_kernels.accuracy import examine
from scalelab_kernels.checks import Checks, Sizes, shape_checks

from gpu_cases.timing import device
from scalelab.units import plural

SHAPES = {
    "10M": Sizes(
        d_model=256, d_ff=704, n_heads=4, n_kv_heads=4, d_head=64, vocab_size=32_000
    ),
    "124M": Sizes(
        d_model=768, d_ff=2048, n_heads=12, n_kv_heads=12, d_head=64, vocab_size=50_257
    ),
    "grouped": Sizes(
        d_model=1024, d_ff=2752, n_heads=8, n_kv_heads=2, d_head=128, vocab_size=4_099
    ),
    "1.3B": Sizes(
        d_model=2048, d_ff=5504, n_heads=16, n_kv_heads=16, d_head=128, vocab_size=32_000
    ),
    "batched, 0.1M": Sizes(
        d_model=48, d_ff=128, n_heads=4, n_kv_heads=4, d_head=12, vocab_size=256, n_runs=5
    ),
    "batched, aligned": Sizes(
        d_model=128, d_ff=320, n_heads=4, n_kv_heads=4, d_head=32, vocab_size=256, n_runs=3
    ),
    "experts": Sizes(
        d_model=512, d_ff=384, n_heads=8, n_kv_heads=8, d_head=64, vocab_size=8_192,
        n_experts=8, n_active_experts=2,
    ),
}  # fmt: skip
TOYS = {
    "toy": Sizes(d_model=8, d_ff=24, n_heads=4, n_kv_heads=2, d_head=8, vocab_size=33),
    "toy experts": Sizes(
        d_model=8, d_ff=8, n_heads=2, n_kv_heads=2, d_head=4, vocab_size=33, n_runs=2,
        n_experts=3, n_active_experts=2,
    ),
}  # fmt: skip
TOY_ROWS = {"n_rows": 5, "n_positions": 5, "n_weights": 37}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def check(
    *,
    is_tiny: bool,
    dtypes: Sequence[str],
    n_rows: int,
    op: str | None = None,
    but: Sequence[str] = (),
) -> dict[str, Any]:
    """Check an operation, or all except some, at each shape.

    ``problems`` in the result names what is wrong.
    """
    found: dict[str, Any] = {"errors": {}, "problems": []}
    worst = 0.0
    for dtype in dtypes:
        for shape, sizes in (TOYS if is_tiny else SHAPES).items():
            rows = TOY_ROWS if is_tiny else {"n_rows": n_rows}
            for case in shape_checks(sizes, device(), DTYPES[dtype], **rows):
                if case.op in but or op not in (None, case.op):
                    continue
                key = f"{case.op}, {shape}, {dtype}: {case.size}"
                outcome = examine(case)
                found["errors"][key] = [list(outcome.errors), list(outcome.allowed)]
                pairs = zip(outcome.errors, outcome.allowed, strict=True)
                worst = max(worst, *(error / allowed for error, allowed in pairs))
                if outcome.problem:
                    found["problems"].append(f"{key}: {outcome.problem}")
    assert found["errors"] or op is None, f"no check is named {op!r}"
    found["worst_share"] = worst
    found["says"] = (
        f"{plural(len(found['errors']), 'shape')}, largest error {worst:.2f} of the accepted one"
    )
    return found


def documents(*, is_tiny: bool) -> dict[str, Any]:
    """Check our attention with documents, at each head size."""
    found: dict[str, Any] = {"errors": {}, "problems": []}
    make = Checks(device(), torch.bfloat16).attention
    for d_head in (16,) if is_tiny else (16, 32, 64, 128):
        size = (1, 11, 2, 1) if is_tiny else (2, 1000, 8, 4)
        case = make(*size, d_head, document_share=0.2 if is_tiny else 0.01)
        outcome = examine(case)
        found["errors"][case.size] = [list(outcome.errors), list(outcome.allowed)]
        if outcome.problem:
            found["problems"].append(f"{case.size}: {outcome.problem}")
    found["says"] = plural(len(found["errors"]), "head size")
    return found

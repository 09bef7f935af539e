"""Time every kernel on a GPU beside eager torch, torch.compile and (when installed) Liger.

Each figure is a ratio in one run: bytes counted over time as a share of a device-to-device copy,
FLOPs as a share of a bf16 matmul, both measured first, and the others' time over ours::

    TRITON_INTERPRET=0 python tests/benchmarks/kernels_gpu.py [--json FILE] [--only OP ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scalelab_kernels import operations, reference
from torch.nn import functional
from triton.testing import do_bench

BF16 = torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation at one size: what to time, and what it must move and compute."""

    op: str
    size: str
    ways: dict[str, Callable[[], Any]]
    n_bytes: float = 0.0
    flops: float = 0.0


def leaf(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Return a random bf16 leaf on the GPU."""
    return (torch.randn(*shape, device="cuda") * scale).to(BF16).requires_grad_()


def milliseconds(function: Callable[[], Any]) -> float:
    """Return the median time of a call, caches flushed between calls."""
    return float(do_bench(function, warmup=50, rep=300, return_mode="median"))


def ceilings() -> dict[str, float]:
    """Return the copy bandwidth (read and written bytes, GB/s) and the matmul rate (TFLOP/s)."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.numel() * 4 / milliseconds(lambda: target.copy_(source)) / 1e6
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=BF16) for _ in range(2))
    return {"copy_gb_s": copy, "matmul_tflop_s": 2 * 8192**3 / milliseconds(lambda: a @ b) / 1e9}


def both_ways(function: Callable[..., Any], inputs: list[torch.Tensor]) -> Callable[[], Any]:
    """Return a call of forward and backward under fixed output gradients."""
    leaves = [t for t in inputs if t.requires_grad]
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [torch.randn_like(y) for y in outputs]

    def call() -> Any:
        found = function(*inputs)
        return torch.autograd.grad(found, leaves, upstream)

    return call


def ways(
    kernel: Callable[..., Any],
    plain: Callable[..., Any],
    inputs: list[torch.Tensor],
    liger: Callable[..., Any] | None = None,
) -> dict[str, Callable[[], Any]]:
    """Return the contenders of one operation."""
    found = {
        "kernel": both_ways(kernel, inputs),
        "eager": both_ways(plain, inputs),
        "compile": both_ways(torch.compile(plain), inputs),
    }
    if liger is not None:
        found["liger"] = both_ways(liger, inputs)
    return found


def plain_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Any:
    """Add and normalise with torch's own fused norm."""
    stream = x + residual
    return functional.rms_norm(stream, weight.shape, weight, 1e-6), stream


def plain_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Gate as written in most code."""
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate) * up


def liger_functions() -> dict[str, Callable[..., Any]]:
    """Return Liger's operations, or nothing when it is not installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        return {}
    from liger_kernel.transformers import functional as liger

    return {
        "swiglu": lambda x: liger.liger_swiglu(*x.chunk(2, -1)),
        "cross_entropy": lambda h, w, y: liger.liger_fused_linear_cross_entropy(
            h, w, y, reduction="sum"
        ),
    }


def cases() -> Iterator[Case]:
    """Yield every operation at the sizes of a sweep."""
    ops = operations.get_operations("triton", "cuda")
    liger = liger_functions()
    for d in (512, 768, 2048):
        n = 100_000_000 // d
        inputs = [leaf(n, d), leaf(n, d), leaf(d)]
        yield Case(
            op="add_rms_norm", size=f"{n} x {d}", n_bytes=16 * n * d,
            ways=ways(ops.add_rms_norm, plain_norm, inputs),
        )  # fmt: skip
    for d_ff in (2048, 5504):
        n = 100_000_000 // d_ff
        yield Case(
            op="swiglu", size=f"{n} x {d_ff}", n_bytes=16 * n * d_ff,
            ways=ways(ops.swiglu, plain_swiglu, [leaf(n, 2 * d_ff)], liger.get("swiglu")),
        )  # fmt: skip
    for heads, kv_heads, head_dim in ((12, 12, 64), (16, 4, 128)):
        cos, sin = reference.rope_tables(1024, head_dim, device="cuda")
        width = (heads + 2 * kv_heads) * head_dim
        n = 100_000_000 // width // 1024

        def bound(function: Callable[..., Any], table=(cos, sin), count=(heads, kv_heads)) -> Any:
            return lambda qkv, qw, kw: function(qkv, qw, kw, *table, *count)

        inputs = [leaf(n, 1024, width), leaf(head_dim), leaf(head_dim)]
        n_bytes = 2 * n * 1024 * head_dim * (5 * heads + 9 * kv_heads)
        yield Case(
            op="qk_norm_rope", size=f"{n} x 1024 x {width}", n_bytes=n_bytes,
            ways=ways(bound(ops.qk_norm_rope), bound(reference.qk_norm_rope), inputs),
        )  # fmt: skip
    for n, d, n_vocab in ((65_536, 128, 50_304), (65_536, 256, 32_768), (65_536, 768, 50_304)):
        targets = torch.randint(0, n_vocab, (n,), device="cuda")
        inputs = [leaf(n, d), leaf(n_vocab, d, scale=d**-0.5), targets]
        yield Case(
            op="linear_cross_entropy", size=f"{n} x {d} x {n_vocab}", flops=6.0 * n * d * n_vocab,
            ways=ways(
                ops.linear_cross_entropy_sum, reference.linear_cross_entropy_sum, inputs,
                liger.get("cross_entropy"),
            ),
        )  # fmt: skip
    for d_head in (64, 128):
        for n_positions in (1024, 2048):
            batch = 16_384 // n_positions
            q = [leaf(batch, n_positions, 16, d_head) for _ in range(3)]

            def attend(path: Any) -> Callable[..., Any]:
                function = operations.get_attention(path, "cuda")
                return lambda *qkv: function(*(t.transpose(1, 2) for t in qkv))

            yield Case(
                op="attention", size=f"{batch} x 16 x {n_positions} x {d_head}",
                flops=7.0 * batch * 16 * n_positions**2 * d_head,
                ways={
                    name: both_ways(attend(path), q)
                    for name, path in (("kernel", "triton"), ("cudnn", "cudnn"), ("flash", "flash"))
                },
            )  # fmt: skip
    yield adamw_case(ops)


def adamw_case(ops: operations.Operations) -> Case:
    """Return the optimizer step of 124M parameters, with the bf16 copy."""
    n = 124_000_256
    param, grad, exp_avg, exp_avg_sq = (torch.rand(1, n, device="cuda") for _ in range(4))
    copy = torch.empty(1, n, device="cuda", dtype=BF16)
    hyper = reference.hyper_table(lr=1e-3, max_norm=1.0, device="cuda")
    step = torch.tensor(3, device="cuda")
    own = torch.nn.Parameter(param[0].clone())
    own.grad = grad[0].clone()
    fused = torch.optim.AdamW([own], fused=True)

    def torch_s_own() -> None:
        torch.nn.utils.clip_grad_norm_([own], 1.0)
        fused.step()
        copy[0].copy_(own.detach())

    state = (param, grad, exp_avg, exp_avg_sq, step, hyper)
    return Case(
        op="adamw", size=f"{n}", n_bytes=34.0 * n,
        ways={
            "kernel": lambda: ops.adamw_step_(*state, n_decay=n // 2, copy=copy),
            "eager": lambda: reference.adamw_step_(*state, n_decay=n // 2, copy=copy),
            "fused": torch_s_own,
        },
    )  # fmt: skip


def main() -> None:
    """Measure, print a table, and write the JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing is measured and nothing is claimed")
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), **ceilings(), "cases": []}
    sys.stdout.write(
        f"{found['device']}: copy {found['copy_gb_s']:.0f} GB/s, "
        f"matmul {found['matmul_tflop_s']:.0f} TFLOP/s\n"
    )
    for case in cases():
        if options.only and case.op not in options.only:
            continue
        times = {name: milliseconds(call) for name, call in case.ways.items()}
        row = {"op": case.op, "size": case.size, "ms": times}
        if case.n_bytes:
            row["share_of_copy"] = case.n_bytes / times["kernel"] / 1e6 / found["copy_gb_s"]
        if case.flops:
            row["share_of_matmul"] = case.flops / times["kernel"] / 1e9 / found["matmul_tflop_s"]
        found["cases"].append(row)
        ratios = {k: f"{v / times['kernel']:.2f}x" for k, v in times.items() if k != "kernel"}
        share = row.get("share_of_copy", row.get("share_of_matmul"))
        sys.stdout.write(
            f"{case.op:22s} {case.size:24s} {times['kernel']:8.3f} ms  "
            f"{share:5.2f} of the ceiling  {ratios}\n"
        )
        sys.stdout.flush()
        torch.cuda.empty_cache()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

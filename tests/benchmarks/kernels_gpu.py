"""Time all kernels on a GPU and compare with eager torch, torch.compile and Liger (if installed).

Each figure is a ratio within one process: bandwidth as a share of a device-to-device copy, FLOP/s
as a share of a bf16 matmul (both measured first), and the time of the others over ours::

    TRITON_INTERPRET=0 python tests/benchmarks/kernels_gpu.py [--json FILE] [--only OP ...]
    TRITON_INTERPRET=1 python tests/benchmarks/kernels_gpu.py --tiny
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_timing import BF16, Case, arguments, device, header, measure, publish
from scalelab_kernels import operations, reference, reference_moe
from torch.nn import functional

COPY_GOAL = {"share": 0.85}
N_ELEMENTS = 100_000_000


def leaf(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Return a random bf16 leaf."""
    return (torch.randn(*shape, device=device()) * scale).to(BF16).requires_grad_()


def both_ways(function: Callable[..., Any], inputs: list[torch.Tensor]) -> Callable[[], Any]:
    """Return a call of forward and backward under fixed output gradients."""
    leaves = [t for t in inputs if t.requires_grad]
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [torch.randn_like(y) for y in outputs]

    def call() -> Any:
        return torch.autograd.grad(function(*inputs), leaves, upstream)

    return call


class Contenders:
    """Builds the ways of an operation: ours, torch eager, torch.compile, Liger."""

    def __init__(self, *, is_tiny: bool) -> None:
        # Without a GPU, trace the graph as for the compiler and run it uncompiled.
        self.backend = "eager" if is_tiny else "inductor"
        self.has_liger = importlib.util.find_spec("liger_kernel") is not None and not is_tiny

    def __call__(
        self,
        kernel: Callable[..., Any],
        plain: Callable[..., Any],
        inputs: list[torch.Tensor],
        liger: Callable[[Any], Callable[..., Any]] | None = None,
    ) -> dict[str, Callable[[], Any]]:
        """Return each way's call; ``liger`` picks its function from Liger's module."""
        found = {
            "kernel": both_ways(kernel, inputs),
            "eager": both_ways(plain, inputs),
            "compile": both_ways(torch.compile(plain, backend=self.backend), inputs),
        }
        if liger is not None and self.has_liger:
            from liger_kernel.transformers import functional as theirs

            found["liger"] = both_ways(liger(theirs), inputs)
        return found


def plain_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Any:
    """Add and normalize with torch's fused norm."""
    stream = x + residual
    return functional.rms_norm(stream, weight.shape, weight, 1e-6), stream


def plain_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """SwiGLU as most code writes it."""
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate) * up


def streaming_cases(ways: Contenders, *, is_tiny: bool) -> Iterator[Case]:
    """Yield the operations that memory bandwidth limits."""
    ops = operations.get_operations("triton", device())
    n_elements = 300 if is_tiny else N_ELEMENTS
    for d in (16,) if is_tiny else (512, 768, 2048):
        n = n_elements // d
        yield Case(
            op="add_rms_norm", size=f"{n} x {d}", n_bytes=16.0 * n * d, goals=COPY_GOAL,
            ways=ways(
                ops.add_rms_norm, plain_norm, [leaf(n, d), leaf(n, d), leaf(d)],
                # Liger's backward writes into its incoming gradient by default.
                lambda liger: lambda x, r, w: liger.liger_fused_add_rms_norm(
                    x, r, w, 1e-6, in_place=False
                ),
            ),
        )  # fmt: skip
    for d_ff in (24,) if is_tiny else (2048, 5504):
        n = n_elements // d_ff
        yield Case(
            op="swiglu", size=f"{n} x {d_ff}", n_bytes=16.0 * n * d_ff, goals=COPY_GOAL,
            ways=ways(
                ops.swiglu, plain_swiglu, [leaf(n, 2 * d_ff)],
                lambda liger: lambda x: liger.liger_swiglu(*x.chunk(2, -1)),
            ),
        )  # fmt: skip
    length = 4 if is_tiny else 1024
    for heads, kv_heads, head_dim in ((2, 1, 4),) if is_tiny else ((12, 12, 64), (16, 4, 128)):
        cos, sin = reference.rope_tables(length, head_dim, device=device())
        width = (heads + 2 * kv_heads) * head_dim
        n = max(1, n_elements // width // length)

        def bound(function: Callable[..., Any], table=(cos, sin), count=(heads, kv_heads)) -> Any:
            return lambda qkv, qw, kw: function(qkv, qw, kw, *table, *count)

        yield Case(
            op="qk_norm_rope", size=f"{n} x {length} x {width}", goals=COPY_GOAL,
            # q and k: read and write forward, two reads and a write backward; v: one read less.
            n_bytes=2.0 * n * length * head_dim * (5 * heads + 9 * kv_heads),
            ways=ways(
                bound(ops.qk_norm_rope), bound(reference.qk_norm_rope),
                [leaf(n, length, width), leaf(head_dim), leaf(head_dim)],
            ),
        )  # fmt: skip
    n, d, k, n_experts = (6, 8, 2, 3) if is_tiny else (65_536, 768, 2, 16)
    way = reference_moe.route(torch.randint(0, n_experts, (n, k), device=device()), n_experts)
    yield Case(
        op="moe_permute_unpermute", size=f"{n} x {d}, {k} of {n_experts}",
        n_bytes=(4.0 * k + 2 * (k + 1) + 2 * (k + 1) + 2 * (3 * k + 1)) * n * d,
        ways=ways(
            lambda x, w: ops.unpermute(ops.permute(x, way), w, way),
            lambda x, w: reference_moe.unpermute(reference_moe.permute(x, way), w, way),
            [leaf(n, d), torch.rand(n, k, device=device(), requires_grad=True)],
        ),
    )  # fmt: skip


def matrix_cases(ways: Contenders, *, is_tiny: bool) -> Iterator[Case]:
    """Yield the operations that matmul speed limits."""
    ops = operations.get_operations("triton", device())
    sizes = ((65_536, 128, 50_304), (65_536, 256, 32_768), (65_536, 768, 50_304),
             (65_536, 768, 50_257))  # fmt: skip
    for n, d, n_vocab in ((6, 8, 40), (6, 260, 40)) if is_tiny else sizes:
        targets = torch.randint(0, n_vocab, (n,), device=device())
        yield Case(
            op="linear_cross_entropy", size=f"{n} x {d} x {n_vocab}", flops=6.0 * n * d * n_vocab,
            goals={"eager": 1.5, "compile": 1.1},
            ways=ways(
                ops.linear_cross_entropy_sum, reference.linear_cross_entropy_sum,
                [leaf(n, d), leaf(n_vocab, d, scale=d**-0.5), targets],
                lambda liger: lambda h, w, y: liger.liger_fused_linear_cross_entropy(
                    h, w, y, reduction="sum"
                ),
            ),
        )  # fmt: skip
    others = {"sdpa": "sdpa"} if is_tiny else {"cudnn": "cudnn", "flash": "flash"}
    shapes = ((2, 1024, 64), (2, 2048, 64), (2, 1024, 128), (2, 2048, 128))
    for n_heads, length, d_head in ((2, 8, 16),) if is_tiny else shapes:
        batch, n_heads = (1, n_heads) if is_tiny else (16_384 // length, 16)
        qkv = [leaf(batch, length, n_heads, d_head) for _ in range(3)]

        def attend(path: Any) -> Callable[..., Any]:
            function = operations.get_attention(path, device())
            return lambda *heads: function(*(t.transpose(1, 2) for t in heads))

        yield Case(
            op="attention", size=f"{batch} x {n_heads} x {length} x {d_head}",
            # Causal halves of 4 T^2 D forward and 10 T^2 D backward.
            flops=7.0 * batch * n_heads * length**2 * d_head,
            goals={} if is_tiny else {"cudnn": 0.7},
            ways={
                name: both_ways(attend(path), qkv)
                for name, path in {"kernel": "triton", **others}.items()
            },
        )  # fmt: skip


def adamw_case(*, is_tiny: bool) -> Case:
    """Return the optimizer step of 124M parameters, with clipping and the bf16 copy."""
    ops = operations.get_operations("triton", device())
    n = 512 if is_tiny else 124_000_256
    param, grad, exp_avg, exp_avg_sq = (torch.rand(1, n, device=device()) for _ in range(4))
    copy = torch.empty(1, n, device=device(), dtype=BF16)
    hyper = reference.hyper_table(lr=1e-3, max_norm=1.0, device=device())
    step = torch.tensor(3, device=device())
    own = torch.nn.Parameter(param[0].clone())
    own.grad = grad[0].clone()
    fused = torch.optim.AdamW([own], fused=True)

    def torch_s_own() -> None:
        torch.nn.utils.clip_grad_norm_([own], 1.0)
        fused.step()
        copy[0].copy_(own.detach())

    compiled = torch.compile(reference.adamw_step_, backend="eager" if is_tiny else "inductor")
    state = (param, grad, exp_avg, exp_avg_sq, step, hyper)
    return Case(
        op="adamw", size=f"{n}", n_bytes=34.0 * n, goals=COPY_GOAL,
        ways={
            "kernel": lambda: ops.adamw_step_(*state, n_decay=n // 2, copy=copy),
            "eager": lambda: reference.adamw_step_(*state, n_decay=n // 2, copy=copy),
            "compile": lambda: compiled(*state, n_decay=n // 2, copy=copy),
            "fused": torch_s_own,
        },
    )  # fmt: skip


def main() -> None:
    """Measure, print the table, and write it with ``--json``."""
    options = arguments(__doc__)
    found: dict[str, Any] = {**header(is_tiny=options.tiny), "cases": []}
    ways = Contenders(is_tiny=options.tiny)
    makers = (
        lambda: streaming_cases(ways, is_tiny=options.tiny),
        lambda: matrix_cases(ways, is_tiny=options.tiny),
        lambda: iter((adamw_case(is_tiny=options.tiny),)),
    )
    for make in makers:
        for case in make():
            if not options.only or case.op in options.only:
                found["cases"].append(measure(case, found))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    publish(found, options.json)


if __name__ == "__main__":
    main()

"""Speed of single operations, forward and backward, beside torch's and beside the ceilings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scalelab_kernels import operations, reference, reference_moe
from torch.nn import functional

from gpu_cases.timing import BF16, device, hardware_here, milliseconds
from scalelab.theory.roofline import kernel_seconds

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


def timed(
    ways: dict[str, Callable[[], Callable[[], Any]]],
    *,
    is_tiny: bool,
    n_bytes: float = 0.0,
    flops: float = 0.0,
) -> dict[str, Any]:
    """Return times of each way in milliseconds, ratios to ours (``kernel``), and our rate.

    A way is a function that builds the call, because building it can fail too. Only our way must
    succeed.
    """
    found: dict[str, Any] = {"ms": {}, "errors": {}}
    for name, build in ways.items():
        try:
            found["ms"][name] = milliseconds(build(), is_tiny=is_tiny)
        except Exception as error:
            if name == "kernel":
                raise
            found["errors"][name] = f"{type(error).__name__}: {error}"[:300]
    ours = found["ms"]["kernel"]
    if n_bytes:
        found["gb_s"] = n_bytes / ours / 1e6
    if flops:
        found["tflop_s"] = flops / ours / 1e9
    hardware = hardware_here()
    if hardware is not None:
        found["roofline_ms"] = 1e3 * kernel_seconds(hardware, n_bytes=n_bytes, flops=flops)
    ratios = {name: ms / ours for name, ms in found["ms"].items() if name != "kernel"}
    found |= {f"{name}_ratio": ratio for name, ratio in ratios.items()}
    said = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items())
    bound = f" (roofline {found['roofline_ms']:.3f})" if "roofline_ms" in found else ""
    found["says"] = f"{ours:.3f} ms{bound}; {said}"
    return found


def compiled(function: Callable[..., Any], *, is_tiny: bool) -> Callable[..., Any]:
    """Return the function compiled by torch; at toy sizes its graph is traced, not compiled."""
    return torch.compile(function, dynamic=False, backend="eager" if is_tiny else "inductor")


def plain_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Any:
    """Add and normalize with torch's fused norm."""
    stream = x + residual
    return functional.rms_norm(stream, weight.shape, weight, 1e-6), stream


def plain_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """SwiGLU as most code writes it."""
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate) * up


def three_ways(
    kernel: Callable[..., Any],
    plain: Callable[..., Any],
    inputs: list[torch.Tensor],
    *,
    is_tiny: bool,
    **counts: float,
) -> dict[str, Any]:
    """Return the times of our kernel, of eager torch and of compiled torch."""
    ways = {
        "kernel": lambda: both_ways(kernel, inputs),
        "eager": lambda: both_ways(plain, inputs),
        "compiled": lambda: both_ways(compiled(plain, is_tiny=is_tiny), inputs),
    }
    return timed(ways, is_tiny=is_tiny, **counts)


def head(*, is_tiny: bool, d: int, n_vocab: int) -> dict[str, Any]:
    """Time linear + cross-entropy of 65,536 tokens."""
    n, d, n_vocab = (6, 8, 40) if is_tiny else (65_536, d, n_vocab)
    ops = operations.get_operations("triton", device())
    targets = torch.randint(0, n_vocab, (n,), device=device())
    return three_ways(
        ops.linear_cross_entropy_sum,
        reference.linear_cross_entropy_sum,
        [leaf(n, d), leaf(n_vocab, d, scale=d**-0.5), targets],
        is_tiny=is_tiny,
        flops=6.0 * n * d * n_vocab,
    )


def add_norm(*, is_tiny: bool, d: int) -> dict[str, Any]:
    """Time the residual addition with RMSNorm."""
    n, d = (18, 16) if is_tiny else (N_ELEMENTS // d, d)
    ops = operations.get_operations("triton", device())
    inputs = [leaf(n, d), leaf(n, d), leaf(d)]
    return three_ways(ops.add_rms_norm, plain_norm, inputs, is_tiny=is_tiny, n_bytes=16.0 * n * d)


def swiglu(*, is_tiny: bool, d_ff: int) -> dict[str, Any]:
    """Time SwiGLU."""
    n, d_ff = (12, 24) if is_tiny else (N_ELEMENTS // d_ff, d_ff)
    ops = operations.get_operations("triton", device())
    return three_ways(
        ops.swiglu, plain_swiglu, [leaf(n, 2 * d_ff)], is_tiny=is_tiny, n_bytes=16.0 * n * d_ff
    )


def norm_rope(*, is_tiny: bool, n_heads: int, n_kv_heads: int, d_head: int) -> dict[str, Any]:
    """Time the split of query, key and value with QK-norm and RoPE."""
    n_heads, n_kv_heads, d_head = (2, 1, 4) if is_tiny else (n_heads, n_kv_heads, d_head)
    length = 4 if is_tiny else 1024
    width = (n_heads + 2 * n_kv_heads) * d_head
    n = max(1, (300 if is_tiny else N_ELEMENTS) // width // length)
    ops = operations.get_operations("triton", device())
    cos, sin = reference.rope_tables(length, d_head, device=device())

    def bound(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda qkv, qw, kw: function(qkv, qw, kw, cos, sin, n_heads, n_kv_heads)

    return three_ways(
        bound(ops.qk_norm_rope),
        bound(reference.qk_norm_rope),
        [leaf(n, length, width), leaf(d_head), leaf(d_head)],
        is_tiny=is_tiny,
        # q and k: read and write forward, two reads and a write backward; v: one read less.
        n_bytes=2.0 * n * length * d_head * (5 * n_heads + 9 * n_kv_heads),
    )


def experts(*, is_tiny: bool) -> dict[str, Any]:
    """Time the permutation of tokens to their experts and back."""
    n, d, k, n_experts = (6, 8, 2, 3) if is_tiny else (65_536, 768, 2, 16)
    ops = operations.get_operations("triton", device())
    way = reference_moe.route(torch.randint(0, n_experts, (n, k), device=device()), n_experts)

    def bound(module: Any) -> Callable[..., Any]:
        return lambda x, w: module.unpermute(module.permute(x, way), w, way)

    inputs = [leaf(n, d), torch.rand(n, k, device=device(), requires_grad=True)]
    ways = {
        "kernel": lambda: both_ways(bound(ops), inputs),
        "eager": lambda: both_ways(bound(reference_moe), inputs),
    }
    return timed(ways, is_tiny=is_tiny, n_bytes=(4.0 * k + 4 * (k + 1) + 2 * (3 * k + 1)) * n * d)


def adamw(*, is_tiny: bool) -> dict[str, Any]:
    """Time the optimizer step of 124M parameters, with clipping and the bf16 copy."""
    ops = operations.get_operations("triton", device())
    n = 512 if is_tiny else 124_000_256
    param, grad, exp_avg, exp_avg_sq = (torch.rand(1, n, device=device()) for _ in range(4))
    copy = torch.empty(1, n, device=device(), dtype=BF16)
    hyper = reference.hyper_table(lr=1e-3, max_norm=1.0, device=device())
    step = torch.tensor(3, device=device())
    own = torch.nn.Parameter(param[0].clone())
    own.grad = grad[0].clone()

    def torch_s_own() -> Callable[[], Any]:
        fused = torch.optim.AdamW([own], fused=True)

        def call() -> None:
            torch.nn.utils.clip_grad_norm_([own], 1.0)
            fused.step()
            copy[0].copy_(own.detach())

        return call

    def bound(function: Callable[..., Any]) -> Callable[[], Any]:
        state = (param, grad, exp_avg, exp_avg_sq, step, hyper)
        return lambda: function(*state, n_decay=n // 2, copy=copy)

    ways = {
        "kernel": lambda: bound(ops.adamw_step_),
        "fused": torch_s_own,
        "compiled": lambda: bound(compiled(reference.adamw_step_, is_tiny=is_tiny)),
    }
    return timed(ways, is_tiny=is_tiny, n_bytes=34.0 * n)


def attention(*, is_tiny: bool, length: int, d_head: int) -> dict[str, Any]:
    """Time each attention path, forward and backward, 16 heads and 16,384 tokens."""
    batch, n_heads, length, d_head = (
        (1, 2, 8, 16) if is_tiny else (16_384 // length, 16, length, d_head)
    )
    qkv = [leaf(batch, length, n_heads, d_head) for _ in range(3)]

    def attend(path: Any) -> Callable[[], Any]:
        function = operations.get_attention(path, device())
        return both_ways(lambda *heads: function(*(t.transpose(1, 2) for t in heads)), qkv)

    paths = {"kernel": "triton", "flash": "flash", "cudnn": "cudnn", "sdpa": "sdpa"}
    ways = {name: (lambda path=path: attend(path)) for name, path in paths.items()}
    # Causal halves of 4 T^2 D forward and 10 T^2 D backward.
    return timed(ways, is_tiny=is_tiny, flops=7.0 * batch * n_heads * length**2 * d_head)

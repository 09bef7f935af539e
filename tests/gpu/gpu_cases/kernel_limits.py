"""What kernels can do on a GPU: CUDA graphs, torch.compile, little memory, very large tensors."""

from __future__ import annotations

from typing import Any

import torch
from scalelab_kernels import operations, reference
from scalelab_kernels.accuracy import relative_error

from gpu_cases.timing import device

ERROR_MAX = 1e-2
"""Largest relative error of bf16 results here; a wrong offset gives an error of about 1."""


def captured(*, is_tiny: bool) -> dict[str, Any]:
    """Check that operations captured in a CUDA graph give the bits of the same calls outside it."""
    if is_tiny:
        return {"says": "not checked: a CPU has no CUDA graph"}
    ops = operations.get_operations("triton", device())
    hidden, weight = (torch.randn(n, 768, device="cuda").bfloat16() for n in (512, 1024))
    gain = torch.ones(768, device="cuda")
    targets = torch.randint(0, 1024, (512,), device="cuda")
    leaves = [t.requires_grad_() for t in (hidden, weight, gain)]

    def step() -> list[torch.Tensor]:
        loss = ops.linear_cross_entropy_sum(ops.rms_norm(hidden, gain), weight, targets)
        return [loss.detach(), *torch.autograd.grad(loss / 512, leaves)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b), "a replay differs from the calls outside the graph"
    return {"says": "two replays equal the calls outside the graph"}


def compiled(*, is_tiny: bool) -> dict[str, Any]:
    """Check that torch.compile takes our operations into one graph."""
    ops = operations.get_operations("triton", device())
    x = torch.randn(64, 256, device=device()).bfloat16()
    gain = torch.ones(256, device=device(), requires_grad=True)

    def function(x: torch.Tensor) -> torch.Tensor:
        return ops.swiglu(ops.rms_norm(x, gain)).sum()

    backend = "eager" if is_tiny else "inductor"
    whole = torch.compile(function, fullgraph=True, backend=backend)
    torch.testing.assert_close(whole(x), function(x))
    return {"says": "one graph"}


def memory(*, is_tiny: bool) -> dict[str, Any]:
    """Check that linear + cross-entropy needs less than an eighth of the memory of the logits."""
    if is_tiny:
        return {"says": "not checked on a CPU"}
    n_tokens, n_vocab, d = 65_536, 50_304, 768
    ops = operations.get_operations("triton", device())
    hidden = torch.randn(n_tokens, d, device="cuda").bfloat16().requires_grad_()
    weight = (0.02 * torch.randn(n_vocab, d, device="cuda")).bfloat16().requires_grad_()
    targets = torch.randint(0, n_vocab, (n_tokens,), device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = ops.linear_cross_entropy_sum(hidden, weight, targets)
    grads = torch.autograd.grad(loss, (hidden, weight))
    extra = torch.cuda.max_memory_allocated() - before
    extra -= sum(grad.numel() * grad.element_size() for grad in grads)
    share = extra / (n_tokens * n_vocab * 2)
    assert share < 1 / 8, f"{share:.3f} of the logits' memory"
    return {"share_of_logits": share, "says": f"{share:.3f} of the logits' memory"}


def large(*, is_tiny: bool) -> dict[str, Any]:
    """Check more heads than the grid's limit, and rows beyond 32-bit offsets."""
    if is_tiny:
        return {"says": "not checked on a CPU"}
    q = torch.randn(4100, 16, 16, 32, device="cuda").bfloat16()
    out = operations.get_attention("triton", device())(q, q, q)
    expected = reference.causal_attention(*(q[-2:].double() for _ in range(3)))
    errors = {"attention": relative_error(out[-2:], expected)}
    del q, out
    ops = operations.get_operations("triton", device())
    n, d = 2**31 // 1024 + 3, 1024
    x = torch.randn(n, d, device="cuda", dtype=torch.bfloat16)
    gain = torch.ones(d, device="cuda", dtype=torch.bfloat16)
    expected = reference.rms_norm(x[-5:].double(), gain.double())
    errors["rms_norm"] = relative_error(ops.rms_norm(x, gain)[-5:], expected)
    gated = ops.swiglu(x.view(n, d))
    errors["swiglu"] = relative_error(gated[-5:], reference.swiglu(x[-5:].double()))
    assert max(errors.values()) < ERROR_MAX, f"relative errors {errors}"
    return {"errors": errors, "says": f"largest relative error {max(errors.values()):.1e}"}

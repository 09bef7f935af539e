"""The kernels at real sizes on a GPU: as exact as torch in the 2-norm, bitwise repeatable.

The rule is `scalelab_kernels.checks`. At these sizes the error in the 2-norm averages millions of
roundings, so it needs no random roundings (tests/kernels uses them for small sizes).
"""

from __future__ import annotations

import os

import pytest
import torch
from scalelab_kernels import checks, operations, reference
from scalelab_kernels.checks import Checks, relative_error

pytestmark = pytest.mark.gpu

IS_TINY = bool(os.environ.get("SCALELAB_GPU_TINY"))
DEVICE = "cpu" if IS_TINY else "cuda"
only_on_a_gpu = pytest.mark.skipif(IS_TINY, reason="needs a CUDA device")


def size(real, tiny):
    """Return the real size, or the tiny one with SCALELAB_GPU_TINY."""
    return tiny if IS_TINY else real


DTYPES = size([torch.bfloat16, torch.float16, torch.float32], [torch.bfloat16])


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


def randn(*shape, scale=1.0):
    return torch.randn(*shape, device=DEVICE) * scale


def check(case):
    """Check a kernel with the rule that all of the project shares."""
    outcome = checks.examine(case)
    assert not outcome.problem, f"{case.op} {case.size}: {outcome.problem}"


@pytest.fixture(scope="module")
def ops():
    return operations.get_operations("triton", DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", size([257, 768, 2048], [17]))
def test_add_rms_norm(d, dtype):
    check(Checks(DEVICE, dtype).add_rms_norm(size(16_383, 9), d))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d_ff", size([1376, 2048, 5504], [24]))
def test_swiglu(d_ff, dtype):
    check(Checks(DEVICE, dtype).swiglu(size(8191, 5), d_ff))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", size([(12, 12, 64), (16, 4, 128)], [(4, 2, 8)]))
def test_qk_norm_rope(heads, dtype):
    check(Checks(DEVICE, dtype).qk_norm_rope(*size((7, 1023), (2, 3)), *heads))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("d", "n_vocab"),
    size(
        [(64, 50_257), (128, 256), (256, 32_768), (768, 50_304), (768, 50_257)],
        [(8, 33), (264, 33)],
    ),
)
@pytest.mark.parametrize("is_sum", [False, True])
def test_linear_cross_entropy(d, n_vocab, dtype, is_sum):
    check(Checks(DEVICE, dtype).linear_cross_entropy(size(2999, 9), d, n_vocab, is_sum=is_sum))


@only_on_a_gpu
def test_linear_cross_entropy_memory_is_an_eighth_of_the_logits(ops):
    n_tokens, n_vocab, d = 65_536, 50_304, 768
    hidden = randn(n_tokens, d).bfloat16().requires_grad_()
    weight = randn(n_vocab, d, scale=0.02).bfloat16().requires_grad_()
    targets = torch.randint(0, n_vocab, (n_tokens,), device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    grads = torch.autograd.grad(
        ops.linear_cross_entropy_sum(hidden, weight, targets), (hidden, weight)
    )
    extra = torch.cuda.max_memory_allocated() - before
    returned = sum(g.numel() * g.element_size() for g in grads)
    logits = n_tokens * n_vocab * 2
    assert extra - returned < logits / 8, f"{(extra - returned) / logits:.3f} of the logits"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", size([32, 64, 128], [16]))
@pytest.mark.parametrize("document_share", [0.0, size(0.01, 0.2)])
def test_attention(head_dim, document_share, dtype):
    n_seqs, n_positions, *heads = size((2, 1000, 8, 4), (1, 11, 2, 1))
    make = Checks(DEVICE, dtype).attention
    check(make(n_seqs, n_positions, *heads, head_dim, document_share=document_share))


@only_on_a_gpu
def test_more_heads_than_the_grid_limit():
    q = randn(4100, 16, 16, 32).bfloat16()
    out = operations.get_attention("triton", DEVICE)(q, q, q)
    expected = reference.causal_attention(*(q[-2:].double() for _ in range(3)))
    assert relative_error(out[-2:], expected) < 1e-2


@only_on_a_gpu
def test_rows_beyond_32_bit_offsets(ops):
    n, d = 2**31 // 1024 + 3, 1024
    x = randn(n, d).bfloat16()
    out = ops.rms_norm(x, torch.ones(d, device=DEVICE, dtype=torch.bfloat16))
    expected = reference.rms_norm(x[-5:].double(), torch.ones(d, device=DEVICE).double())
    assert relative_error(out[-5:], expected) < 1e-2
    half = d // 2
    gated = ops.swiglu(x.view(n, 2 * half))
    assert relative_error(gated[-5:], reference.swiglu(x[-5:].double())) < 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
def test_moe(dtype):
    n, d, n_choices, n_experts = *size((8191, 768), (7, 8)), 2, 5
    check(Checks(DEVICE, dtype).moe(n, d, n_choices, n_experts))


@only_on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_grouped_linear(dtype):
    check(Checks(DEVICE, dtype).grouped_linear(8191, 768, 2048, 2, 8))


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
def test_adamw(grad_dtype):
    check(Checks(DEVICE, grad_dtype).adamw(3, size(1_000_016, 96), grad_dtype))


@only_on_a_gpu
def test_a_whole_step_is_captured_in_one_graph(ops):
    hidden, weight = randn(512, 768).bfloat16(), randn(1024, 768).bfloat16()
    gain = torch.ones(768, device=DEVICE)
    targets = torch.randint(0, 1024, (512,), device=DEVICE)
    leaves = [hidden.requires_grad_(), weight.requires_grad_(), gain.requires_grad_()]

    def step():
        loss = ops.linear_cross_entropy_sum(ops.rms_norm(hidden, gain), weight, targets)
        return [loss, *torch.autograd.grad(loss / 512, leaves)]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_torch_compile_has_no_graph_break(ops):
    x, gain = randn(64, 256).bfloat16(), torch.ones(256, device=DEVICE, requires_grad=True)

    def function(x):
        return ops.swiglu(ops.rms_norm(x, gain)).sum()

    compiled = torch.compile(function, fullgraph=True, backend=size("inductor", "eager"))
    torch.testing.assert_close(compiled(x), function(x))

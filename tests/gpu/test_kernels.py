"""The kernels at real sizes on a GPU: exact by the rule of tests/kernels, bitwise repeatable."""

from __future__ import annotations

import pytest
import torch
from scalelab_kernels import operations, reference

pytestmark = pytest.mark.gpu

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def randn(*shape, scale=1.0):
    return torch.randn(*shape, device="cuda") * scale


def values(function, inputs, dtype):
    cast = [
        t.to(dtype).requires_grad_() if torch.is_tensor(t) and t.is_floating_point() else t
        for t in inputs
    ]
    outputs = function(*cast)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator(device="cuda").manual_seed(1)
    upstream = [
        torch.randn(y.shape, generator=generator, device="cuda").bfloat16().to(y.dtype)
        for y in outputs
    ]
    leaves = [t for t in cast if torch.is_tensor(t) and t.requires_grad]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, upstream)]


def relative_error(value, exact):
    assert value.isfinite().all()
    return float((value.double() - exact).norm() / exact.norm())


def check(kernel, plain, inputs, dtype, torch_s_own=None):
    inputs = [t.to(dtype) if torch.is_tensor(t) and t.is_floating_point() else t for t in inputs]
    got, again = (values(kernel, inputs, dtype) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True)), "not repeatable"
    beside = values(torch_s_own or plain, inputs, dtype)
    exact = values(plain, inputs, torch.float64)
    for index, (a, b, c) in enumerate(zip(got, beside, exact, strict=True)):
        error, allowed = relative_error(a, c), relative_error(b, c)
        rounding = torch.finfo(a.dtype).eps
        assert error <= 2 * allowed + rounding, f"value {index}: {error:.3g} against {allowed:.3g}"


@pytest.fixture(scope="module")
def ops():
    return operations.get_operations("triton", "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [257, 768, 2048])
def test_add_rms_norm(ops, d, dtype):
    inputs = [randn(16_384, d), randn(16_384, d), randn(d)]
    check(ops.add_rms_norm, reference.add_rms_norm, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d_ff", [1376, 2048, 5504])
def test_swiglu(ops, d_ff, dtype):
    check(ops.swiglu, reference.swiglu, [randn(8192, 2 * d_ff)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim"), [(12, 12, 64), (16, 4, 128)])
def test_qk_norm_rope(ops, n_heads, n_kv_heads, head_dim, dtype):
    def bound(function):
        def call(qkv, q_weight, k_weight):
            wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
            cos, sin = reference.rope_tables(1024, head_dim, device="cuda")
            tables = cos.to(wide), sin.to(wide)
            return function(qkv, q_weight, k_weight, *tables, n_heads, n_kv_heads)

        return call

    qkv = randn(8, 1024, (n_heads + 2 * n_kv_heads) * head_dim)
    inputs = [qkv, randn(head_dim), randn(head_dim)]
    check(bound(ops.qk_norm_rope), bound(reference.qk_norm_rope), inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "n_vocab"), [(64, 50_257), (128, 256), (256, 32_768), (768, 50_304)])
def test_linear_cross_entropy(ops, d, n_vocab, dtype):
    targets = torch.randint(0, n_vocab, (3000,), device="cuda")
    targets[::7] = reference.IGNORE_INDEX
    inputs = [randn(3000, d), randn(n_vocab, d, scale=3 / d**0.5), targets]
    for name in ("linear_cross_entropy", "linear_cross_entropy_sum"):
        check(getattr(ops, name), getattr(reference, name), inputs, dtype)


def test_linear_cross_entropy_memory_is_an_eighth_of_the_logits(ops):
    n_tokens, n_vocab, d = 65_536, 50_304, 768
    hidden = randn(n_tokens, d).bfloat16().requires_grad_()
    weight = randn(n_vocab, d, scale=0.02).bfloat16().requires_grad_()
    targets = torch.randint(0, n_vocab, (n_tokens,), device="cuda")
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
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("has_documents", [False, True])
def test_attention(head_dim, has_documents, dtype):
    n_positions = 1000
    starts = None
    if has_documents:
        ids = torch.rand(2, n_positions, device="cuda").lt(0.01).cumsum(1)
        starts = reference.document_starts(ids)
    q = randn(2, 8, n_positions, head_dim)
    k, v = randn(2, 4, n_positions, head_dim), randn(2, 4, n_positions, head_dim)
    kernel = operations.get_attention("triton", "cuda")

    def plain(path):
        return lambda *qkv: reference.causal_attention(*qkv, starts=starts, path=path)

    check(
        lambda *qkv: kernel(*qkv, starts=starts), plain("explicit"), [q, k, v], dtype, plain("sdpa")
    )


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
def test_adamw(ops, grad_dtype):
    n_runs, n = 3, 1_000_016
    hyper = reference.hyper_table(
        lr=[1e-3, 1e-2, 3e-3], max_norm=1.0, ema_decay=0.99, n_runs=n_runs, device="cuda"
    )
    state = {
        "param": randn(n_runs, n),
        "grad": randn(n_runs, n).to(grad_dtype),
        "exp_avg": randn(n_runs, n, scale=0.1),
        "exp_avg_sq": randn(n_runs, n).square() * 0.1,
        "ema": randn(n_runs, n),
    }
    step = torch.tensor(7, device="cuda")

    def take(function, wide=None):
        own = {k: v.to(wide or v.dtype, copy=True) for k, v in state.items()}
        return own | {"norm": function(**own, step=step, hyper=hyper, n_decay=n // 2)}

    got, again = take(ops.adamw_step_), take(ops.adamw_step_)
    beside, exact = (take(reference.adamw_step_, w) for w in (None, torch.float64))
    for name in got:
        assert torch.equal(got[name], again[name]), name
        allowed = 2 * relative_error(beside[name], exact[name])
        assert relative_error(got[name], exact[name]) <= allowed + 2e-7, name


def test_a_whole_step_is_captured_in_one_graph(ops):
    hidden, weight = randn(512, 768).bfloat16(), randn(1024, 768).bfloat16()
    gain = torch.ones(768, device="cuda")
    targets = torch.randint(0, 1024, (512,), device="cuda")
    leaves = [hidden.requires_grad_(), weight.requires_grad_(), gain.requires_grad_()]

    def step():
        loss = ops.linear_cross_entropy_sum(ops.rms_norm(hidden, gain), weight, targets)
        return [loss, *torch.autograd.grad(loss / 512, leaves)]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            wanted = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, wanted, strict=True))


def test_torch_compile_sees_no_break(ops):
    x, gain = randn(64, 256).bfloat16(), torch.ones(256, device="cuda", requires_grad=True)

    def function(x):
        return ops.swiglu(ops.rms_norm(x, gain)).sum()

    compiled = torch.compile(function, fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x))

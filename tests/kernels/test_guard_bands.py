"""No kernel touches memory outside its arguments.

On a GPU such an access reads another tensor or ends the process, rarely and far from its cause.
Here each argument of a launch is moved between two bands of NaN. A store into a band, or a load
from one that no mask switches off, fails; and with NaN in uninitialized memory too, an element that
a kernel forgets to write is not finite.
"""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
import triton
import triton.language as tl
from scalelab_kernels import (
    adamw,
    attention,
    gram,
    linear_cross_entropy,
    moe,
    qk_norm_rope,
    reference,
    rms_norm,
    swiglu,
)
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

BAND = 256  # bytes; one byte of 0xFF repeated is NaN in all float dtypes


def extent(tensor):
    """Return the first byte of a tensor's memory and the byte after its last, in its storage."""
    size = tensor.element_size()
    first = tensor.storage_offset() * size
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * size


class Guard:
    """Run launches of the interpreter with their tensors between two bands."""

    def __init__(self, monkeypatch):
        self.n_launches = 0
        self.ranges = []
        launch = interpreter.GridExecutor.__call__
        load = interpreter.InterpreterBuilder.create_masked_load
        store = interpreter.InterpreterBuilder.create_masked_store

        def guarded_launch(executor, *arguments, **settings):
            with self.embedded(arguments) as inside:
                return launch(executor, *inside, **settings)

        def guarded_load(builder, pointers, mask, *others):
            self.check("load", pointers, mask)
            return load(builder, pointers, mask, *others)

        def guarded_store(builder, pointers, value, mask, *others):
            self.check("store", pointers, mask)
            return store(builder, pointers, value, mask, *others)

        monkeypatch.setattr(interpreter.GridExecutor, "__call__", guarded_launch)
        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", guarded_load)
        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_store", guarded_store)

    @contextlib.contextmanager
    def embedded(self, arguments):
        """Yield the arguments with each tensor in guarded memory; copy it back afterwards."""
        self.n_launches += 1
        used = {}
        for tensor in arguments:
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                pointer = tensor.untyped_storage().data_ptr()
                first, end = extent(tensor)
                _, low, high = used.get(pointer, (None, first, end))
                used[pointer] = tensor.untyped_storage(), min(low, first), max(high, end)
        buffers = {}
        for pointer, (storage, low, high) in used.items():
            own = torch.empty(0, dtype=torch.uint8).set_(storage)[low:high]
            buffer = torch.full((high - low + 2 * BAND,), 0xFF, dtype=torch.uint8)
            buffer[BAND:-BAND] = own
            buffers[pointer] = own, buffer, low
        self.ranges = [
            (b.data_ptr() + BAND, b.data_ptr() + b.numel() - BAND) for _, b, _ in buffers.values()
        ]

        def move(tensor):
            if not (isinstance(tensor, torch.Tensor) and tensor.numel()):
                return tensor
            _, buffer, low = buffers[tensor.untyped_storage().data_ptr()]
            offset = (extent(tensor)[0] - low + BAND) // tensor.element_size()
            return tensor.new_empty(0).set_(
                buffer.untyped_storage(), offset, tensor.shape, tensor.stride()
            )

        yield tuple(map(move, arguments))
        for own, buffer, _ in buffers.values():
            assert (buffer[:BAND] == 0xFF).all(), "wrote before an argument"
            assert (buffer[-BAND:] == 0xFF).all(), "wrote after an argument"
            own.copy_(buffer[BAND:-BAND])

    def check(self, what, pointers, mask):
        """Raise if an active lane points outside all arguments of the launch."""
        active = pointers.data[mask.data]
        if not active.size:
            return
        size = pointers.get_element_ty().primitive_bitwidth // 8
        first, last = int(active.min()), int(active.max()) + size
        if not any(low <= first and last <= high for low, high in self.ranges):
            raise IndexError(f"a {what} outside the arguments of the launch")


@pytest.fixture
def guard(monkeypatch):
    before = torch.are_deterministic_algorithms_enabled()
    # Also fills new tensors with NaN.
    torch.use_deterministic_algorithms(True)
    yield Guard(monkeypatch)
    torch.use_deterministic_algorithms(before)


def norm(dtype, n_runs):
    x, residual, gain = leaves(dtype, (n_runs, 7, 24), (n_runs, 7, 24), (n_runs, 24))
    alone = rms_norm.rms_norm(x, gain)
    return [alone, *rms_norm.add_rms_norm(x, residual, gain)], [x, residual, gain]


def gate(dtype, n_runs):
    (x,) = leaves(dtype, (n_runs, 5, 2 * 20))
    return [swiglu.swiglu(x)], [x]


def rope(dtype, n_runs):
    qkv, q_gain, k_gain = leaves(dtype, (n_runs, 5, 5 * 12), (n_runs, 12), (n_runs, 12))
    cos, sin = reference.rope_tables(5, 12)
    outputs = qk_norm_rope.qk_norm_rope(qkv, q_gain, k_gain, cos, sin, 3, 1)
    plain = qk_norm_rope.qk_norm_rope(qkv, None, None, cos, sin, 3, 1)
    return [*outputs, *plain], [qkv, q_gain, k_gain]


def attend(dtype, n_runs, *, has_documents):
    q, k, v = leaves(dtype, (n_runs, 19, 4, 12), (n_runs, 19, 2, 12), (n_runs, 19, 2, 12))
    starts = torch.tensor([0] * 3 + [3] * 9 + [12] * 7, dtype=torch.int32).expand(n_runs, 19)
    heads = (t.transpose(1, 2) for t in (q, k, v))
    out = attention.causal_attention(*heads, starts=starts if has_documents else None)
    return [out], [q, k, v]


def entropy(dtype, n_runs, *, d, name):
    hidden, weight = leaves(dtype, (n_runs, 13, d), (n_runs, 77, d))
    targets = torch.randint(0, 77, (n_runs, 13))
    targets[:, 3] = reference.IGNORE_INDEX
    targets[:, 4] = 76
    loss = getattr(linear_cross_entropy, name)(hidden, weight, targets, z_loss=1e-2)
    return [loss], [hidden, weight]


def experts(dtype, n_runs):
    x, weights = leaves(dtype, (9, 20), (9, 2))
    routing = moe.route(torch.randint(0, 4, (9, 2)), 4)
    return [moe.unpermute(moe.permute(x, routing), weights, routing)], [x, weights]


def optimizer(dtype, n_runs):
    state = [torch.rand(n_runs, 101) for _ in range(4)]
    copy, ema = torch.rand(n_runs, 101).bfloat16(), torch.rand(n_runs, 101)
    hyper = reference.hyper_table(lr=0.1, n_runs=n_runs)
    norms = adamw.adamw_step_(*state, torch.tensor(3), hyper, n_decay=50, copy=copy, ema=ema)
    return [norms, *state, copy, ema], []


def product(dtype, n_runs):
    (x,) = leaves(dtype, (n_runs, 40, 20))
    return [gram.gram(x.detach())], []


def leaves(dtype, *shapes):
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


OPERATIONS = {
    "norm": norm,
    "swiglu": gate,
    "qk-norm and rope": rope,
    "attention": functools.partial(attend, has_documents=False),
    "attention with documents": functools.partial(attend, has_documents=True),
    "cross-entropy by tiles": functools.partial(entropy, d=20, name="linear_cross_entropy"),
    "cross-entropy by chunks": functools.partial(entropy, d=264, name="linear_cross_entropy"),
    "cross-entropy sum": functools.partial(entropy, d=264, name="linear_cross_entropy_sum"),
    "mixture of experts": experts,
    "adamw": optimizer,
    "symmetric product": product,
}


def results_of(operation, dtype, n_runs):
    torch.manual_seed(0)
    outputs, inputs = operation(dtype, n_runs)
    upstream = [torch.randn_like(output) for output in outputs]
    gradients = torch.autograd.grad(outputs, inputs, upstream) if inputs else ()
    return [t.detach() for t in (*outputs, *gradients)]


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_kernel_leaves_its_arguments(guard, name):
    values = results_of(OPERATIONS[name], torch.bfloat16, n_runs=2)
    assert guard.n_launches
    assert all(value.isfinite().all() for value in values)


@triton.jit
def shift_kernel(source, out, n, AHEAD: tl.constexpr, BEHIND: tl.constexpr):
    index = tl.arange(0, 8)
    value = tl.load(source + index + AHEAD, index < n)
    tl.store(out + index - BEHIND, value, index < n)


@pytest.mark.parametrize(("ahead", "behind", "what"), [(1, 0, "load"), (0, 1, "store")])
def test_one_element_outside_is_noticed(guard, ahead, behind, what):
    source, out = torch.rand(20)[5:12], torch.zeros(20)[5:12]
    shift_kernel[(1,)](source, out, 7, AHEAD=0, BEHIND=0)
    assert torch.equal(source, out)
    with pytest.raises(InterpreterError, match=f"a {what} outside the arguments"):
        shift_kernel[(1,)](source, out, 7, AHEAD=ahead, BEHIND=behind)


def test_a_changed_band_is_noticed(guard):
    values = torch.rand(7)
    with pytest.raises(AssertionError, match="wrote after"), guard.embedded([values]) as (inside,):
        torch.as_strided(inside, (8,), (1,))[7] = 0.0

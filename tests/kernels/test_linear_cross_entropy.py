from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab_kernels import configs, cross_entropy_tiles, reference
from scalelab_kernels import linear_cross_entropy as op
from torch.utils._python_dispatch import TorchDispatchMode

from scalelab.theory import step_work

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FUNCTIONS = ["linear_cross_entropy", "linear_cross_entropy_sum"]
# One width for each implementation.
NARROW, WIDE = 20, 264


def make(lead, d, n_vocab, n_runs=1, masked=0.3):
    weight = torch.randn((n_runs, n_vocab, d) if n_runs > 1 else (n_vocab, d)) * (3 / d**0.5)
    targets = torch.randint(0, n_vocab, lead)
    targets[torch.rand(lead) < masked] = reference.IGNORE_INDEX
    return [torch.randn(*lead, d), weight, targets]


def compare(check_op, name, inputs, dtype, **settings):
    def bound(module):
        return lambda *arguments: getattr(module, name)(*arguments, **settings)

    check_op(bound(op), bound(reference), inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [NARROW, WIDE])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("lead", "n_vocab", "n_runs"),
    [((1,), 1, 1), ((13,), 77, 1), ((2, 7), 256, 1), ((3, 2, 4), 33, 3)],
)
def test_values_and_gradients(check_op, name, d, lead, n_vocab, n_runs, dtype):
    compare(check_op, name, make(lead, d, n_vocab, n_runs), dtype, z_loss=1e-2)


@pytest.mark.parametrize("lead", [(5, 2), (3, 7)])
def test_runs_share_a_chunk_only_if_it_holds_them(check_op, monkeypatch, lead):
    products = []
    original = torch.bmm

    def spy(a, b, *, out=None):
        if out is not None and a.shape[-1] == WIDE:
            products.append(tuple(a.shape[:2]))
        return original(a, b, out=out)

    monkeypatch.setattr(op.torch, "bmm", spy)
    inputs = make(lead, WIDE, 33, n_runs=lead[0])
    compare(check_op, "linear_cross_entropy_sum", inputs, torch.bfloat16)
    # A chunk of the interpreter has 6 rows.
    assert products == ([(3, 2), (2, 2)] if lead == (5, 2) else [(1, 6), (1, 1)] * 3)


def test_the_roofline_assumes_the_same_choice_of_implementation():
    assert step_work.FUSED_HEAD_MAX_WIDTH == configs.NARROW
    for d in (128, 192):
        assert configs.recomputes_tiles("hopper", d, 2) == (d == 128)
        assert not configs.recomputes_tiles("hopper", d, 4)


@pytest.mark.parametrize("route", ["tiles", "chunks"])
@pytest.mark.parametrize("n_vocab", [50_257, 50_304])
def test_real_vocabularies(check_op, monkeypatch, n_vocab, route):
    monkeypatch.setattr(op, "recomputes_tiles", lambda *_: route == "tiles")
    compare(check_op, "linear_cross_entropy_sum", make((3,), NARROW, n_vocab), torch.bfloat16)


@pytest.mark.parametrize("d", [NARROW, WIDE])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_labels_masked_is_zero_with_zero_gradients(name, d):
    hidden, weight, targets = make((5,), d, 11, masked=2.0)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    loss = getattr(op, name)(*leaves, targets, z_loss=1e-2).sum()
    assert loss == 0
    assert not any(g.any() for g in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("d", [NARROW, WIDE])
def test_another_ignore_index_masks_a_label_of_the_vocabulary(check_op, d):
    inputs = make((9,), d, 5, masked=0.0)
    compare(check_op, "linear_cross_entropy", inputs, torch.float32, ignore_index=2)


@pytest.mark.parametrize("d", [NARROW, WIDE])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_logits_of_minus_infinity_have_no_share(check_op, name, d):
    hidden, weight, targets = make((7,), d, 40, masked=0.0)
    hidden[:, 0], weight[:, 0] = 1e20, 0.0
    weight[::3, 0] = -1e20
    targets[:] = torch.arange(7) * 3 + 1
    logits = hidden @ weight.T
    assert torch.isneginf(logits[:, ::3]).all()
    # Gradients of column 0 are sums of 1e20: compared apart from the others would be meaningless.
    leaves = [t.clone().requires_grad_() for t in (hidden, weight)]
    beside = [t.clone().requires_grad_() for t in (hidden, weight)]
    values = [
        (loss.sum(), torch.autograd.grad(loss.sum(), pair))
        for module, pair in ((op, leaves), (reference, beside))
        for loss in [getattr(module, name)(*pair, targets)]
    ]
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [NARROW, WIDE])
def test_huge_logits_neither_overflow_nor_vanish(check_op, d, dtype):
    hidden, weight, targets = make((6,), d, 50)
    compare(check_op, "linear_cross_entropy", [hidden * 300, weight * 30, targets], dtype)


@pytest.mark.parametrize("d", [NARROW, WIDE])
@pytest.mark.parametrize("label", [-1, 12])
def test_a_label_outside_the_vocabulary_makes_only_its_own_loss_nan(d, label):
    hidden, weight, targets = make((4,), d, 12, masked=0.0)
    targets[2] = label
    losses = op.linear_cross_entropy(hidden, weight, targets)
    assert losses.isnan().tolist() == [False, False, True, False]


@settings(max_examples=12, deadline=None)
@given(
    n_tokens=st.integers(1, 15),
    n_vocab=st.integers(1, 60),
    d=st.sampled_from([1, 16, 33, 257]),
    z_loss=st.sampled_from([0.0, 1e-4]),
    name=st.sampled_from(FUNCTIONS),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(check_op, n_tokens, n_vocab, d, z_loss, name, seed):
    torch.manual_seed(seed)
    compare(check_op, name, make((n_tokens,), d, n_vocab), torch.float32, z_loss=z_loss)


@pytest.mark.parametrize("d", [NARROW, WIDE])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_runs_are_bitwise_equal(name, d):
    hidden, weight, targets = make((21,), d, 70)
    leaves = [t.bfloat16().requires_grad_() for t in (hidden, weight)]

    def once():
        loss = getattr(op, name)(*leaves, targets).sum()
        return [loss, *torch.autograd.grad(loss, leaves)]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


class Allocations(TorchDispatchMode):
    """Record the number of elements of each new tensor below torch's dispatcher."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = [*args, *(kwargs or {}).values()]
        known = {t.untyped_storage().data_ptr() for t in inputs if isinstance(t, torch.Tensor)}
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in known:
                self.sizes.append(value.numel())
        return result


def allocated(function, *arguments):
    # The mode does not see the body of a custom op, so call the plain function.
    body = getattr(function, "_init_fn", function)
    with torch.no_grad(), Allocations() as seen:
        body(*arguments)
    assert seen.sizes
    return seen.sizes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["_chunked_sum", "_chunked", "_chunked_backward"])
def test_chunked_memory_is_bounded_by_the_chunk_and_not_by_the_tokens(name):
    d, n_vocab, chunk = 8, 97, 6
    for n_tokens in (13, 52, 208):
        hidden, weight, targets = make((1, n_tokens), d, n_vocab)
        first = (torch.rand(1, n_tokens),) if name == "_chunked_backward" else ()
        sizes = allocated(getattr(op, name), *first, hidden, weight[None], targets, 0.0, -100)
        gradients_and_losses = (hidden.numel(), weight.numel(), n_tokens)
        others = [s for s in sizes if s not in gradients_and_losses]
        buffer = chunk * 128  # rows of 97 logits, padded
        assert max(others) == buffer
        assert others.count(buffer) == 1


def test_tiled_memory_is_a_few_gradients_and_no_logits():
    d, n_vocab, n_tokens, shares = 4, 997, 208, 6
    hidden, weight, targets = make((1, n_tokens), d, n_vocab)
    settings = (hidden, weight[None], targets)
    forward = allocated(cross_entropy_tiles.tiled_cross_entropy, *settings, 0.0, -100)
    assert max(forward) <= 3 * shares * n_tokens
    backward = allocated(
        cross_entropy_tiles.tiled_cross_entropy_backward,
        torch.rand(1, n_tokens), *settings, torch.rand(2, 1, n_tokens), 0.0, -100,
    )  # fmt: skip
    assert max(backward) <= shares * d * n_vocab < n_tokens * n_vocab / 8


def test_without_gradients_none_are_computed(monkeypatch):
    hidden, weight, targets = make((13,), WIDE, 31)
    hidden.requires_grad_()
    calls = []
    original = op._run_chunks

    def spy(*arguments, has_grad):
        calls.append(has_grad)
        return original(*arguments, has_grad=has_grad)

    monkeypatch.setattr(op, "_run_chunks", spy)
    with torch.no_grad():
        without = op.linear_cross_entropy_sum(hidden, weight, targets)
    assert calls == [False]
    assert torch.equal(without, op.linear_cross_entropy_sum(hidden, weight, targets))
    assert calls == [False, True]


@pytest.mark.parametrize("n_runs", [1, 2])
def test_registered_as_torch_expects(n_runs):
    ops = torch.ops.scalelab
    lead = (n_runs, 5)
    hidden, weight, targets = make(lead, NARROW, 9, n_runs)
    weight = weight.view(n_runs, 9, NARROW)
    leaves = (hidden.requires_grad_(), weight.requires_grad_())
    settings = (targets, 1e-4, -100)
    for name in ("tiled_cross_entropy", "chunked_cross_entropy", "chunked_cross_entropy_sum"):
        torch.library.opcheck(getattr(ops, name).default, (*leaves, *settings))
    fixed = [t.detach() for t in leaves]
    per_token = torch.rand(lead)
    ones = (targets, torch.rand(2, *lead), 1e-4, -100)
    torch.library.opcheck(ops.tiled_cross_entropy_backward.default, (per_token, *fixed, *ones))
    arguments = (per_token, *fixed, *settings)
    torch.library.opcheck(ops.chunked_cross_entropy_backward.default, arguments)
    arguments = (torch.rand(n_runs), *fixed, torch.bfloat16)
    torch.library.opcheck(ops.scale_gradients.default, arguments)

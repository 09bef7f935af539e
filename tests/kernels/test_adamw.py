from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab_kernels import adamw, reference

SETTINGS = {"weight_decay": 0.1, "ema_decay": 0.9, "max_norm": 1.0, "grad_scale": 0.5}


def make_state(n_runs, n, param_dtype, grad_dtype, *, has_copy, has_ema):
    return {
        "param": torch.randn(n_runs, n).to(param_dtype),
        "grad": torch.randn(n_runs, n).to(grad_dtype),
        "exp_avg": torch.randn(n_runs, n) * 0.1,
        "exp_avg_sq": torch.rand(n_runs, n) * 0.1,
        "copy": torch.full((n_runs, n), float("nan"), dtype=torch.bfloat16) if has_copy else None,
        "ema": torch.randn(n_runs, n) if has_ema else None,
    }


def clone(state, wide=None):
    return {
        k: v if v is None else (v.clone() if wide is None else v.to(wide, copy=True))
        for k, v in state.items()
    }


def take(module, state, hyper, step, n_decay, **more):
    norm = module.adamw_step_(**state, step=step, hyper=hyper, n_decay=n_decay, **more)
    return {**state, "norm": norm}


def compare(check_value, random_roundings, state, hyper, step, n_decay):
    got = take(adamw, clone(state), hyper, step, n_decay)
    beside = take(reference, clone(state), hyper, step, n_decay)
    exact = take(reference, clone(state, torch.float64), hyper, step, n_decay)

    @functools.cache
    def draws():
        found = []
        for rounding in random_roundings(state["param"].shape[1]):
            wide = clone(state, torch.float64)
            with rounding:
                found.append(take(reference, wide, hyper, step, n_decay))
        return found

    for name, value in got.items():
        if value is not None:
            check_value(
                value, beside[name], exact[name], name, lambda n=name: [d[n] for d in draws()]
            )


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("extras", [(False, False), (True, True), (True, False)])
@pytest.mark.parametrize(("n_runs", "n", "n_decay"), [(1, 1, 0), (1, 333, 100), (3, 130, 130)])
def test_one_step(check_value, random_roundings, n_runs, n, n_decay, extras, grad_dtype):
    has_copy, has_ema = extras
    state = make_state(n_runs, n, torch.float32, grad_dtype, has_copy=has_copy, has_ema=has_ema)
    lr = [0.01 * (k + 1) for k in range(n_runs)]
    hyper = reference.hyper_table(lr=lr, n_runs=n_runs, **SETTINGS)
    step = torch.tensor(7) if n_runs == 1 else torch.tensor([1, 7, 100_000])
    compare(check_value, random_roundings, state, hyper, step, n_decay)


@settings(max_examples=12, deadline=None)
@given(
    # One parameter has the width of the table of factors.
    n=st.integers(2, 200),
    step=st.integers(1, 10**7),
    beta1=st.sampled_from([0.0, 0.9, 0.99]),
    beta2=st.sampled_from([0.0, 0.95, 0.9999]),
    max_norm=st.sampled_from([1e-3, 1.0, float("inf")]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_size_step_and_betas(
    check_value, random_roundings, n, step, beta1, beta2, max_norm, seed
):
    torch.manual_seed(seed)
    state = make_state(1, n, torch.float32, torch.float32, has_copy=True, has_ema=True)
    hyper = reference.hyper_table(
        lr=0.03, beta1=beta1, beta2=beta2, max_norm=max_norm, ema_decay=0.999
    )
    compare(check_value, random_roundings, state, hyper, torch.tensor(step), n // 2)


def test_twenty_steps_follow_torch_s_adamw():
    n = 97
    start = torch.randn(n)
    leaf = start.clone().requires_grad_()
    own = torch.optim.AdamW([leaf], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    state = {"param": start.clone(), "exp_avg": torch.zeros(n), "exp_avg_sq": torch.zeros(n)}
    hyper = reference.hyper_table(lr=0.01)
    for step in range(1, 21):
        leaf.grad = torch.randn(n)
        own.step()
        adamw.adamw_step_(**state, grad=leaf.grad, step=torch.tensor(step), hyper=hyper, n_decay=n)
    torch.testing.assert_close(state["param"], leaf.detach(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("module", [adamw, reference])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_run_does_not_change_and_the_others_continue(module, bad):
    state = make_state(3, 70, torch.float32, torch.float32, has_copy=True, has_ema=True)
    hyper = reference.hyper_table(lr=0.1, n_runs=3, **SETTINGS)
    clean = take(module, clone(state), hyper, torch.tensor(3), 70)
    before = clone(state)
    state["grad"][1, 33] = bad
    after = take(module, state, hyper, torch.tensor(3), 70)
    assert [bool(x) for x in after["norm"].isfinite()] == [True, False, True]
    for name in ("param", "exp_avg", "exp_avg_sq", "ema"):
        assert torch.equal(after[name][1], before[name][1]), name
        assert torch.equal(after[name][::2], clean[name][::2]), name
        assert not torch.equal(after[name][0], before[name][0]), name
    assert torch.equal(after["copy"][1], before["param"][1].bfloat16())


def test_a_run_does_not_depend_on_the_other_batched_runs():
    state = make_state(3, 150, torch.float32, torch.bfloat16, has_copy=True, has_ema=True)
    lr = [0.1, 0.2, 0.3]
    batched = take(
        adamw, clone(state), reference.hyper_table(lr=lr, n_runs=3, **SETTINGS),
        torch.tensor([1, 2, 3]), 99,
    )  # fmt: skip
    alone = {k: v[1:2].clone() for k, v in state.items()}
    alone = take(adamw, alone, reference.hyper_table(lr=0.2, **SETTINGS), torch.tensor(2), 99)
    assert all(torch.equal(batched[k][1:2].flatten(), alone[k].flatten()) for k in alone)


def test_stochastic_rounding_gives_the_reference_s_bits_and_keeps_the_mean():
    n = 4000
    state = make_state(1, n, torch.bfloat16, torch.float32, has_copy=False, has_ema=False)
    state["param"].fill_(1.0)
    hyper = reference.hyper_table(lr=1e-3, weight_decay=0.0)
    state["grad"].fill_(1.0)
    state["exp_avg"].fill_(1.0)
    state["exp_avg_sq"].fill_(1.0)
    more = {"seed": torch.tensor(12345)}
    step = torch.tensor(10**6)
    got = take(adamw, clone(state), hyper, step, n, **more)["param"]
    assert torch.equal(got, take(reference, clone(state), hyper, step, n, **more)["param"])
    # 1 - 1e-3 lies between 1 and the bf16 below it, 1 - 2^-8.
    assert set(got.unique().tolist()) == {1.0, 1 - 2.0**-8}
    spread = 2.0**-8 * (0.256 * 0.744 / n) ** 0.5
    assert abs(float(got.double().mean()) - (1 - 1e-3)) < 5 * spread
    other = take(adamw, clone(state), hyper, step, n, seed=torch.tensor(12346))["param"]
    assert not torch.equal(got, other)
    nearest = take(adamw, clone(state), hyper, step, n)["param"]
    assert (nearest == 1.0).all()


@pytest.mark.parametrize("module", [adamw, reference])
def test_a_seed_without_rounding_is_an_error(module):
    state = make_state(1, 8, torch.float32, torch.float32, has_copy=False, has_ema=False)
    with pytest.raises(ValueError, match="bf16"):
        take(module, state, reference.hyper_table(lr=1.0), torch.tensor(1), 8, seed=torch.tensor(1))


def test_a_buffer_with_strides_is_an_error():
    state = make_state(1, 8, torch.float32, torch.float32, has_copy=False, has_ema=False)
    state["exp_avg"] = torch.zeros(1, 16)[:, ::2]
    with pytest.raises(ValueError, match="exp_avg"):
        take(adamw, state, reference.hyper_table(lr=1.0), torch.tensor(1), 8)


def test_a_part_of_a_wider_buffer_gives_the_bits_of_a_copy_and_changes_nothing_else():
    wide = make_state(3, 400, torch.float32, torch.float32, has_copy=True, has_ema=True)
    wide["copy"].zero_()
    hyper = reference.hyper_table(lr=[0.1, 0.2, 0.3], n_runs=3, **SETTINGS)
    step = torch.tensor([1, 2, 3])
    before = clone(wide)
    copied = {k: v[:, 96:331].contiguous() for k, v in wide.items()}
    copied = take(adamw, copied, hyper, step, 99)
    part = take(adamw, {k: v[:, 96:331] for k, v in wide.items()}, hyper, step, 99)
    assert all(torch.equal(part[k], copied[k]) for k in copied)
    for name, value in wide.items():
        for outside in (slice(96), slice(331, None)):
            assert torch.equal(value[:, outside], before[name][:, outside]), name
    assert not torch.equal(wide["param"], before["param"])


def test_parts_of_buffers_of_other_widths_are_an_error():
    state = make_state(2, 8, torch.float32, torch.float32, has_copy=False, has_ema=False)
    state["grad"] = torch.zeros(2, 16)[:, :8]
    with pytest.raises(ValueError, match="grad"):
        take(adamw, state, reference.hyper_table(lr=1.0, n_runs=2), torch.tensor(1), 8)


def test_a_column_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="beta2"):
        reference.hyper_table(lr=0.1, beta2=[0.9, 0.95], n_runs=3)


@pytest.mark.parametrize("has_extras", [True, False])
def test_registered_as_torch_expects(has_extras):
    state = make_state(2, 10, torch.float32, torch.float32, has_copy=has_extras, has_ema=has_extras)
    if has_extras:
        state["copy"].zero_()
    hyper = reference.hyper_table(lr=0.1, n_runs=2)
    names = ("param", "grad", "exp_avg", "exp_avg_sq")
    arguments = (*(state[k] for k in names), torch.tensor(3), hyper, 5)
    arguments += (state["copy"], state["ema"], None)
    torch.library.opcheck(torch.ops.scalelab.adamw_step.default, arguments)

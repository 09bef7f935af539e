"""The shared rule accepts torch's own operations and finds wrong, NaN and unrepeatable kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scalelab_kernels import accuracy, checks, reference
from scalelab_kernels.operations import get_operations

PLAIN = get_operations("reference", "cpu")


def outcome_with(**changed):
    ops = replace(PLAIN, **changed)
    return accuracy.examine(checks.Checks("cpu", torch.float32, ops).add_rms_norm(7, 12))


def test_torch_itself_passes():
    assert outcome_with().problem == ""


def test_an_error_far_above_rounding_is_found():
    def wrong(x, residual, weight, eps=1e-6):
        return reference.add_rms_norm(x, residual, weight * 1.00001, eps)

    assert "value 0" in outcome_with(add_rms_norm=wrong).problem


def test_a_wrong_gradient_is_found():
    def wrong(x, residual, weight, eps=1e-6):
        return reference.add_rms_norm(x.detach() * 0.5 + x * 0.5, residual, weight, eps)

    assert "value 2" in outcome_with(add_rms_norm=wrong).problem


def test_nan_is_found():
    def wrong(x, residual, weight, eps=1e-6):
        normed, stream = reference.add_rms_norm(x, residual, weight, eps)
        return normed * torch.nan, stream

    assert "inf" in outcome_with(add_rms_norm=wrong).problem


def test_two_evaluations_that_differ_are_found():
    calls = iter(range(100))

    def wobbling(x, residual, weight, eps=1e-6):
        return reference.add_rms_norm(x, residual, weight * (1 + 1e-7 * (next(calls) % 2)), eps)

    assert outcome_with(add_rms_norm=wobbling).problem == "two evaluations differ"


def test_the_checks_of_a_model_are_those_of_its_kernels():
    dense = checks.Sizes(d_model=16, d_ff=24, n_heads=2, n_kv_heads=1, d_head=8, vocab_size=61)
    mixture = replace(dense, n_experts=4, n_active_experts=2)
    names = [
        {check.op for check in checks.shape_checks(sizes, "cpu", torch.float32)}
        for sizes in (dense, mixture)
    ]
    assert names[1] - names[0] == {"permute and unpermute", "grouped_linear"}
    assert {"adamw", "attention", "linear_cross_entropy_sum", "swiglu"} <= names[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interpreted_kernels_pass(dtype):
    made = checks.Checks("cpu", dtype)
    for check in (made.swiglu(3, 5), made.rms_norm(3, 6, 2), made.adamw(2, 33), made.gram(1, 5, 9)):
        assert accuracy.examine(check).problem == ""

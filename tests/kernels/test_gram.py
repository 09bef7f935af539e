from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab_kernels import gram, reference_gram

LINEAR, SQUARE = -4.775, 2.0315


def compare(check_value, x):
    """Compare both products with torch's in the same dtype and in float64."""
    for call in (
        lambda module, value: module.gram(value),
        lambda module, value: module.gram_polynomial(value, LINEAR, SQUARE),
    ):
        found, beside = call(gram, x), call(reference_gram, x)
        check_value(found, beside, call(reference_gram, x.double()), "product")
        # The polynomial is of a symmetric matrix.
        x = found
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 32, 40), (3, 37, 24), (1, 70, 7), (2, 33, 65)])
def test_products(check_value, shape, dtype):
    compare(check_value, torch.randn(shape).to(dtype) / shape[2] ** 0.5)


@settings(max_examples=8, deadline=None)
@given(
    n=st.integers(1, 3), rows=st.integers(1, 70), cols=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_shape(check_value, n, rows, cols, seed):
    torch.manual_seed(seed)
    compare(check_value, torch.randn(n, rows, cols).bfloat16())


def test_the_result_is_symmetric_and_a_matrix_does_not_depend_on_the_others():
    x = torch.randn(3, 50, 24).bfloat16()
    found = gram.gram(x)
    assert torch.equal(found, found.transpose(1, 2))
    assert torch.equal(found[1:2], gram.gram(x[1:2]))


def test_a_transposed_matrix_is_read_as_such():
    x = torch.randn(2, 24, 40)
    turned = x.transpose(1, 2)
    assert torch.equal(gram.gram(turned), gram.gram(turned.contiguous()))


def test_registered_as_torch_expects():
    torch.library.opcheck(torch.ops.scalelab.gram.default, (torch.randn(2, 5, 9), 1.0, 0.0))

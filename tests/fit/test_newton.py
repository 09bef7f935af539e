"""Batches of small systems: which are positive definite, and their solutions."""

import numpy as np
import pytest

from scalelab.fit.newton import FEW, solve_positive


@pytest.mark.parametrize("copies", [1, FEW])
def test_indefinite_systems_are_detected(copies):
    rng = np.random.default_rng(0)
    root = rng.standard_normal((6, 5, 5))
    matrix = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(5)
    rhs = rng.standard_normal((6, 5))
    matrix[1] -= 20 * np.eye(5)
    matrix[3, 4, 4] = -1e-3
    matrix[4, 0, 0] = np.nan
    found, is_positive = solve_positive(np.tile(matrix, (copies, 1, 1)), np.tile(rhs, (copies, 1)))
    expected = [True, False, True, False, False, True]
    np.testing.assert_array_equal(is_positive, expected * copies)
    good = np.flatnonzero(expected)
    exact = np.linalg.solve(matrix[good], rhs[good, :, None])[:, :, 0]
    np.testing.assert_allclose(found[good], exact, rtol=1e-10)
    np.testing.assert_array_equal(found[[1, 3, 4]], 0.0)


def test_a_singular_system_is_not_positive():
    matrix = np.stack([np.eye(3), np.ones((3, 3))])
    _, is_positive = solve_positive(matrix, np.ones((2, 3)))
    np.testing.assert_array_equal(is_positive, [True, False])

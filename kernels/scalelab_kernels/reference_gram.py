"""Products of Muon's Newton-Schulz steps whose results are symmetric, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def gram(x: Tensor) -> Tensor:
    """Return ``X X^T`` of each matrix, shape (n, rows, rows).

    Parameters
    ----------
    x : Tensor, shape (n, rows, columns)
    """
    return torch.bmm(x, x.transpose(1, 2))


def gram_polynomial(matrix: Tensor, linear: float, square: float) -> Tensor:
    """Return ``linear A + square A A`` of each symmetric matrix, shape (n, rows, rows).

    Parameters
    ----------
    matrix : Tensor, shape (n, rows, rows)
        From `gram`.
    linear, square : float
        Coefficients.
    """
    return torch.baddbmm(matrix, matrix, matrix, beta=linear, alpha=square)

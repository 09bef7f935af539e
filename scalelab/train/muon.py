"""Muon's update of a matrix: orthogonalized by Newton-Schulz steps, and scaled.

References
----------
Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/ (coefficients, steps in bf16).
Liu et al. 2025, arXiv:2502.16982, section 2.2 (the update is scaled to AdamW's root mean square, so
learning rate and weight decay carry over).
"""

from __future__ import annotations

import torch
from scalelab_kernels import reference_gram
from scalelab_kernels.operations import Operations
from torch import Tensor

MUON_RMS = 0.2
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
_EPSILON = 1e-7


def muon_scale(n_rows: int, n_columns: int) -> float:
    """Return the factor that scales an orthogonal update to AdamW's root mean square."""
    return float(MUON_RMS * max(n_rows, n_columns) ** 0.5)


def orthogonalize(matrices: Tensor, ops: Operations, *, is_half: bool) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1 (0.7 to 1.2).

    Takes five quintic Newton-Schulz steps. Runs in bf16 and fp8 take them in bf16, on the matrix
    units: they need no more precision, because the steps pull every singular value towards 1 again.

    Parameters
    ----------
    matrices : Tensor of fp32, shape (n, rows, columns)
    ops : Operations
        Their `gram` and `gram_polynomial` are used for steps in bf16; steps in fp32 use torch's
        products.
    is_half : bool
        Take the steps in bf16.

    Returns
    -------
    Tensor of fp32 or bf16, shape of ``matrices``
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.transpose(-2, -1) if is_tall else matrices
    norms = wide.flatten(1).norm(dim=1).clamp(min=_EPSILON).view(-1, 1, 1)
    gram, gram_polynomial = reference_gram.gram, reference_gram.gram_polynomial
    if is_half:
        # One pass divides in fp32, transposes and rounds.
        x = torch.empty(wide.shape, dtype=torch.bfloat16, device=wide.device)
        torch.div(wide, norms, out=x)
        gram, gram_polynomial = ops.gram, ops.gram_polynomial
    else:
        x = wide / norms
    for _ in range(NEWTON_SCHULZ_STEPS):
        x = torch.baddbmm(x, gram_polynomial(gram(x), b, c), x, beta=a)
    return x.transpose(-2, -1) if is_tall else x

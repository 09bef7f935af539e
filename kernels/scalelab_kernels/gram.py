"""Products of Muon's Newton-Schulz steps whose results are symmetric, at half the arithmetic.

``X X^T`` and ``b A + c A A`` of a symmetric ``A`` are symmetric. A program computes one tile on or
below the diagonal and stores it twice: in place, and transposed on the other side. With ``T`` tiles
a side, that is ``(T + 1) / (2 T)`` of a full product. Tiles of all matrices are one grid.

References
----------
Jordan et al. 2024, https://github.com/KellerJordan/modded-nanogpt, whose records use the same idea.
"""

# Triton compiles the kernels from their source, in which annotations would be wrong.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from scalelab_kernels.configs import gram_config
from scalelab_kernels.runtime import architecture, check_runs_here, dot, round_to

_UNIT = 8


@triton.jit
def _gram_kernel(
    x, out, alpha, beta, row_units, col_units, n_tiles,
    UNIT: tl.constexpr, HAS_BETA: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    # The compiler sees that sizes are multiples of the unit, and loads 16 bytes at a time.
    n_rows = row_units * UNIT
    n_cols = col_units * UNIT
    program = tl.program_id(0)
    matrix = (program // n_tiles).to(tl.int64)
    tile = program % n_tiles
    # Tile t of a triangle is (i, j) with t = i (i + 1) / 2 + j. The root may be off by one.
    i = ((tl.sqrt(8.0 * tile + 1.0) - 1.0) * 0.5).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > tile, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= tile, i + 1, i)
    j = tile - i * (i + 1) // 2
    row = i * ROWS + tl.arange(0, ROWS)
    col = j * ROWS + tl.arange(0, ROWS)
    x += matrix * n_rows * n_cols
    out += matrix * n_rows * n_rows
    in_rows = row[:, None] < n_rows
    in_cols = col[:, None] < n_rows
    acc = tl.zeros((ROWS, ROWS), tl.float32)
    for start in range(0, n_cols, COLS):
        k = start + tl.arange(0, COLS)
        in_k = k[None, :] < n_cols
        left = tl.load(x + row[:, None] * n_cols + k[None, :], in_rows & in_k, other=0.0)
        right = tl.load(x + col[:, None] * n_cols + k[None, :], in_cols & in_k, other=0.0)
        acc = dot(left, tl.trans(right), acc)
    acc *= alpha
    inside = in_rows & (col[None, :] < n_rows)
    place = row[:, None] * n_rows + col[None, :]
    if HAS_BETA:
        acc += beta * tl.load(x + place, inside, other=0.0).to(tl.float32)
    value = round_to(acc, out.dtype.element_ty)
    tl.store(out + place, value, inside)
    if i != j:
        mirrored = col[:, None] * n_rows + row[None, :]
        tl.store(out + mirrored, tl.trans(value), in_cols & (row[None, :] < n_rows))


@torch.library.custom_op("scalelab::gram", mutates_args=())
def _gram(x: Tensor, alpha: float, beta: float) -> Tensor:
    n_matrices, n_rows, n_cols = x.shape
    x = x.contiguous()
    config = gram_config(architecture(x), n_rows, x.element_size())
    out = torch.empty(n_matrices, n_rows, n_rows, dtype=x.dtype, device=x.device)
    unit = math.gcd(n_rows, n_cols, _UNIT)
    n_blocks = triton.cdiv(n_rows, config.rows)
    n_tiles = n_blocks * (n_blocks + 1) // 2
    _gram_kernel[(n_matrices * n_tiles,)](
        x, out, alpha, beta, n_rows // unit, n_cols // unit, n_tiles,
        UNIT=unit, HAS_BETA=beta != 0.0, ROWS=config.rows, COLS=config.cols,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out


@_gram.register_fake
def _(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], x.shape[1])


def gram(x: Tensor) -> Tensor:
    """Return `scalelab_kernels.reference_gram.gram`.

    Raises
    ------
    KernelUnavailableError
        Where Triton cannot run.
    """
    check_runs_here(x)
    product: Tensor = _gram(x, 1.0, 0.0)
    return product


def gram_polynomial(matrix: Tensor, linear: float, square: float) -> Tensor:
    """Return `scalelab_kernels.reference_gram.gram_polynomial`.

    Raises
    ------
    KernelUnavailableError
        Where Triton cannot run.
    """
    check_runs_here(matrix)
    polynomial: Tensor = _gram(matrix, square, linear)
    return polynomial

"""RMS norms as recorded calls over fixed buffers; their gains are in the matrices after them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scalelab.train.direct.calls import Calls
from scalelab.train.model import NORM_EPSILON


def finish_rstd(calls: Calls, sums: Tensor, n: int) -> None:
    """Convert sums of n squares to reciprocal root mean squares, in place."""
    calls.add(torch.add, torch.tensor(NORM_EPSILON), sums, alpha=1 / n, out=sums)
    calls.add(sums.rsqrt_)


@dataclass(kw_only=True, slots=True)
class SavedNorm:
    """Values that a norm saves for the backward pass.

    Attributes
    ----------
    normed : Tensor of fp32, shape (K, d, M)
        The normalised input.
    factor : Tensor, shape (K, d, M)
        The same as a factor of products; in fp32 the same tensor.
    rstd : Tensor of fp32, shape (K, 1, M)
        Reciprocal root mean squares.
    """

    normed: Tensor
    factor: Tensor
    rstd: Tensor


class Norm:
    """Norms over the d features of the M tokens of K runs, in fp32."""

    def __init__(self, n_runs: int, d_model: int, n_tokens: int) -> None:
        self.d_model = d_model
        self._square = torch.empty(n_runs, d_model, n_tokens)
        self._row_sum = torch.empty(n_runs, 1, n_tokens)

    def new_saved(self, dtype: torch.dtype) -> SavedNorm:
        """Return buffers for one norm whose output is a factor of products in ``dtype``."""
        normed = torch.empty_like(self._square)
        is_same = dtype == normed.dtype
        factor = normed if is_same else torch.empty_like(normed, dtype=dtype)
        return SavedNorm(normed=normed, factor=factor, rstd=torch.empty_like(self._row_sum))

    def forward(self, calls: Calls, x: Tensor, saved: SavedNorm) -> None:
        """Add the calls that normalise x of fp32, shape (K, d, M)."""
        calls.add(torch.mul, x, x, out=self._square)
        calls.add(torch.sum, self._square, 1, keepdim=True, out=saved.rstd)
        finish_rstd(calls, saved.rstd, self.d_model)
        calls.add(torch.mul, x, saved.rstd, out=saved.normed)
        calls.convert(saved.normed, saved.factor)

    def backward(self, calls: Calls, grad: Tensor, saved: SavedNorm, grad_x: Tensor) -> None:
        """Add the calls that add the input's gradient to ``grad_x``; they overwrite ``grad``."""
        calls.add(torch.mul, grad, saved.normed, out=self._square)
        calls.add(torch.sum, self._square, 1, keepdim=True, out=self._row_sum)
        calls.add(grad.addcmul_, saved.normed, self._row_sum, value=-1 / self.d_model)
        calls.add(grad_x.addcmul_, grad, saved.rstd)

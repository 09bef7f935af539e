"""A weight matrix as the products of a recorded step read it, and the gradient of its gain."""

from __future__ import annotations

import torch
from torch import Tensor

from scalelab.train.direct.calls import Calls


class Matrix:
    """A weight of K runs, with the gain of the norm before it, in the dtype of the products.

    Parameters
    ----------
    weight : Tensor of fp32, shape (K, out, in)
    gain : Tensor of fp32, shape (K, in), or None
        Multiplied into the matrix.
    scale : float
        Multiplied into the matrix too, if it has a gain.
    dtype : torch.dtype
        fp32 or bf16.
    has_backward : bool
        Whether a backward pass reads `turned`.

    Attributes
    ----------
    operand : Tensor of ``dtype``, shape (K, out, in)
        Written by `refresh`; the weight itself if nothing changes it.
    turned : Tensor of ``dtype``, shape (K, in, out)
        The transpose. In bf16 it is a copy: products with a transposed view take up to twice as
        long.
    """

    def __init__(
        self,
        weight: Tensor,
        gain: Tensor | None = None,
        *,
        scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
        has_backward: bool = True,
    ) -> None:
        self.weight, self.gain, self.scale = weight, gain, scale
        is_half = dtype != weight.dtype
        is_own = is_half or gain is not None
        self.operand = torch.empty(weight.shape, dtype=dtype) if is_own else weight
        self.turned = self.operand.mT
        self._is_copied = is_half and has_backward
        if self._is_copied:
            self.turned = self.turned.contiguous()

    def refresh(self, calls: Calls) -> None:
        """Add the calls that write `operand` and `turned` from the weight."""
        if self.gain is None:
            calls.convert(self.weight, self.operand)
        else:
            calls.add(torch.mul, self.weight, self.gain.unsqueeze(1), out=self.operand)
            if self.scale != 1.0:
                calls.add(self.operand.mul_, self.scale)
        if self._is_copied:
            # After the conversion: one copy that converts and transposes takes 9 times as long.
            calls.add(self.turned.copy_, self.operand.mT)

    def unfold(self, calls: Calls, grad: Tensor, grad_gain: Tensor) -> None:
        """Add the calls that convert the operand's gradient to those of the weight and the gain.

        Parameters
        ----------
        calls : Calls
            Appended to.
        grad : Tensor of fp32, shape (K, out, in)
            Overwritten.
        grad_gain : Tensor of fp32, shape (K, in)
            Written.
        """
        assert self.gain is not None
        if self.scale != 1.0:
            calls.add(grad.mul_, self.scale)
        product = torch.empty_like(self.weight)
        calls.add(torch.mul, grad, self.weight, out=product)
        calls.add(torch.sum, product, 1, out=grad_gain)
        calls.add(grad.mul_, self.gain.unsqueeze(1))

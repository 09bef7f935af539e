"""A step over fixed buffers as a list of calls, recorded once and executed at each step.

Python's overhead (slicing, views, attribute lookups) then occurs only once. In models of a few
thousand parameters it is most of the time outside the arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Calls:
    """A sequence of recorded calls."""

    def __init__(self) -> None:
        self._calls: list[functools.partial[Any]] = []
        self._buffers: dict[tuple[torch.Size, torch.dtype], Tensor] = {}

    def add(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Append a call."""
        self._calls.append(functools.partial(function, *arguments, **options))

    def matmuls(
        self,
        left: Tensor,
        right: Tensor,
        out: Tensor,
        scale: float = 1.0,
        *,
        adds: bool = False,
    ) -> None:
        """Append calls that write ``scale * left @ right`` to ``out``, or add it if ``adds``.

        ``out`` may be fp32 where the factors are bf16: the product is then rounded to bf16 and
        converted. Each run has its own product, so a batched run has the bits of a separate one.

        Parameters
        ----------
        left, right, out : Tensor, shape (K, n, k), (K, k, m) and (K, n, m)
        scale : float
        adds : bool
        """
        if out.dtype != left.dtype:
            product = self._buffer(out, left.dtype)
            self.matmuls(left, right, product, scale)
            if adds:
                # Adding bf16 values to fp32 ones is slower than converting them first.
                wide = self._buffer(out, out.dtype)
                self.convert(product, wide)
                self.add(out.add_, wide)
            else:
                self.convert(product, out)
            return
        for a, b, into in zip(left, right, out, strict=True):
            if scale == 1.0 and not adds:
                self.add(torch.mm, a, b, out=into)
            else:
                self.add(torch.addmm, into, a, b, beta=int(adds), alpha=scale, out=into)

    def convert(self, source: Tensor, into: Tensor) -> None:
        """Append a copy to the other dtype; none if ``into`` is the same memory.

        Values that a step in bf16 has twice, in fp32 and rounded, a step in fp32 has once.
        """
        if into.dtype != source.dtype:
            self.add(into.copy_, source)

    def _buffer(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a buffer that calls of one shape share."""
        key = (like.shape, dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(like.shape, dtype=dtype)
        return self._buffers[key]

    def execute(self) -> None:
        """Execute the calls, in order."""
        for call in self._calls:
            call()

"""A step over fixed buffers as a list of calls, recorded once and executed at each step.

Python's overhead (slicing, views, attribute lookups) then occurs only once. In models of a few
thousand parameters it is most of the time outside the arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Calls:
    """A sequence of recorded calls."""

    def __init__(self) -> None:
        self._calls: list[functools.partial[Any]] = []

    def add(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Append a call."""
        self._calls.append(functools.partial(function, *arguments, **options))

    def matmuls(
        self,
        left: Iterable[Tensor],
        right: Iterable[Tensor],
        out: Iterable[Tensor],
        scale: float = 1.0,
        *,
        adds: bool = False,
    ) -> None:
        """Append calls that write ``scale * left @ right`` to ``out``, or add it if ``adds``.

        Each run has its own product, so a batched run has the bits of a separate one.
        """
        for a, b, into in zip(left, right, out, strict=True):
            if scale == 1.0 and not adds:
                self.add(torch.mm, a, b, out=into)
            else:
                self.add(torch.addmm, into, a, b, beta=int(adds), alpha=scale, out=into)

    def execute(self) -> None:
        """Execute the calls, in order."""
        for call in self._calls:
            call()

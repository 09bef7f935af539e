"""A step over fixed buffers as a list of calls, gathered once and made again and again.

What a step costs in Python (slicing, viewing, looking up) is then paid once: with models of a few
thousand parameters that is most of what is not arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Calls:
    """A fixed sequence of calls."""

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
        """Append the calls that write ``scale left @ right``, or add it, run by run.

        One product a run, so that a packed run has the bits of a separate one.
        """
        for a, b, into in zip(left, right, out, strict=True):
            if scale == 1.0 and not adds:
                self.add(torch.mm, a, b, out=into)
            else:
                self.add(torch.addmm, into, a, b, beta=int(adds), alpha=scale, out=into)

    def make(self) -> None:
        """Make the calls, in order."""
        for call in self._calls:
            call()

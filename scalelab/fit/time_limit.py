"""A limit on the time of a fit, which the solver and the sampler check in each step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from scalelab.errors import DataError

_LIMIT: ContextVar[tuple[float, float] | None] = ContextVar("limit", default=None)
"""When the fit must end (monotonic, s), and the limit that it was given (s)."""


class TimeLimitError(DataError):
    """A fit that takes longer than its limit."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Let fits in this block take this time; an earlier end of an outer block stays.

    Raises
    ------
    TimeLimitError
        From `check_time` in the block, once the time has passed.
    """
    outer, own = _LIMIT.get(), (time.monotonic() + seconds, seconds)
    token = _LIMIT.set(own if outer is None else min(outer, own))
    try:
        yield
    finally:
        _LIMIT.reset(token)


def check_time() -> None:
    """Raise TimeLimitError if the time of the block around this call has passed."""
    limit = _LIMIT.get()
    if limit is not None and time.monotonic() > limit[0]:
        raise TimeLimitError(
            f"a fit that takes longer than {limit[1]:g} s",
            "a fit within the time limit",
            "Use a longer --time-limit, or fewer rows.",
        )

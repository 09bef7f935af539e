"""Call a function that reads files for many items; where files are slow, the waits overlap.

A call to a parallel file system takes milliseconds, of which a process computes nothing. Threads
then wait together. On a local disk they cost more than they save, so the first calls decide.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

PROBED = 8
LONG_WAIT_S = 0.002
"""Mean wait of a call above which calls overlap."""
THREADS = 32

_Item = TypeVar("_Item")
_Value = TypeVar("_Value")


def overlapped(
    call: Callable[[_Item], _Value], items: Iterable[_Item]
) -> Iterator[_Value | Exception]:
    """Yield the value of each item, or the exception that the call raised, in order."""

    def outcome(item: _Item) -> _Value | Exception:
        try:
            return call(item)
        except Exception as error:  # the caller handles it where the item is due
            return error

    left = iter(items)
    waited_s = 0.0
    for item in itertools.islice(left, PROBED):
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        found = outcome(item)
        waited_s += time.perf_counter() - wall_s - (time.thread_time() - cpu_s)
        yield found
    if waited_s < PROBED * LONG_WAIT_S:
        yield from map(outcome, left)
        return
    pool = ThreadPoolExecutor(THREADS)
    try:
        ahead = deque(pool.submit(outcome, item) for item in itertools.islice(left, 2 * THREADS))
        while ahead:
            found = ahead.popleft().result()
            ahead.extend(pool.submit(outcome, item) for item in itertools.islice(left, 1))
            yield found
    finally:
        pool.shutdown(cancel_futures=True)

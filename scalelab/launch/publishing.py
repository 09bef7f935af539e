"""Publishing the tables while a sweep runs, so that the page and `fit` show its first runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from scalelab.launch.base import Watcher
from scalelab.store.collect import collect

INTERVAL_S = 2.0
"""Shortest time between two collections while runs train."""
CPU_SHARE = 0.05
"""Largest share of one core that collecting takes from a launch."""
TIME_SHARE = 0.2
"""Largest share of the time in which it reads files: they may lie on a slow parallel filesystem."""


class Publisher:
    """Collects in a thread: at the launch, after each event, and every few seconds.

    A collection that fails (another collector works, a full disk) is left to the next one: the
    collection at the end of the launch reports what lasts.
    """

    def __init__(self, results: Path) -> None:
        self.results = results
        self._wake = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """Ask for a collection as soon as the limits allow one."""
        self._wake.set()

    def close(self) -> None:
        """Wait for the collection that is in progress, and start no other."""
        self._is_over = True
        self._wake.set()
        self._thread.join()

    def _work(self) -> None:
        # What the first collection takes is mostly the import of its libraries.
        is_first = True
        while not self._is_over:
            self._wake.clear()
            started_s, started_cpu_s = time.monotonic(), time.thread_time()
            with contextlib.suppress(Exception):
                collect(self.results, wait_s=0.0)
            took_s, cpu_s = time.monotonic() - started_s, time.thread_time() - started_cpu_s
            limit_s = 0.0 if is_first else max(cpu_s / CPU_SHARE, took_s / TIME_SHARE)
            self._wait(max(INTERVAL_S, limit_s))
            is_first = False

    def _wait(self, pause_s: float) -> None:
        """Wait until the next collection is allowed, and then for an event or one more interval."""
        until = time.monotonic() + pause_s
        while not self._is_over and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        if not self._is_over:
            self._wake.wait(INTERVAL_S)


@contextlib.contextmanager
def publishing(results: Path) -> Iterator[Watcher]:
    """Publish the tables while the block runs; the watcher asks for it at each event."""
    publisher = Publisher(results)
    try:
        yield lambda view: publisher.changed() if view.note else None
    finally:
        publisher.close()

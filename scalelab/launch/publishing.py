"""Publishing the tables while a sweep runs, so that the page and `fit` show its first runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scalelab.launch.base import Watcher
from scalelab.store.collect import collect


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How often the tables are collected.

    Attributes
    ----------
    pause_s : float
        Shortest pause between two collections, seconds.
    cpu_share : float
        Largest share of one core that collecting takes from a launch.
    time_share : float
        Largest share of the time in which it reads files, which may lie on a slow parallel
        filesystem.
    """

    pause_s: float
    cpu_share: float
    time_share: float

    def after(self, took_s: float, cpu_s: float) -> float:
        """Return the pause after a collection that took this long."""
        return max(self.pause_s, cpu_s / self.cpu_share, took_s / self.time_share)


PROGRESS = Limits(pause_s=2.0, cpu_share=0.05, time_share=0.2)
"""While runs train: their curves are longer, and nothing else has changed."""
EVENT = Limits(pause_s=1.0, cpu_share=0.2, time_share=1.0)
"""After an event, such as a finished run, which people wait for: it is shown within 5 s."""
TICK_S = 0.1


class Publisher:
    """Collects in a thread: at the launch, soon after each event, and every few seconds.

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
            self._wait(*(0.0, 0.0) if is_first else (took_s, cpu_s))
            is_first = False

    def _wait(self, took_s: float, cpu_s: float) -> None:
        """Wait until the next collection is due; an event makes it due earlier."""
        over_s = time.monotonic()
        while not self._is_over:
            limits = EVENT if self._wake.is_set() else PROGRESS
            left_s = over_s + limits.after(took_s, cpu_s) - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(left_s, TICK_S))


@contextlib.contextmanager
def publishing(results: Path) -> Iterator[Watcher]:
    """Publish the tables while the block runs; the watcher asks for it at each event."""
    publisher = Publisher(results)
    try:
        yield lambda view: publisher.changed() if view.note else None
    finally:
        publisher.close()

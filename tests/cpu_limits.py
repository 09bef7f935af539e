"""Limits in processor seconds, on machines of any speed.

Processor time does not count what other processes take, but a slower processor needs more of it,
and so does one whose cores share what a busy neighbour uses.
"""

from __future__ import annotations

import sys

from tests.benchmarks.speed_works import YARDSTICK, said_seconds

YARDSTICK_S = 0.33
"""Processor time of the fixed load where the limits were set (results/tables/speed.md)."""


def slowness() -> float:
    """Return how many times as long as there this machine needs now; 1 where it is faster."""
    script = f"{YARDSTICK}\nimport time\nprint(time.process_time())"
    return max(1.0, said_seconds([sys.executable, "-c", script]) / YARDSTICK_S)

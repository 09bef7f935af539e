"""Energy used by a run, in joules, from the machine's hardware counters.

* GPU: NVML's counter of the whole board.
* CPU: RAPL's counters of packages and memory (``/sys/class/powercap``). They count all processes,
  so a process gets the share that its CPU time has of the machine's busy time.

Without a readable counter the energy is None; it is never estimated from a nominal power.

References
----------
NVML API, ``nvmlDeviceGetTotalEnergyConsumption`` (mJ; Volta and newer).
Linux, ``Documentation/power/powercap/powercap.rst`` (counters wrap at ``max_energy_range_uj``).
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
PROC_STAT = Path("/proc/stat")
READING_INTERVAL_S = 0.25
_IDLE_FIELDS = (3, 4)
_COUNTED_FIELDS = 8


class EnergyMeter:
    """Joules used by this process since the meter was created.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda``.
    """

    def __init__(self, device: str) -> None:
        self._read = _gpu_counter() if device == "cuda" else _cpu_counter()
        self._last_s = time.monotonic()
        self.joules: float | None = None if self._read is None else 0.0

    def read(self, *, n_runs: int = 1, is_last: bool = False) -> float | None:
        """Return a run's joules so far, or None without a readable counter.

        Parameters
        ----------
        n_runs : int
            Runs that shared the device since the last call; each gets an equal share.
        is_last : bool
            Whether to read the counter even within `READING_INTERVAL_S` of the last reading.
        """
        now = time.monotonic()
        if self._read is None or self.joules is None:
            return None
        if is_last or now - self._last_s >= READING_INTERVAL_S:
            self._last_s = now
            try:
                self.joules += self._read() / n_runs
            except (OSError, ValueError):
                self.joules = None
        return self.joules


def _gpu_counter() -> Callable[[], float] | None:
    """Return a function that returns the current GPU's joules since its last call, or None."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        handle = ctypes.c_void_p()
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(
            uuid.encode(), ctypes.byref(handle)
        ):
            return None
    except (OSError, AttributeError):
        return None

    def total() -> float:
        found = ctypes.c_ulonglong()
        if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(found)):
            raise OSError("NVML has no energy counter for this GPU")
        return found.value / 1e3

    return _differences(total)


def _differences(total: Callable[[], float]) -> Callable[[], float] | None:
    try:
        last = total()
    except OSError:
        return None

    def since() -> float:
        nonlocal last
        before, last = last, total()
        return last - before

    return since


def _cpu_counter() -> Callable[[], float] | None:
    """Return a function that returns this process's joules since its last call, or None."""
    zones = _rapl_zones()
    try:
        ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        last = [int((zone / "energy_uj").read_text()) for zone in zones]
        own, busy = time.process_time(), _busy_s()
    except (OSError, ValueError):
        return None
    if not zones:
        return None

    def since() -> float:
        nonlocal last, own, busy
        now = [int((zone / "energy_uj").read_text()) for zone in zones]
        used = sum((b - a) % r for a, b, r in zip(last, now, ranges, strict=True)) / 1e6
        own_now, busy_now = time.process_time(), _busy_s()
        # /proc/stat counts in steps of 10 ms, so a short interval can show less than our own time.
        all_s = max(busy_now - busy, own_now - own)
        share = (own_now - own) / all_s if all_s > 0 else 0.0
        last, own, busy = now, own_now, busy_now
        return used * share

    return since


def _rapl_zones() -> list[Path]:
    """Return the zones of packages and of memory; other zones are parts of a package."""
    zones = sorted(POWERCAP.glob("intel-rapl:*"))
    return [zone for zone in zones if zone.name.count(":") == 1 or _zone_name(zone) == "dram"]


def _zone_name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


def _busy_s() -> float:
    """Return the CPU seconds that the whole machine was busy since it booted."""
    fields = [int(word) for word in PROC_STAT.read_text().split("\n", 1)[0].split()[1:]]
    ticks = sum(field for i, field in enumerate(fields[:_COUNTED_FIELDS]) if i not in _IDLE_FIELDS)
    return ticks / os.sysconf("SC_CLK_TCK")

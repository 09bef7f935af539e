"""What ``nvidia-smi`` says about the GPU: once at the start, and often during the cases."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from typing import Any

FIXED = ("name", "driver_version", "vbios_version", "memory.total", "power.limit", "clocks.max.sm")
FIXED += ("clocks.max.memory", "ecc.mode.current", "compute_mode", "mig.mode.current")
SAMPLED = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
SAMPLED += ("clocks_throttle_reasons.active",)
INTERVAL_MS = 500
TIMEOUT_S = 20.0
IDLE_REASON = 1
"""Bit of the throttle reasons that says that the GPU was idle."""


def fixed_facts() -> dict[str, str]:
    """Return the fixed facts of the first GPU; empty without ``nvidia-smi``."""
    command = ["nvidia-smi", f"--query-gpu={','.join(FIXED)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    return dict(zip(FIXED, values, strict=False))


class Sampler:
    """Samples of the first GPU while the program runs; without ``nvidia-smi`` there are none."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, list[float]]] = []
        self._process: subprocess.Popen[str] | None = None
        command = ["nvidia-smi", f"--query-gpu={','.join(SAMPLED)}", f"-lms={INTERVAL_MS}"]
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [*command, "--format=csv,noheader,nounits", "--id=0"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            threading.Thread(target=self._read, daemon=True).start()

    def between(self, start_s: float, end_s: float) -> dict[str, Any]:
        """Return clocks (MHz), power (W) and throttle reasons between two monotonic times.

        Throttle reasons are the bits of NVML; 1 (idle) is left out. Empty without samples.
        """
        rows = [values for time_s, values in list(self.samples) if start_s <= time_s <= end_s]
        if not rows:
            return {}
        sm, memory, power, temperature, _, _ = (list(column) for column in zip(*rows, strict=True))
        reasons = 0
        for row in rows:
            reasons |= int(row[-1])
        return {
            "sm_mhz": [min(sm), max(sm)],
            "memory_mhz": [min(memory), max(memory)],
            "power_w_max": max(power),
            "temperature_c_max": max(temperature),
            "throttle_reasons": hex(reasons & ~IDLE_REASON),
        }

    def stop(self) -> None:
        """End ``nvidia-smi``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            parts = [part.strip() for part in line.split(",")]
            with contextlib.suppress(ValueError):
                values = [_number(part) for part in parts]
                if len(values) == len(SAMPLED):
                    self.samples.append((time.monotonic(), values))


def _number(text: str) -> float:
    """Return a number of ``nvidia-smi``; the throttle reasons are hexadecimal, absent ones 0."""
    if text.startswith("0x"):
        return float(int(text, 16))
    return 0.0 if text.startswith("[") else float(text)

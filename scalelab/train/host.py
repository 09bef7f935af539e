"""The host of an attempt: torch's process settings, its version and the name of the device."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch

from scalelab.records.machine import cpu_name
from scalelab.sweep.execution import ExecutionSpec


@contextlib.contextmanager
def torch_settings(execution: ExecutionSpec) -> Iterator[None]:
    """Set torch's process-wide settings that the numbers depend on; restore them at the end."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(execution.n_threads)
    # Moments of rarely used weights decay into denormals, which are 100 times slower on a CPU.
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(n_threads)


def torch_version() -> dict[str, str]:
    """Return the version of torch, as ``attempt.json`` records it."""
    return {"torch": str(torch.__version__)}


@functools.cache
def device_name(device: str) -> str:
    """Return the GPU's name as the driver gives it, or the CPU's model name."""
    return str(torch.cuda.get_device_name()) if device == "cuda" else cpu_name()

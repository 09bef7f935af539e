"""What a verdict holds for: the device of this process and the versions of its software."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from scalelab_kernels import is_interpreting

from scalelab.records.qualification import Platform
from scalelab.records.software import ABSENT, installed_version, trainer_revision
from scalelab.train.host import device_name

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_DRIVER = re.compile(r"Kernel Module[^0-9]*([0-9]+\.[0-9.]+)")


def is_measurable(device: str) -> bool:
    """Say whether there is something to qualify: a GPU, or a CPU with interpreted kernels."""
    return device == "cuda" or (is_interpreting() and installed_version("triton") != ABSENT)


def this_platform(device: str) -> Platform:
    """Return the platform of this process."""
    return Platform(
        device=device_name(device),
        driver=_driver() if device == "cuda" else "none",
        torch=str(torch.__version__),
        triton=installed_version("triton"),
        revision=trainer_revision(),
    )


def _driver() -> str:
    """Return the release of NVIDIA's driver; the CUDA version that it supports if unknown."""
    try:
        found = _DRIVER.search(_DRIVER_FILE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    if found is not None:
        return found[1]
    return f"CUDA {getattr(torch._C, '_cuda_getDriverVersion', lambda: 'unknown')()}"

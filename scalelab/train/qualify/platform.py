"""What a verdict holds for: the device of this process and the versions of its software."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import re
from pathlib import Path

import scalelab_kernels
import torch

import scalelab
from scalelab.records.qualification import Platform
from scalelab.train.host import device_name

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_DRIVER = re.compile(r"Kernel Module[^0-9]*([0-9]+\.[0-9.]+)")


def is_measurable(device: str) -> bool:
    """Say whether there is something to qualify: a GPU, or a CPU with interpreted kernels."""
    return device == "cuda" or (scalelab_kernels.is_interpreting() and _version("triton") != "none")


def this_platform(device: str) -> Platform:
    """Return the platform of this process."""
    return Platform(
        device=device_name(device),
        driver=_driver() if device == "cuda" else "none",
        torch=str(torch.__version__),
        triton=_version("triton"),
        revision=_revision(),
    )


@functools.cache
def _revision() -> str:
    """Return a hash of the sources that a step consists of: the kernels and the trainer."""
    digest = hashlib.sha256(scalelab_kernels.revision().encode())
    folder = Path(scalelab.__file__).parent / "train"
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _driver() -> str:
    """Return the release of NVIDIA's driver; the CUDA version that it supports if unknown."""
    try:
        found = _DRIVER.search(_DRIVER_FILE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    if found is not None:
        return found[1]
    return f"CUDA {getattr(torch._C, '_cuda_getDriverVersion', lambda: 'unknown')()}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"

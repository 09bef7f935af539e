"""Devices of this machine for the local worker pool, detected without importing torch."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

from scalelab.errors import UsageError


def cpu_slots() -> tuple[int, ...]:
    """Return the CPU cores that this process may use; each takes one worker."""
    return tuple(sorted(os.sched_getaffinity(0)))


@functools.cache
def gpu_names() -> tuple[str, ...]:
    """Return the names of the NVIDIA GPUs that ``nvidia-smi`` lists."""
    program = shutil.which("nvidia-smi")
    if program is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ()
    try:
        answer = subprocess.run(
            [program, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())


def gpu_slots() -> tuple[str, ...]:
    """Return the value of ``CUDA_VISIBLE_DEVICES`` for the worker of each GPU."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return tuple(part for part in allowed.split(",") if part)
    return tuple(str(index) for index in range(len(gpu_names())))


def worker_slots(device: str) -> tuple[int | str, ...]:
    """Return the CPU core or GPU of each worker that this machine can run.

    Raises
    ------
    UsageError
        If the device is ``cuda`` and there is no visible GPU.
    """
    slots: tuple[int | str, ...] = gpu_slots() if device == "cuda" else cpu_slots()
    if not slots:
        raise UsageError(
            "device cuda on a machine without a visible GPU",
            "a GPU that nvidia-smi lists and CUDA_VISIBLE_DEVICES does not hide",
            "Use --device cpu, a machine with a GPU, or --launcher slurm.",
        )
    return slots

"""What this machine offers a local pool, found without importing torch."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

from scalelab.errors import UsageError


def cpu_slots() -> tuple[int, ...]:
    """Return the CPU cores that this process may use, one worker each."""
    return tuple(sorted(os.sched_getaffinity(0)))


@functools.cache
def gpu_names() -> tuple[str, ...]:
    """Return the names of the NVIDIA GPUs that the driver shows; empty when there are none."""
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
    """Return what ``CUDA_VISIBLE_DEVICES`` is set to for each GPU's worker."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return tuple(part for part in allowed.split(",") if part)
    return tuple(str(index) for index in range(len(gpu_names())))


def worker_slots(device: str) -> tuple[int | str, ...]:
    """Return the place of each worker that this machine has room for: a core, or a GPU.

    Raises
    ------
    UsageError
        When the device is ``cuda`` and no GPU is seen.
    """
    slots: tuple[int | str, ...] = gpu_slots() if device == "cuda" else cpu_slots()
    if not slots:
        raise UsageError(
            "device cuda on a machine where no GPU is seen",
            "a GPU that nvidia-smi lists and CUDA_VISIBLE_DEVICES does not hide",
            "Use --device cpu, a machine with a GPU, or --launcher slurm.",
        )
    return slots

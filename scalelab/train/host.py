"""The host of an attempt: torch's process settings, and the facts recorded in ``attempt.json``."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

import scalelab
from scalelab.records.machine import cpu_name, own_process
from scalelab.records.run_dir import Attempt
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec

_JOB_VARIABLES = {
    "job_id": "SLURM_JOB_ID",
    "array_job_id": "SLURM_ARRAY_JOB_ID",
    "array_task_id": "SLURM_ARRAY_TASK_ID",
    "restart_count": "SLURM_RESTART_COUNT",
}


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


def first_note(
    attempt: Attempt, spec: RunSpec, execution: ExecutionSpec, host_note: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of ``attempt.json`` at the start; ``host_note`` overrides the rest."""
    return {
        "run_id": attempt.run.run_id,
        "attempt": attempt.number,
        "execution": asdict(execution),
        "is_repeatable": execution.is_repeatable,
        "data_fingerprint": spec.data_fingerprint,
        "eval_fingerprint": spec.eval_fingerprint,
        "started_s": time.time(),
        "git_commit": None,
        "is_dirty": None,
        "resumed_from": None,
        "warnings": [],
        **own_process(),
        **{name: os.environ.get(variable) for name, variable in _JOB_VARIABLES.items()},
        "device_name": device_name(execution.device),
        "versions": {
            "scalelab": scalelab.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        **host_note,
    }


@functools.cache
def device_name(device: str) -> str:
    """Return the GPU's name as the driver gives it, or the CPU's model name."""
    return str(torch.cuda.get_device_name()) if device == "cuda" else cpu_name()

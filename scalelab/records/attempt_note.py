"""The facts that ``attempt.json`` has at the start of an attempt."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

import scalelab
from scalelab.records.machine import own_process
from scalelab.records.run_dir import Attempt
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec

_JOB_VARIABLES = {
    "job_id": "SLURM_JOB_ID",
    "array_job_id": "SLURM_ARRAY_JOB_ID",
    "array_task_id": "SLURM_ARRAY_TASK_ID",
    "restart_count": "SLURM_RESTART_COUNT",
}


def first_note(
    attempt: Attempt,
    spec: RunSpec,
    execution: ExecutionSpec,
    host_note: Mapping[str, Any],
    *,
    device_name: str,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Return the content of ``attempt.json`` at the start; ``host_note`` overrides the rest.

    Parameters
    ----------
    attempt : Attempt
    spec : RunSpec
    execution : ExecutionSpec
    host_note : Mapping
        Facts of the launcher.
    device_name : str
        Name of the GPU or of the CPU.
    versions : Mapping
        Versions of the trainer's libraries.
    """
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
        "device_name": device_name,
        "versions": {
            "scalelab": scalelab.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            **versions,
        },
        **host_note,
    }

"""Checks that several devices can share a run, made before submission and when it starts.

``n_devices`` = ``n_data_parallel`` x ``tensor_parallel``. Data-parallel groups divide the batch;
the devices of a group divide each layer.
"""

from __future__ import annotations

import math

from scalelab.errors import UsageError
from scalelab.sweep.execution import ExecutionSpec, loss_problem
from scalelab.sweep.run_spec import RunSpec


def require_divisible_devices(n_devices: int, tensor_parallel: int) -> None:
    """Raise UsageError unless ``tensor_parallel`` divides the number of devices."""
    if n_devices % tensor_parallel:
        raise UsageError(
            f"tensor_parallel = {tensor_parallel} on {n_devices} device"
            f"{'' if n_devices == 1 else 's'} a run",
            "a tensor_parallel that divides the number of devices",
            f"Try --tensor-parallel 1, or --gpus-per-run {tensor_parallel}.",
        )


def require_multi_device(spec: RunSpec, execution: ExecutionSpec) -> None:
    """Raise when the devices of an execution cannot share a run.

    Raises
    ------
    UsageError
        When the devices or the batch do not divide evenly, a device would have no head, or several
        devices would share a run in fp8.
    """
    if spec.precision == "fp8" and execution.n_devices > 1:
        raise UsageError(
            f"a run in fp8 on {execution.n_devices} devices",
            "one device for each run in fp8",
            "Use --gpus-per-run 1, or --precision bf16.",
        )
    problem = loss_problem(execution, spec)
    if problem is not None:
        raise UsageError(*problem)
    require_divisible_devices(execution.n_devices, execution.tensor_parallel)
    n_groups = execution.n_data_parallel
    kind = "devices" if execution.tensor_parallel == 1 else "groups of devices"
    if spec.batch_seqs % n_groups:
        raise UsageError(
            f"{spec.batch_seqs} sequences a batch over {n_groups} {kind}",
            f"a batch that is a multiple of the number of {kind}",
            f"Try --batch-seqs {math.ceil(spec.batch_seqs / n_groups) * n_groups}, or fewer GPUs.",
        )
    spec.shape.tensor_part(execution.tensor_parallel, 0)

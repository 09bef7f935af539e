"""Whether a run can be spread over several devices: asked before it is submitted, and when it runs.

``n_devices`` are ``n_data_parallel`` groups, each with its share of the batch, of
``tensor_parallel`` devices, each with its share of every block.
"""

from __future__ import annotations

from scalelab.errors import UsageError
from scalelab.sweep.run_spec import ExecutionSpec, RunSpec


def require_divisible_devices(n_devices: int, tensor_parallel: int) -> None:
    """Raise when some devices cannot be grouped by so many.

    Raises
    ------
    UsageError
    """
    if n_devices % tensor_parallel:
        raise UsageError(
            f"tensor_parallel = {tensor_parallel} on {n_devices} device"
            f"{'' if n_devices == 1 else 's'} a run",
            "a divisor of the devices",
            "Choose another tensor_parallel or number of devices.",
        )


def require_multi_device(spec: RunSpec, execution: ExecutionSpec) -> None:
    """Raise when a run cannot be spread over the devices of its execution.

    Raises
    ------
    UsageError
        When the devices or the batch cannot be shared evenly, or a device would have no head.
    """
    require_divisible_devices(execution.n_devices, execution.tensor_parallel)
    n_groups = execution.n_data_parallel
    kind = "devices" if execution.tensor_parallel == 1 else "groups of devices"
    if spec.batch_seqs % n_groups:
        raise UsageError(
            f"{spec.batch_seqs} sequences a batch over {n_groups} {kind}",
            f"a multiple of the {kind}",
            "Choose another batch or number of devices.",
        )
    spec.shape.tensor_part(execution.tensor_parallel, 0)

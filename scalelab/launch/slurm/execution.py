"""How the jobs of a cluster execute runs that take several GPUs each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from scalelab.sweep.devices import require_multi_device
from scalelab.sweep.run_spec import ExecutionSpec, RunSpec
from scalelab.sweep.spec import SlurmTable


def jobs_execution(
    table: SlurmTable, execution: ExecutionSpec, specs: Iterable[RunSpec]
) -> ExecutionSpec:
    """Return how jobs execute some runs, which is refused before anything is submitted.

    The devices of a run are those that its job finds.

    Raises
    ------
    UsageError
        When one of the runs cannot be shared by the GPUs that the table asks for.
    """
    execution = replace(execution, tensor_parallel=table.tensor_parallel)
    spread = replace(execution, n_devices=max(1, table.gpus_per_run))
    for spec in specs:
        require_multi_device(spec, spread)
    return execution

"""What jobs request from SLURM, chosen from the runs that they train; pure functions.

Runs are grouped by their number of GPUs; jobs by GPUs and by time limit. Each group is an array
with its own limit and memory.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scalelab.errors import UsageError
from scalelab.launch.slurm.intents import JobGroup
from scalelab.sweep import run_size
from scalelab.sweep.devices import require_multi_device
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.gpu_counts import gpus_for
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.site_options import require_gpus
from scalelab.sweep.tables import SlurmTable

TIME_MARGIN = 3.0
"""Time limit over predicted time: predictions assume a utilisation and can be far off."""
START_MIN = 15
"""Minutes for the start of a job: imports, qualification, compilation and the first read."""
TIME_CLASSES_MIN = (30, 60, 120, 240, 480, 720, 1440, 2880, 4320, 7200, 10080, 20160)
MEMORY_CLASSES_GB = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
TASK_GB = 4.0
"""Host memory of a process without its model: Python, torch, the device's context, tokens."""
CHECKPOINT_BYTES = 12
"""Bytes per parameter that writing a checkpoint needs: weights and two moments in fp32."""
EMA_BYTES = 4
CPU_BYTES = 16
"""Bytes per parameter of training on a CPU: weights, gradients and two moments in fp32."""
CPU_ACTIVATION_VALUES = 34
"""fp32 values per token and unit of width that a block keeps (arXiv:2205.05198, section 4.1)."""
MEMORY_MARGIN = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class RunNeeds:
    """What a run needs.

    Attributes
    ----------
    gpus : int
        GPUs; 0 trains on the CPU.
    memory_gb : float
        Host memory on the node that writes its checkpoints.
    """

    gpus: int
    memory_gb: float


@dataclass(frozen=True, kw_only=True, slots=True)
class JobResources:
    """What each job of an array requests.

    Attributes
    ----------
    gpus : int
        GPUs of a job.
    time_min : int
        Time limit, minutes.
    memory_gb : float
        Memory on each node; 0 is all memory of the node.
    """

    gpus: int
    time_min: int
    memory_gb: float


def nodes_and_tasks(gpus_per_run: int, gpus_per_node: int) -> tuple[int, int]:
    """Return the fewest nodes that split a run's GPUs evenly, and tasks (GPUs) per node."""
    if gpus_per_run == 0:
        return 1, 1
    fewest = math.ceil(gpus_per_run / gpus_per_node)
    n_nodes = next(n for n in range(fewest, gpus_per_run + 1) if gpus_per_run % n == 0)
    return n_nodes, gpus_per_run // n_nodes


def gpus_of_node(gpus_per_run: int, gpus_per_node: int) -> int:
    """Return the GPUs that a job requests on each of its nodes."""
    return nodes_and_tasks(gpus_per_run, gpus_per_node)[1] if gpus_per_run else 0


def planned_flops(spec: RunSpec, budget: float | None) -> float:
    """Return the FLOPs that choose a run's GPUs: its budget, or else those of its steps.

    Whole steps differ from the budget a little; at a bound, all runs of a budget get the same.
    """
    if budget is not None:
        return budget
    return run_size.planned_flops(spec)


def run_gpus(
    table: SlurmTable, specs: Iterable[RunSpec], budgets: Mapping[str, float | None]
) -> dict[str, int]:
    """Return the GPUs of each run by run_id; ``budgets`` may have budgets by run_id."""
    return {
        spec.run_id: gpus_for(table.gpus_per_run, planned_flops(spec, budgets.get(spec.run_id)))
        for spec in specs
    }


def run_needs(
    table: SlurmTable,
    execution: ExecutionSpec,
    specs: Sequence[RunSpec],
    budgets: Mapping[str, float | None],
) -> dict[str, RunNeeds]:
    """Return what each run needs, by run_id.

    Raises
    ------
    UsageError
        If a run cannot be split over its GPUs, or site options request another number of GPUs.
    """
    gpus = run_gpus(table, specs, budgets)
    for n_gpus in sorted(set(gpus.values())):
        require_gpus(table.sbatch, gpus_of_node(n_gpus, table.gpus_per_node))
    needs = {}
    for spec in specs:
        n_gpus = gpus[spec.run_id]
        n_nodes, n_tasks = nodes_and_tasks(n_gpus, table.gpus_per_node)
        if execution.program is None:
            require_multi_device(spec, execution_on(table, execution, n_gpus))
        elif execution.program.launcher == "single" and n_nodes > 1:
            raise UsageError(
                f"launcher = single for a run on {n_nodes} nodes",
                "launcher = torchrun (one process leads each node) or srun (one task a GPU)",
                f"Set launcher in [program], or --gpus-per-run {table.gpus_per_node} at most.",
            )
        memory = run_memory_gb(spec, n_tasks, is_on_cpu=n_gpus == 0)
        needs[spec.run_id] = RunNeeds(gpus=n_gpus, memory_gb=memory)
    return needs


def program_launcher(execution: ExecutionSpec) -> str | None:
    """Return how the processes of a user's program are started; None for the built-in trainer."""
    return execution.program.launcher if execution.program is not None else None


def execution_on(table: SlurmTable, execution: ExecutionSpec, n_gpus: int) -> ExecutionSpec:
    """Return the execution of a run on its GPUs."""
    return replace(execution, n_devices=max(1, n_gpus), tensor_parallel=table.tensor_parallel)


def run_memory_gb(spec: RunSpec, n_tasks: int, *, is_on_cpu: bool) -> float:
    """Return the host memory that a run needs on a node, GB, without margin.

    Parameters
    ----------
    spec : RunSpec
    n_tasks : int
        Processes on the node; one of them gathers the checkpoint.
    is_on_cpu : bool
        Whether the model is in this memory too. The activations of a model that only a table of
        sizes describes are not known and not counted.
    """
    n_params = run_size.run_size(spec).total
    n_bytes = n_params * (CHECKPOINT_BYTES + (EMA_BYTES if spec.ema_decay else 0))
    if is_on_cpu:
        per_token = CPU_ACTIVATION_VALUES * spec.shape.d_model * spec.shape.n_layers
        per_token += 3 * spec.shape.padded_vocab + spec.seq_len * spec.shape.n_layers
        n_bytes += CPU_BYTES * n_params + 4 * per_token * spec.batch_seqs * spec.seq_len
    return TASK_GB * n_tasks + n_bytes / 1e9


def time_limit_min(seconds: float, most: int) -> int:
    """Return the time limit of a job, minutes, from its predicted time; at most ``most``."""
    wanted = START_MIN + TIME_MARGIN * seconds / 60
    return min(next((limit for limit in TIME_CLASSES_MIN if limit >= wanted), most), most)


def memory_limit_gb(memory_gb: float) -> float:
    """Return the memory that a job requests for the need of its runs, GB."""
    wanted = MEMORY_MARGIN * memory_gb
    return float(next((size for size in MEMORY_CLASSES_GB if size >= wanted), math.ceil(wanted)))


def is_timed(group: JobGroup) -> bool:
    """Say whether the time of a job is known; that of a user's program may not be."""
    return group.execution.program is None or group.seconds > 0


def grouped_by_resources(
    job_groups: Sequence[JobGroup],
    needs: Mapping[str, RunNeeds],
    table: SlurmTable,
    *,
    slow: Collection[str] = (),
) -> list[tuple[JobResources, list[JobGroup]]]:
    """Return the arrays of job groups: those with equal GPUs and time limit together.

    Parameters
    ----------
    job_groups : sequence of JobGroup
        In the order in which they should start; arrays keep it.
    needs : Mapping
        Of each run, by run_id. The runs of a job group have the same number of GPUs.
    table : SlurmTable
        ``time_min`` is the largest time limit; ``mem_gb``, if given, the memory of every job.
    slow : collection of str
        Runs that reached a time limit before: their jobs get the largest, and those of unknown
        time.
    """
    found: dict[tuple[int, int], list[JobGroup]] = {}
    for group in job_groups:
        is_slow = any(run_id in slow for run_id in group.run_ids) or not is_timed(group)
        limit = table.time_min if is_slow else time_limit_min(group.seconds, table.time_min)
        found.setdefault((needs[group.run_ids[0]].gpus, limit), []).append(group)
    return [
        (
            JobResources(
                gpus=gpus,
                time_min=limit,
                memory_gb=memory_limit_gb(
                    max(needs[run_id].memory_gb for group in groups for run_id in group.run_ids)
                )
                if table.mem_gb is None
                else table.mem_gb,
            ),
            groups,
        )
        for (gpus, limit), groups in found.items()
    ]

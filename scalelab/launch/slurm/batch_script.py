"""The batch script of an array, written by submitit: the same in a dry run and a submission.

submitit would pickle one callable for each element and give it its place after ``sbatch`` has
answered, so a crash in between would leave jobs without one. Here an array has one callable, which
reads everything else from the results folder, and it lies in place before ``sbatch`` is called.
"""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission
from submitit.slurm import slurm as submitit_slurm

from scalelab.launch.job import work_on_slurm
from scalelab.records.files import write_atomically
from scalelab.sweep.spec import SlurmTable

CALLABLE_FILE = "submitted.pkl"
SCRIPT_FILE = "submission.sh"
SIGNAL_BEFORE_END_S = 90
SIGNAL_SHARE = 0.2


def signal_delay_s(time_min: int) -> int:
    """Return how long before its time limit a job is told, seconds: 90, less for a short job."""
    return min(SIGNAL_BEFORE_END_S, round(SIGNAL_SHARE * 60 * time_min))


def nodes_and_tasks(gpus_per_run: int, gpus_per_node: int) -> tuple[int, int]:
    """Return the fewest nodes that share a run's GPUs evenly, and the tasks on each, one a GPU."""
    if gpus_per_run == 0:
        return 1, 1
    fewest = math.ceil(gpus_per_run / gpus_per_node)
    n_nodes = next(n for n in range(fewest, gpus_per_run + 1) if gpus_per_run % n == 0)
    return n_nodes, gpus_per_run // n_nodes


def sbatch_parameters(
    table: SlurmTable, folder: Path, job_name: str, n_elements: int, throttle: int
) -> dict[str, Any]:
    """Return submitit's parameters for an array."""
    n_nodes, tasks = nodes_and_tasks(table.gpus_per_run, table.gpus_per_node)
    parameters: dict[str, Any] = {
        "job_name": job_name,
        "comment": job_name,
        "time": table.time_min,
        "nodes": n_nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": table.cpus,
        "mem": f"{math.ceil(table.mem_gb * 1024)}MB",
        "signal_delay_s": signal_delay_s(table.time_min),
        "setup": [*_guards(folder), *table.setup],
        "array_parallelism": throttle,
        "map_count": n_elements,
        "wckey": None,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True},
    }
    if table.gpus_per_run:
        parameters["gpus_per_node"] = tasks
    if n_nodes * tasks > 1:
        # Ranks wait for each other: those that one leaves behind would hold the job to its limit.
        parameters["srun_args"] = ["--kill-on-bad-exit=1"]
    for name in ("partition", "account", "qos"):
        if getattr(table, name) is not None:
            parameters[name] = getattr(table, name)
    return parameters


def _guards(folder: Path) -> list[str]:
    """Return the lines that give an element the array's callable, and refuse a stranger's."""
    callable_file = shlex.quote(str(folder / CALLABLE_FILE))
    link = shlex.quote(str(folder))
    return [
        f"[ -O {callable_file} ] && [ ! -L {callable_file} ] || "
        "{ echo 'scalelab: the callable is missing or not yours' >&2; exit 77; }",
        f"ln -sfn {CALLABLE_FILE} "
        f'{link}/"${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}_submitted.pkl"',
    ]


class ArrayExecutor(submitit_slurm.SlurmExecutor):
    """submitit's SLURM executor for one array whose elements share one callable."""

    @classmethod
    def affinity(cls) -> int:
        """Say that it can be made anywhere: a dry run needs no cluster."""
        return 2

    def script(self) -> str:
        """Return the batch script."""
        text: str = self._make_submission_file_text(self._submitit_command_str, "")
        return text


def make_executor(
    table: SlurmTable,
    folder: Path,
    job_name: str,
    *,
    n_elements: int,
    throttle: int,
    python_path: Path | None = None,
) -> ArrayExecutor:
    """Return the executor of an array.

    Parameters
    ----------
    table : SlurmTable
        What jobs ask for.
    folder : Path
        The intent's folder, absolute.
    job_name : str
        Carried in name and comment.
    n_elements, throttle : int
        Elements, and how many of them may run at once.
    python_path : Path, optional
        Frozen source that jobs import instead of the installed one.
    """
    # -P: what happens to lie in the folder that a job starts in is not imported.
    executor = ArrayExecutor(folder, python=f"{shlex.quote(sys.executable)} -P")
    parameters = sbatch_parameters(table, folder, job_name, n_elements, throttle)
    if python_path is not None:
        parameters["setup"].append(f"export PYTHONPATH={shlex.quote(str(python_path))}")
    executor.parameters = parameters
    return executor


def write_submission(executor: ArrayExecutor, sweep_folder: Path) -> Path:
    """Write the callable and the batch script of an intent; return the script's path."""
    folder = Path(executor.folder)
    time_min = executor.parameters["time"]
    delayed = DelayedSubmission(work_on_slurm, str(sweep_folder), folder.name, time_min)
    delayed.set_timeout(time_min, 0)
    delayed.dump(folder / CALLABLE_FILE)
    script = folder / SCRIPT_FILE
    write_atomically(script, executor.script(), durable=True)
    return script


def submit(executor: ArrayExecutor, script: Path) -> int:
    """Hand a batch script to ``sbatch`` and return the array's number.

    Raises
    ------
    FailedJobError
        submitit's, with sbatch's words, when it did not take it or died halfway: the job may be in
        the queue nevertheless.
    """
    from submitit.core.utils import CommandFunction

    answer = CommandFunction(executor._make_submission_command(script), verbose=False)()
    return int(executor._get_job_id_from_submission_command(answer))

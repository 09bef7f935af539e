"""The batch script of an array, written by submitit; a dry run prints the same script.

submitit pickles one callable per element and moves it into place after ``sbatch`` has answered, so
that a crash in between leaves jobs without one. Here one callable serves the whole array, reads
everything else from the results folder, and is in place before ``sbatch`` starts.
"""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission
from submitit.slurm import slurm as submitit_slurm

from scalelab.launch.slurm.job import train_job_group
from scalelab.launch.slurm.resources import JobResources, gpus_of_node, nodes_and_tasks
from scalelab.records.files import write_atomically
from scalelab.sweep.site_options import apply_site_options
from scalelab.sweep.tables import SlurmTable

CALLABLE_FILE = "submitted.pkl"
SCRIPT_FILE = "submission.sh"
SIGNAL_BEFORE_END_S = 90
SIGNAL_SHARE = 0.2


def signal_delay_s(time_min: int) -> int:
    """Return how long before the time limit SLURM signals a job, seconds: at most 90."""
    return min(SIGNAL_BEFORE_END_S, round(SIGNAL_SHARE * 60 * time_min))


def sbatch_parameters(
    table: SlurmTable,
    resources: JobResources,
    folder: Path,
    job_name: str,
    n_elements: int,
    throttle: int,
    launcher: str | None = None,
) -> dict[str, Any]:
    """Return submitit's parameters for an array; site options take precedence.

    Parameters are those of `make_executor`.
    """
    n_nodes, gpus = nodes_and_tasks(resources.gpus, table.gpus_per_node)
    tasks = gpus if launcher in (None, "srun") else 1
    parameters: dict[str, Any] = {
        "job_name": job_name,
        "comment": job_name,
        "time": resources.time_min,
        "nodes": n_nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": table.cpus * (gpus // tasks),
        "mem": f"{math.ceil(resources.memory_gb * 1024)}MB",
        "signal_delay_s": signal_delay_s(resources.time_min),
        "setup": [*_guards(folder), *table.setup],
        "array_parallelism": throttle,
        "map_count": n_elements,
        "wckey": None,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True},
    }
    if resources.gpus:
        parameters["gpus_per_node"] = gpus
    if n_nodes * tasks > 1 and launcher is not None:
        # One process of the job makes the attempt; it starts the program's tasks as a step.
        parameters["srun_args"] = ["--nodes=1", "--ntasks=1"]
    elif n_nodes * tasks > 1:
        # Ranks wait for each other: if one fails, the others would wait until the time limit.
        parameters["srun_args"] = ["--kill-on-bad-exit=1"]
    for name in ("partition", "account", "qos"):
        if getattr(table, name) is not None:
            parameters[name] = getattr(table, name)
    n_gpus = gpus_of_node(resources.gpus, table.gpus_per_node)
    return apply_site_options(parameters, table.sbatch, n_gpus)


def _guards(folder: Path) -> list[str]:
    """Return the lines that link the array's callable; they refuse another user's file."""
    callable_file = shlex.quote(str(folder / CALLABLE_FILE))
    link = shlex.quote(str(folder))
    return [
        f"[ -O {callable_file} ] && [ ! -L {callable_file} ] || "
        "{ echo 'scalelab: submitted.pkl is missing or belongs to another user' >&2; exit 77; }",
        f"ln -sfn {CALLABLE_FILE} "
        f'{link}/"${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}_submitted.pkl"',
    ]


class ArrayExecutor(submitit_slurm.SlurmExecutor):
    """submitit's SLURM executor for one array whose elements share one callable."""

    @classmethod
    def affinity(cls) -> int:
        """Return a value that lets submitit create the executor without a cluster."""
        return 2

    def script(self) -> str:
        """Return the batch script."""
        text: str = self._make_submission_file_text(self._submitit_command_str, "")
        return text


def make_executor(
    table: SlurmTable,
    resources: JobResources,
    folder: Path,
    job_name: str,
    *,
    n_elements: int,
    throttle: int,
    python_path: Path | None = None,
    launcher: str | None = None,
) -> ArrayExecutor:
    """Return the executor of an array.

    Parameters
    ----------
    table : SlurmTable
        Options that all jobs of the sweep share.
    resources : JobResources
        What each job of the array requests.
    folder : Path
        The intent's folder, absolute.
    job_name : str
        Name and comment of the job.
    n_elements, throttle : int
        Number of elements, and how many may run at once.
    python_path : Path, optional
        Frozen source that jobs import instead of the installed package.
    launcher : str, optional
        How the processes of a user's program are started (`scalelab.sweep.program.LAUNCHERS`);
        None for the built-in trainer, which has one task a GPU.
    """
    # -P: do not import modules from the folder that the job starts in.
    executor = ArrayExecutor(folder, python=f"{shlex.quote(sys.executable)} -P")
    parameters = sbatch_parameters(
        table, resources, folder, job_name, n_elements, throttle, launcher
    )
    if python_path is not None:
        parameters["setup"].append(f"export PYTHONPATH={shlex.quote(str(python_path))}")
    executor.parameters = parameters
    return executor


def write_submission(executor: ArrayExecutor, sweep_folder: Path) -> Path:
    """Write the callable and the batch script of an intent; return the script's path."""
    folder = Path(executor.folder)
    time_min = executor.parameters["time"]
    delayed = DelayedSubmission(train_job_group, str(sweep_folder), folder.name, time_min)
    delayed.set_timeout(time_min, 0)
    delayed.dump(folder / CALLABLE_FILE)
    script = folder / SCRIPT_FILE
    write_atomically(script, executor.script(), durable=True)
    return script


def submit(executor: ArrayExecutor, script: Path) -> int:
    """Pass a batch script to ``sbatch`` and return the array's job number.

    Raises
    ------
    FailedJobError
        From submitit, with the message of sbatch, if sbatch failed or died. The job may be in the
        queue all the same.
    """
    from submitit.core.utils import CommandFunction

    answer = CommandFunction(executor._make_submission_command(script), verbose=False)()
    return int(executor._get_job_id_from_submission_command(answer))

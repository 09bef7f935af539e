"""The tasks of a job with several GPUs per run: the first leads, the others follow."""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path

from scalelab.launch.slurm.intents import read_job_group

LOOPBACK = "127.0.0.1"


def export_ranks() -> int:
    """Set torchrun's variables for a SLURM task; return the task's rank.

    Tasks on one machine connect through its loopback address. All GPUs of the machine stay visible,
    so that they can reach each other; the trainer picks the task's GPU.
    """
    from submitit.helpers import TorchDistributedEnvironment

    environment = TorchDistributedEnvironment()
    if environment.local_world_size == environment.world_size:
        environment.master_addr = LOOPBACK
    environment.export(set_cuda_visible_devices=False, overwrite=True)
    return int(environment.rank)


def follow_the_first(sweep: Path, intent_id: str) -> None:
    """Train the runs that the first task announces, until there are no more."""
    from scalelab.train.sharded.group import follow

    execution = read_job_group(sweep, intent_id, int(os.environ["SLURM_ARRAY_TASK_ID"])).execution
    while follow(execution) is not None:
        pass
    exit_directly(0)


def exit_directly(code: int) -> None:
    """Make this process end with a code after Python's own exit, skipping its libraries' exit.

    Threads of gloo sometimes outlive their group and abort a finished process; SLURM would then
    report the job as failed.
    """

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)

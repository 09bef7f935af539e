"""The tasks of a job whose runs take several GPUs each: one leads, the others follow."""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path

from scalelab.launch.slurm.intents import read_job_group
from scalelab.sweep.run_spec import ExecutionSpec

LOOPBACK = "127.0.0.1"
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def forget_ranks() -> None:
    """Take torchrun's variables out of the environment of a process whose runs are its own.

    They may be there for another program: a cluster's containers, a notebook under torchrun.
    """
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)


def export_ranks() -> int:
    """Put torchrun's variables into the environment of a SLURM task; return the task's rank.

    Tasks of one machine meet on its loopback. Which GPU is a task's own is the trainer's to say:
    all those of its machine stay visible, so that they can reach each other.
    """
    from submitit.helpers import TorchDistributedEnvironment

    environment = TorchDistributedEnvironment()
    if environment.local_world_size == environment.world_size:
        environment.master_addr = LOOPBACK
    environment.export(set_cuda_visible_devices=False, overwrite=True)
    return int(environment.rank)


def follow_the_first(sweep: Path, intent_id: str) -> None:
    """Do what the first task says until it has no more runs."""
    from scalelab.train.sharded.group import follow

    execution = read_job_group(sweep, intent_id, int(os.environ["SLURM_ARRAY_TASK_ID"])).execution
    while follow(execution) is not None:
        pass
    exit_directly(0)


def exit_directly(code: int) -> None:
    """Let this process end with a code once Python is done, without the end of its libraries.

    Threads of gloo now and then outlive their group, which aborts a process whose work is over; the
    scheduler then calls a finished job failed.
    """

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)


def dismiss_others(execution: ExecutionSpec) -> None:
    """Let the other tasks go: there are no more runs."""
    from scalelab.train.sharded.group import dismiss

    dismiss(execution)

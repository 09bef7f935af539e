"""How the processes of one program are started: alone, by torchrun, or as a step of a SLURM job.

The command of the sweep file is the same for all: torchrun and srun are put before it, with the
GPUs and nodes of the run. With srun, or on several nodes, the program is a step of the job, which
`scalelab.launch.slurm.step` starts and stops.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from scalelab.launch.slurm import step
from scalelab.launch.slurm.step import signal_step
from scalelab.records.machine import STOP_SIGNALS
from scalelab.sweep.program import ProgramExecution

FIRST_PORT, N_PORTS = 20_000, 12_000
"""Ports of rendezvous, below those that Linux gives to clients."""
STEP_PREFIX = "scalelab-"
END_S = 30.0
TORCHRUN = ("torchrun", "torch.distributed.run", "torch.distributed.launch")
_FIRST_WORDS = 4
"""Words of a command among which torchrun stands: ``python -u -m torch.distributed.run``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """Where the processes of a run execute.

    Attributes
    ----------
    n_devices : int
        Devices over all nodes.
    n_nodes : int
        Nodes of the SLURM job, 1 elsewhere.
    """

    n_devices: int
    n_nodes: int

    @property
    def per_node(self) -> int:
        """Devices on each node."""
        return self.n_devices // self.n_nodes


def devices_of(n_devices: int, environ: Mapping[str, str] | None = None) -> Devices:
    """Return the devices of a run in this process's job."""
    found = os.environ if environ is None else environ
    return Devices(n_devices=n_devices, n_nodes=int(found.get("SLURM_JOB_NUM_NODES") or 1))


def is_step(execution: ProgramExecution, devices: Devices) -> bool:
    """Say whether the program runs as a step of the SLURM job, started by srun."""
    return execution.launcher == "srun" or (
        execution.launcher == "torchrun" and devices.n_nodes > 1
    )


def ignored_signals(execution: ProgramExecution) -> tuple[signal.Signals, ...]:
    """Return the stop signals of SLURM that a program does not get by itself.

    SLURM may send them to every process of a job, and they would kill a program that is to save
    at another signal. torchrun ends its own processes with SIGTERM.
    """
    needed = {f"SIG{execution.stop_signal}", "SIGTERM" if execution.launcher == "torchrun" else ""}
    return tuple(number for number in STOP_SIGNALS if number.name not in needed)


def launched(
    argv: Sequence[str], execution: ProgramExecution, devices: Devices, token: str
) -> tuple[str, ...]:
    """Return the command that starts a program on all its devices.

    Parameters
    ----------
    argv : sequence of str
        The rendered command, after the arguments of the container.
    execution : ProgramExecution
    devices : Devices
    token : str
        Claim token of the attempt; names the step and chooses a port.
    """
    port = FIRST_PORT + zlib.crc32(token.encode()) % N_PORTS
    address = socket.gethostname() if devices.n_nodes > 1 else "127.0.0.1"
    n_container = len(execution.container)
    if execution.launcher == "torchrun" and not _starts_torchrun(argv[n_container:]):
        rendezvous = ["--standalone"]
        if devices.n_nodes > 1:
            rendezvous = [
                f"--nnodes={devices.n_nodes}", "--rdzv-backend=c10d", f"--rdzv-id={token}",
                f"--rdzv-endpoint={address}:{port}",
            ]  # fmt: skip
        python = execution.python or sys.executable
        argv = [
            *argv[:n_container], python, "-m", "torch.distributed.run", *rendezvous,
            f"--nproc-per-node={devices.per_node}", "--no-python", *argv[n_container:],
        ]  # fmt: skip
    if not is_step(execution, devices):
        return tuple(argv)
    tasks = devices.per_node if execution.launcher == "srun" else 1
    has_gpus = bool(os.environ.get("SLURM_GPUS_PER_NODE") or os.environ.get("SLURM_JOB_GPUS"))
    return (
        sys.executable, "-I", "-S", str(Path(step.__file__).resolve()), "run",
        f"--name={STEP_PREFIX}{token}", f"--address={address}", f"--port={port}",
        f"--ignored={','.join(str(int(number)) for number in ignored_signals(execution))}",
        f"--nodes={devices.n_nodes}", f"--tasks-per-node={tasks}",
        f"--gpus-per-task={devices.per_node // tasks if has_gpus else 0}",
        f"--cpus-per-task={_cpus_per_task()}", "--", *argv,
    )  # fmt: skip


def end_step(token: str) -> bool:
    """Kill what is left of an attempt's step, since srun may have died before its tasks.

    Returns
    -------
    bool
        Whether the step has ended.
    """
    ends_s = time.monotonic() + END_S
    while signal_step(f"{STEP_PREFIX}{token}", "SIGKILL", search_s=0.0):
        if time.monotonic() >= ends_s:
            return False
        time.sleep(0.2)
    return True


def _starts_torchrun(words: Sequence[str]) -> bool:
    return any(PurePath(word).name in TORCHRUN for word in words[:_FIRST_WORDS])


def _cpus_per_task() -> int:
    return int(os.environ.get("SLURM_CPUS_PER_TASK") or 1)

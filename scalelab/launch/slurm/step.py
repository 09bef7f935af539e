"""Start a program on every node or GPU of a SLURM job, and pass stop signals on to all of it.

The worker starts this file as a script, with the standard library only. ``step.py run`` is the
program's main process: it starts a job step with srun and waits for it. srun answers SIGTERM by
killing its tasks, so signals go to the step through scancel instead. ``step.py task`` is what each
task of the step starts: it sets torch's variables for ranks and becomes the program. SLURM sends
the signals of a job to the tasks too; those that do not ask the program to save are ignored there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from types import FrameType

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
SEARCH_S = 10.0
COMMAND_S = 60.0


def main(arguments: list[str]) -> int:
    """Run one of the two roles; ``task`` does not return."""
    role, *rest = arguments
    split = rest.index("--")
    options, argv = rest[:split], rest[split + 1 :]
    if role == "task":
        become_task(options, argv)
    return run_step(options, argv)


def run_step(options: list[str], argv: list[str]) -> int:
    """Start the step and wait for it; return srun's exit code."""
    parser = argparse.ArgumentParser()
    for name in ("name", "address", "port", "ignored"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("nodes", "tasks-per-node", "gpus-per-task", "cpus-per-task"):
        parser.add_argument(f"--{name}", type=int, required=True)
    asked = parser.parse_args(options)
    words = [
        "srun", "--overlap", "--unbuffered", "--kill-on-bad-exit=1", "--export=ALL",
        f"--job-name={asked.name}", f"--nodes={asked.nodes}",
        f"--ntasks={asked.nodes * asked.tasks_per_node}",
        f"--ntasks-per-node={asked.tasks_per_node}", f"--cpus-per-task={asked.cpus_per_task}",
    ]  # fmt: skip
    if asked.gpus_per_task:
        words.append(f"--gpus-per-task={asked.gpus_per_task}")
    own = (f"--{name}={getattr(asked, name)}" for name in ("address", "port", "ignored"))
    task = ["task", *own, "--", *argv]
    waiting: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        waiting.append(number)

    for number in PASSED_ON:
        signal.signal(number, note)
    # In a session of its own, so that signals to the process group reach only this process.
    step = subprocess.Popen(
        [*words, sys.executable, "-I", "-S", os.path.abspath(__file__), *task],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    while (code := step.poll()) is None:
        while waiting:
            signal_step(asked.name, signal.Signals(waiting.pop(0)).name)
        time.sleep(0.1)
    return code if code >= 0 else 128 - code


def become_task(options: list[str], argv: list[str]) -> None:
    """Set the variables from which torch.distributed makes its group; replace this process."""
    parser = argparse.ArgumentParser()
    for name in ("address", "port", "ignored"):
        parser.add_argument(f"--{name}", required=True)
    asked = parser.parse_args(options)
    for variable, of_slurm in (
        ("RANK", "SLURM_PROCID"),
        ("WORLD_SIZE", "SLURM_NTASKS"),
        ("LOCAL_RANK", "SLURM_LOCALID"),
    ):
        os.environ[variable] = os.environ[of_slurm]
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["SLURM_NTASKS_PER_NODE"]
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = asked.address, asked.port
    for number in filter(None, asked.ignored.split(",")):
        signal.signal(int(number), signal.SIG_IGN)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"scalelab: cannot start {argv[0]!r}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def steps_named(name: str) -> list[str]:
    """Return the steps of this process's job with a name, as ``JOB.STEP``."""
    words = ["squeue", "--steps", "--noheader", f"--job={job_id()}", "--format=%i %j"]
    try:
        text = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return [step for step, found in rows if found.strip() == name]


def signal_step(name: str, signal_name: str, search_s: float = SEARCH_S) -> bool:
    """Send a signal to all tasks of a step; return whether the step was found.

    Parameters
    ----------
    name : str
        Name of the step.
    signal_name : str
        Such as ``SIGTERM``.
    search_s : float
        Seconds to wait for a step that is only starting.
    """
    ends_s = time.monotonic() + search_s
    while not (found := steps_named(name)) and time.monotonic() < ends_s:
        time.sleep(0.2)
    word = signal_name.removeprefix("SIG")
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        for step in found:
            subprocess.run(
                ["scancel", f"--signal={word}", step], capture_output=True, timeout=COMMAND_S
            )
    return bool(found)


def job_id() -> str:
    """Return the number of the SLURM job of this process."""
    return os.environ["SLURM_JOB_ID"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

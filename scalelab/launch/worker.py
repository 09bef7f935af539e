"""What a worker of the local pool and a SLURM job share: exit codes, log file and cancel mark."""

from __future__ import annotations

import os
from collections.abc import Sequence

from scalelab.records.run_dir import LOG_FILE, PRUNED_FILE, RunDir

EXIT_BY_STATUS = {"done": 0, "diverged": 0, "preempted": 75}
EXIT_FAILED = 1
EXIT_STOPPED = 75
CANCELLED_FILE = "cancelled"
CANCELLED_REASON = "cancelled"
BATCH_CANCELLED = "of the batched runs cancelled"
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def is_cancelled(run: RunDir) -> bool:
    """Return whether `scalelab cancel` marked the run."""
    return (run.path / CANCELLED_FILE).exists()


def is_stopped(run: RunDir) -> bool:
    """Return whether `scalelab cancel` or a launcher (`scalelab.launch.prune`) stopped the run."""
    return is_cancelled(run) or (run.path / PRUNED_FILE).exists()


def cancel_reason(runs: Sequence[RunDir]) -> str | None:
    """Return why a worker must stop its batched runs, or None if none of them was stopped."""
    cancelled = [run.run_id for run in runs if is_stopped(run)]
    if not cancelled:
        return None
    return CANCELLED_REASON if len(runs) == 1 else f"{', '.join(cancelled)} {BATCH_CANCELLED}"


def log_to_first(runs: Sequence[RunDir]) -> None:
    """Send output to the log of the first run; write a line that names it to the other logs."""
    for run in runs[1:]:
        _log_to(run)
        print(f"scalelab: batched with {runs[0].run_id}; see its log", flush=True)
    _log_to(runs[0])


def _log_to(run: RunDir) -> None:
    """Append stdout and stderr of this process and its libraries to a run's log."""
    log = os.open(run.path / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)


def forget_ranks() -> None:
    """Remove torchrun's variables from the environment of a process that trains on one device.

    Another program may have set them: the container of a cluster, or a notebook under torchrun.
    """
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)

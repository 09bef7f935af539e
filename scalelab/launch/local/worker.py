"""Worker processes of the local pool. Each trains one run, or several batched runs, and exits."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TextIO

import scalelab
from scalelab.errors import RunsFailedError
from scalelab.launch.attempts import attempt_runs
from scalelab.launch.worker import (
    EXIT_BY_STATUS,
    EXIT_FAILED,
    cancel_reason,
    forget_ranks,
    log_to_first,
)
from scalelab.records.machine import SAFE_PATH, ctrl_c_blocked, environment
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec, QualifyRequest

WORKER_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    **SAFE_PATH,
}
"""One thread for numerical libraries, and no imports from the current folder."""


@dataclass(slots=True)
class Worker:
    """A worker process as the launcher holds it.

    Attributes
    ----------
    locks : dict of str to TextIO
        Lock of each run that the worker trains, by run_id.
    n_attempts : int
        Attempts that these runs had before the worker started.
    slot : int or str
        The CPU core or GPU that the worker uses.
    process : BaseProcess
    lifeline : Connection
        The launcher's end of a pipe; the worker stops once it is closed.
    """

    locks: dict[str, TextIO]
    n_attempts: int
    slot: int | str
    process: BaseProcess
    lifeline: Connection

    def close(self) -> int | None:
        """Wait for the end of the process, release the locks and return the exit code."""
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        self.lifeline.close()
        for lock in self.locks.values():
            lock.close()
        return code


def worker_context(*, has_program: bool = False) -> ForkServerContext:
    """Return the context that forks workers from a server with the trainer already imported.

    Runs of a user's program do not need the built-in trainer, nor torch.
    """
    context = multiprocessing.get_context("forkserver")
    trainer = "scalelab.launch.programs.run" if has_program else "scalelab.train.worker"
    context.set_forkserver_preload([__name__, trainer])
    return context


def start_process(
    context: ForkServerContext, name: str, *arguments: Any
) -> tuple[BaseProcess, Connection]:
    """Start `train_runs` in a process; return it and the launcher's end of its lifeline."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=train_runs, args=(receiver, *arguments), name=name)
    start_isolated(process)
    receiver.close()
    return process, sender


def start_isolated(process: BaseProcess) -> None:
    """Start a process that imports neither from the current folder nor the caller's main module.

    Raises
    ------
    RunsFailedError
        If the server that forks the workers ends instead.
    """
    main, path = sys.modules["__main__"], list(sys.path)
    # The entry that `-c`, `-m` or a script adds. A clone that is not installed is found only there.
    if sys.path[:1] in ([""], [os.getcwd()]) and Path(scalelab.__file__).parents[1] != Path.cwd():
        del sys.path[0]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        with environment(WORKER_ENVIRONMENT), ctrl_c_blocked():
            process.start()
    except (EOFError, ConnectionError) as error:
        raise RunsFailedError(
            "the server that starts workers ended (its messages are above)",
            "a server that imports torch and starts workers",
            "Check this machine with `scalelab doctor`, then run the same command again.",
        ) from error
    finally:
        sys.modules["__main__"], sys.path[:] = main, path


def train_runs(
    lifeline: Connection,
    run_paths: Sequence[Path],
    dataset: Path,
    execution: ExecutionSpec,
    slot: int | str,
    host_note: Mapping[str, Any],
    trunks: Path | None,
    qualify: QualifyRequest,
) -> None:
    """Train one run, or several batched runs, in this worker process; leave with an exit code.

    Parameters
    ----------
    lifeline : Connection
        Closed when the launcher has died: the worker then saves a checkpoint and ends.
    run_paths : sequence of Path
        Run folders; several runs are trained in the same steps. The first one's log gets the
        output.
    dataset : Path
        Folder of the prepared dataset.
    execution : ExecutionSpec
        How to execute the runs.
    slot : int or str
        CPU core to pin this process to, or the value of ``CUDA_VISIBLE_DEVICES``.
    host_note : Mapping
        Facts to add to ``attempt.json``.
    trunks : Path or None
        Folder of the trunk checkpoints of a WSD ladder.
    qualify : QualifyRequest
        How workers of the sweep qualify their GPU.
    """
    # Ctrl-C reaches the whole terminal group; the launcher answers it with a SIGTERM to workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    runs = [RunDir(path) for path in run_paths]
    log_to_first(runs)
    if isinstance(slot, int):
        os.sched_setaffinity(0, {slot})
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot

    forget_ranks()

    statuses = attempt_runs(
        run_paths,
        dataset,
        execution,
        host_note=host_note,
        should_stop=_stop_reason(lifeline, runs),
        trunks=trunks,
        qualify=qualify,
    )
    sys.exit(max(EXIT_BY_STATUS.get(status, EXIT_FAILED) for status in statuses))


def _stop_reason(lifeline: Connection, runs: Sequence[RunDir]) -> Callable[[], str | None]:
    def should_stop() -> str | None:
        # The launcher never sends: readable means that its end was closed.
        return cancel_reason(runs) or ("the launcher is gone" if lifeline.poll() else None)

    return should_stop


def hold_run(run_path: Path) -> TextIO | None:
    """Lock a run; return None if another launcher of this machine holds it.

    The operating system releases the lock when the launcher dies.
    """
    file = (run_path / "launcher.lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def describe_exit(code: int | None) -> str:
    """Return ``exit code 1`` or ``killed by signal 9``."""
    return f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"

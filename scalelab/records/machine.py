"""The local machine and its processes.

A process is identified by host, process number and start time, because numbers are reused.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""Environment of a Python process that must not import from the current folder."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""SLURM and submitit send these before an allocation ends."""

_START_TIME_FIELD = 22
_PR_SET_PDEATHSIG = 1


def cpu_name() -> str:
    """Return the model name of the CPU, or the architecture where the system does not report it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cache_folder() -> Path:
    """Return scalelab's folder in the user's cache.

    Raises
    ------
    FileNotFoundError
        If the user has no home.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from error  # no HOME, and no entry for this user
    return base / "scalelab"


def end_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, even while a GPU kernel hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def pid_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the command in brackets and may contain spaces.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[_START_TIME_FIELD - 3])


def own_process() -> dict[str, Any]:
    """Return host, number and start time of this process, as ``attempt.json`` records them."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "pid_start": pid_start(os.getpid())}


def is_process_alive(note: Mapping[str, Any]) -> bool:
    """Return whether the process that wrote this ``attempt.json`` is alive on this machine.

    A process on another machine counts as not alive: the next claim fences its attempt, so it can
    do no harm.
    """
    if note.get("host") != socket.gethostname() or not isinstance(note.get("pid"), int):
        return False
    started = pid_start(note["pid"])
    return started is not None and started == note.get("pid_start")


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started in this block."""
    earlier = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def ctrl_c_blocked() -> Iterator[None]:
    """Block SIGINT in this thread, and in every process that is started in this block.

    A process inherits the mask, so Ctrl-C cannot interrupt it while it imports. This thread gets a
    Ctrl-C of that time when the block ends.
    """
    # Multiprocessing unblocks SIGINT when it starts its helper process, so that one comes first.
    with environment(SAFE_PATH):
        resource_tracker.ensure_running()
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


@contextlib.contextmanager
def listening_for_signals() -> Iterator[Callable[[], str | None]]:
    """Give a function that returns the first stop signal received, as a reason, or None.

    A handler that was there before is called too. Python handles signals only in the main thread;
    in another one the function returns None.
    """
    received: list[str] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        earlier = before.get(signal.Signals(number))
        if callable(earlier):
            earlier(number, frame)

    is_main = threading.current_thread() is threading.main_thread()
    numbers = STOP_SIGNALS if is_main else ()
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, handle)
    try:
        yield lambda: f"received {received[0]}" if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

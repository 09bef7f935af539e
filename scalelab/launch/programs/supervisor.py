"""Supervise a program's processes: start it, pass signals on, and leave no process behind.

The worker starts this file as a script, with the standard library only. Orders are lines on the
standard input: a JSON object that says what to start, then ``signal NUMBER`` and ``kill``. Reports
are JSON lines on the standard output. The standard error is the program's output file.

Linux gives orphans to their nearest ancestor with ``PR_SET_CHILD_SUBREAPER``, here this process.
So every process that the program started is found, also in a session of its own (as torchrun's
workers). When the worker dies, its end of the standard input closes, and all of them are killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 126, 127
POLL_S = 0.2
PAUSE_S = 0.005
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""SLURM may send these to every process of a job. Only the worker decides to stop the program."""


def main() -> int:
    """Run one program to the end of its last process; return 0."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    parent = os.getppid()
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    orders = _Orders()
    order = json.loads(orders.first_line())
    main_pid = _start(order, prctl)
    _report(pid=main_pid)
    ends_s: float | None = None
    is_killing, pause_s = False, PAUSE_S
    killed: set[int] = set()
    while True:
        code = _reap(main_pid)
        if code is not None:
            _report(code=code)
            ends_s = time.monotonic() + order["linger_s"]
        children = _has_children()
        if not children:
            break
        is_killing = is_killing or orders.is_closed or os.getppid() != parent
        is_killing = is_killing or (ends_s is not None and time.monotonic() >= ends_s)
        if is_killing:
            killed |= _kill_descendants()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_S)  # One in a device call may take long to end.
            continue
        wait_s = 0.0 if orders.has_line else POLL_S
        ready, _, _ = select.select([woken, *orders.readable()], [], [], wait_s)
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
        if orders.fd in ready:
            orders.read()
        for line in orders.lines():
            word, _, value = line.partition(" ")
            if word == "kill":
                is_killing = True
            elif word == "signal":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(main_pid, int(value))
    _report(n_killed=len(killed))
    return 0


class _Orders:
    """Lines of the standard input, as far as they have arrived."""

    def __init__(self) -> None:
        self.fd = 0
        self.is_closed = False
        self._rest = b""

    def readable(self) -> list[int]:
        return [] if self.is_closed else [self.fd]

    @property
    def has_line(self) -> bool:
        """Whether a whole line was read and not taken; one may come together with the first."""
        return b"\n" in self._rest

    def read(self) -> None:
        data = os.read(self.fd, 1 << 16)
        self.is_closed = not data
        self._rest += data

    def first_line(self) -> bytes:
        while not self.has_line:
            self.read()
            if self.is_closed:
                sys.exit(1)
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def lines(self) -> list[str]:
        *whole, self._rest = self._rest.split(b"\n")
        return [line.decode() for line in whole]


def _start(order: dict[str, Any], prctl: Any) -> int:
    """Start the program in a session of its own; return its process number.

    A program that cannot be started ends with 126 or 127, as in a shell, and its output says why.
    """
    supervisor = os.getpid()
    started, start = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(start)
        os.read(started, 1)  # Returns when exec has closed the other end: signals then reach it.
        return pid
    code = EXIT_NOT_EXECUTABLE
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != supervisor:
            os._exit(EXIT_NOT_FOUND)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *IGNORED, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        for number in order["ignored"]:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
        os.chdir(order["cwd"])
        os.execvpe(order["argv"][0], order["argv"], order["env"])
    except (OSError, ValueError) as error:
        code = EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_NOT_EXECUTABLE
        why = error.strerror if isinstance(error, OSError) else error
        text = f"scalelab: cannot start {order['argv'][0]!r} in {order['cwd']}: {why}\n"
        os.write(2, text.encode(errors="backslashreplace"))
    finally:
        os._exit(code)


def _reap(main_pid: int) -> int | None:
    """Collect ended children; return the exit code of the main process if it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == main_pid:
                found = os.waitstatus_to_exitcode(status)
    return found


def _has_children() -> bool:
    """Return whether a descendant is left; orphans have become children of this process."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _kill_descendants() -> set[int]:
    """Kill every living descendant; return their process numbers."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    # The command in brackets may contain spaces and brackets.
                    state, parent = file.read().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    children.setdefault(int(parent), []).append(int(name))
    todo, killed = [os.getpid()], set()
    while todo:
        for pid in children.get(todo.pop(), ()):
            todo.append(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
    return killed


def _report(**content: int) -> None:
    # A worker that has died reads no reports.
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(content).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())

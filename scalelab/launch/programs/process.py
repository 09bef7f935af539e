"""The processes of one attempt of a program, which `scalelab.launch.programs.supervisor` starts."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from scalelab.records.machine import own_process
from scalelab.records.run_dir import Attempt

LINGER_S = 10.0
"""Seconds for the last processes of a program whose main process has ended."""
KILL_S = 30.0
"""Seconds to wait for the end of killed processes; one in a device call may take long."""
TOKEN_VARIABLE = "SCALELAB_TOKEN"
"""Environment variable with the attempt's claim token, by which its processes are found."""
ENDED_FILE = "processes-ended"
"""Mark in an attempt's folder that no process of the program is left."""
PROOF_S = 30.0
"""Seconds to wait for the proof that an earlier attempt has left a shared folder."""
SUPERVISOR = Path(__file__).with_name("supervisor.py")


class ProcessTree:
    """A running program with all its descendants.

    Parameters
    ----------
    argv : sequence of str
        Arguments; never read by a shell.
    env : Mapping
        The whole environment.
    cwd : str
        Folder in which the program starts.
    output : Path
        File to which output and errors are appended.
    ignored : sequence of int
        Signals that the program ignores, unless it handles them itself.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        output: Path,
        *,
        ignored: Sequence[int] = (),
    ) -> None:
        self.code: int | None = None
        """Exit code of the main process, negative for a signal; None while it runs or if lost."""
        self.n_killed = 0
        self.has_ended = False
        self.is_lost = False
        """Whether the supervisor was killed; its program then died with it."""
        self._token = env.get(TOKEN_VARIABLE, "")
        self._rest = b""
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(SUPERVISOR)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
                bufsize=0,
            )
        order = {
            "argv": list(argv),
            "env": dict(env),
            "cwd": cwd,
            "linger_s": LINGER_S,
            "ignored": list(map(int, ignored)),
        }
        self._send(json.dumps(order))

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of all processes, at most this long; return whether they have ended."""
        ends_s = time.monotonic() + timeout_s
        while not self.has_ended:
            left_s = ends_s - time.monotonic()
            assert self._process.stdout is not None
            ready, _, _ = select.select([self._process.stdout], [], [], max(left_s, 0))
            if ready:
                self._read_reports()
            elif left_s <= 0:
                break
        return self.has_ended

    def ask_to_stop(self, signal_name: str) -> None:
        """Send a signal, such as ``TERM``, to the program's process group."""
        self._send(f"signal {int(signal.Signals[f'SIG{signal_name}'])}")

    def kill(self) -> bool:
        """Kill every process that is left; return whether all have ended within 30 seconds."""
        self._send("kill")
        return self.wait(KILL_S)

    def close(self) -> None:
        """Kill what is left and release the supervisor."""
        if not self.has_ended:
            self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
        if self.has_ended:
            self._process.wait()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        data = memoryview(line.encode() + b"\n")
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[self._process.stdin.write(data) :]

    def _read_reports(self) -> None:
        assert self._process.stdout is not None
        data = self._process.stdout.read(1 << 16)
        if not data:
            self.has_ended = True
            self._process.wait()
            if self._process.returncode != 0:
                self.is_lost = True
                kill_all_of(self._token)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            report = json.loads(line)
            self.code = report.get("code", self.code)
            self.n_killed = report.get("n_killed", self.n_killed)


def processes_of(token: str) -> list[int]:
    """Return the living processes of an attempt on this machine, by the token they inherited.

    Processes of other users, and those that have replaced their environment, are not found.
    """
    mark = f"{TOKEN_VARIABLE}={token}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                found.append(int(name))
    return found


def kill_all_of(token: str) -> bool:
    """Kill the processes of an attempt on this machine; return whether none is left."""
    ends_s = time.monotonic() + KILL_S
    while token and (found := processes_of(token)):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() >= ends_s:
            return False
        time.sleep(0.01)
    return True


def unproven_end(own: Attempt, stop_reason: Callable[[], str | None]) -> str:
    """Return why an earlier attempt may still write into a shared folder; empty with proof.

    The proof is the mark that a worker leaves, or a search on this machine, which also kills. Waits
    up to 30 seconds for a worker elsewhere: it ends its program when it sees the newer claim.
    """
    ends_s = time.monotonic() + PROOF_S
    host = own_process()["host"]
    for attempt in own.run.attempts():
        note, mark = attempt.read_note(), attempt.path / ENDED_FILE
        if attempt.token == own.token or "command" not in note:
            continue
        while not mark.exists():
            if note.get("host") == host and kill_all_of(attempt.token):
                mark.touch()
            elif time.monotonic() >= ends_s or stop_reason() is not None:
                return (
                    f"in_place = true, and processes of attempt {attempt.number} on "
                    f"{note.get('host')} may still write into the folder of the run. If none is "
                    f"left, type: touch {shlex.quote(str(mark))}"
                )
            else:
                time.sleep(0.1)
    return ""

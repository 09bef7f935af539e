"""Workers stopped in the middle of a run, so that a test's fault never comes too late."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from scalelab.records.sweep_dir import Results

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, timeout_s: float = 120.0) -> T:
    """Return the first true result of ``condition``, called every 10 ms."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.01)
    raise AssertionError(f"waited {timeout_s} s for {what}")


def working_pids(results: Results) -> list[int]:
    """Return the pids of training processes, from the notes of unfinished attempts."""
    found = []
    for path in (results.path / "runs").glob("*"):
        attempts = results.run(path.name).attempts()
        if attempts and not (path / "accepted").exists() and not attempts[-1].read_record():
            note = attempts[-1].read_note()
            is_training = attempts[-1].last_metrics() is not None
            if note.get("pid") and "ended" not in note and is_training:
                found.append(note["pid"])
    return found


def process_state(pid: int) -> str:
    """Return the state letter of a process; Z if it has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "Z"
    return status.rpartition(")")[2].split()[0]


def has_pending(pid: int, *numbers: signal.Signals) -> bool:
    """Return whether one of these signals is pending for a frozen process."""
    text = Path(f"/proc/{pid}/status").read_text()
    masks = [line.split()[1] for line in text.splitlines() if line.startswith(("SigP", "ShdP"))]
    pending = int(masks[0], 16) | int(masks[1], 16)
    return any(pending >> (number - 1) & 1 for number in numbers)


def freeze_worker(results: Results) -> int | None:
    """Stop one worker in the middle of a run; return None if there is none."""
    for pid in working_pids(results):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            while process_state(pid) not in "TZ":
                time.sleep(0.001)
            if process_state(pid) == "T" and pid in working_pids(results):
                return pid
            os.kill(pid, signal.SIGCONT)
    return None


@contextlib.contextmanager
def frozen_worker(results: Results) -> Iterator[int]:
    """Yield the pid of a worker that stays in the middle of its run inside this context."""
    pid = wait_for(lambda: freeze_worker(results), "a worker that trains")
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

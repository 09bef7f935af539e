"""Who works on an attempt: a process named by host, number and start time.

The number alone does not identify a process, because numbers are used again.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_START_TIME_FIELD = 22


def pid_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None where /proc does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the command in brackets and may hold blanks.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[_START_TIME_FIELD - 3])


def own_process() -> dict[str, Any]:
    """Return host, number and start time of this process, as an attempt's note holds them."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "pid_start": pid_start(os.getpid())}


def is_process_alive(note: Mapping[str, Any]) -> bool:
    """Say whether the process that wrote an attempt's note still lives on this machine.

    A note from another machine cannot be judged here and counts as not alive: its attempt is
    fenced by the next claim, so it can do no harm.
    """
    if note.get("host") != socket.gethostname() or not isinstance(note.get("pid"), int):
        return False
    started = pid_start(note["pid"])
    return started is not None and started == note.get("pid_start")

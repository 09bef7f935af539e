"""A lock between the workers of a results folder, which may be on a network file system.

The lock of a file is a folder beside it. A worker takes the lock by creating the next numbered file
in it with ``O_EXCL``, which is atomic on NFS too; the highest number holds the lock. The holder
rewrites its file every few seconds. A waiting worker that sees no change for `STALE_S` by its own
clock takes the holder for dead and creates the next number; only one of several can. A worker that
was taken for dead by mistake does no harm: verdicts are joined, and the first one's entries stay.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from scalelab.records.files import list_entries
from scalelab.records.qualification import LOCK_STALE_S as STALE_S
from scalelab.records.qualification import RELEASED

BEAT_S = 3.0
POLL_S = 1.0


@contextlib.contextmanager
def held(path: Path, *, wait_s: float, is_needed: Callable[[], bool]) -> Iterator[bool]:
    """Hold the lock of ``path`` during the block.

    Parameters
    ----------
    path : Path
        The file that the holder will write.
    wait_s : float
        Longest time to wait for the holder.
    is_needed : callable
        Asked again and again while waiting; False ends the wait, because the file has come.

    Yields
    ------
    bool
        Whether to go on: True with the lock, without it after ``wait_s``, and where no lock can be
        written; False if it is no longer needed.
    """
    folder = path.with_suffix(".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own = _taken(folder, wait_s, is_needed)
    except OSError:
        yield is_needed()
        return
    if own is None:
        yield is_needed()
        return
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(own, stop), daemon=True)
    beat.start()
    try:
        # The holder before may have written the file between the last look and the claim.
        yield is_needed()
    finally:
        stop.set()
        beat.join()
        with contextlib.suppress(OSError):
            own.write_text(RELEASED, encoding="utf-8")


def _taken(folder: Path, wait_s: float, is_needed: Callable[[], bool]) -> Path | None:
    """Return the claim of this worker; None if it is not needed or the wait was too long."""
    started = changed = time.monotonic()
    seen: tuple[int, str] | None = None
    while is_needed():
        number, text = _holder(folder)
        now = time.monotonic()
        if now - started > wait_s:
            return None
        if (number, text) != seen:
            seen, changed = (number, text), now
        if number == 0 or text == RELEASED or now - changed > STALE_S:
            own = folder / str(number + 1)
            try:
                os.close(os.open(own, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            except FileExistsError:
                # A listing on a network file system can be old; the creation is not.
                seen = None
                time.sleep(POLL_S)
                continue
            for entry in list_entries(folder):
                if entry.name.isdecimal() and int(entry.name) < number:
                    entry.unlink(missing_ok=True)
            return own
        time.sleep(POLL_S)
    return None


def _holder(folder: Path) -> tuple[int, str]:
    """Return number and text of the newest claim; (0, "") without one."""
    number = max((int(e.name) for e in list_entries(folder) if e.name.isdecimal()), default=0)
    try:
        return number, (folder / str(number)).read_text(encoding="utf-8") if number else ""
    except OSError:
        return number, ""


def _beat(own: Path, stop: threading.Event) -> None:
    """Rewrite the claim until told to stop, so that others see that its holder is alive."""
    count = 0
    while True:
        with contextlib.suppress(OSError):
            own.write_text(f"{socket.gethostname()} {os.getpid()} {count}", encoding="utf-8")
        count += 1
        if stop.wait(BEAT_S):
            return

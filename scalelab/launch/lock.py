"""Locks between launchers; the operating system releases them when the process dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from scalelab.errors import UsageError, unwritable


@contextlib.contextmanager
def launcher_lock(sweep_folder: Path) -> Iterator[None]:
    """Hold a sweep's launcher lock.

    Raises
    ------
    UsageError
        If another process holds it.
    """
    sweep_folder.mkdir(parents=True, exist_ok=True)
    path = sweep_folder / "launcher.lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UsageError(
                f"sweep {sweep_folder.name!r}, which process {file.read().strip()} is launching",
                "one launcher per sweep at a time",
                f"Watch it with `scalelab status {sweep_folder.name} --watch`, or stop it first.",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def submission_lock(results: Path) -> Iterator[None]:
    """Hold the results folder's submission lock while intents are written.

    Sweeps share runs: without it two launchers could submit the same missing run.
    """
    with (results / "sweeps" / ".submission.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def folders_lock(results: Path) -> Iterator[None]:
    """Hold the lock for moving whole parts of a results folder: merge, remove, restore.

    Raises
    ------
    UsageError
        If another process holds it.
    DataError
        If the folder cannot be written.
    """
    try:
        results.mkdir(parents=True, exist_ok=True)
        file = (results / ".scalelab-folders.lock").open("a")
    except OSError as error:
        raise unwritable(results, "parts", error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{results}, which another merge, remove or restore is changing",
                "one of them at a time",
                "Wait until it ends, then run the same command again.",
            ) from None
        yield

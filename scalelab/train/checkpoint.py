"""Checkpoints of one run: written atomically, verified by checksum, loaded without running code.

::

    checkpoint-<step>/state.pt    tensors and plain values, by `torch.save`
    checkpoint-<step>/meta.json   size and SHA-256 of state.pt, and the step

We store a checksum because torch's reader does not verify the one in the archive.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from scalelab.records.run_dir import Attempt, Checkpoint, RunDir

STATE_FILE = "state.pt"
META_FILE = "meta.json"


def save(attempt: Attempt, state: dict[str, Any]) -> None:
    """Write the checkpoint of a run after ``state["step"]`` steps.

    Raises
    ------
    OSError
        When writing fails (for example on a full disk); earlier checkpoints stay.
    """
    with attempt.writing_checkpoint(state["step"]) as folder:
        write(folder, state)


def write(folder: Path, state: dict[str, Any]) -> None:
    """Write a state and its checksum to an empty folder.

    Raises
    ------
    OSError
        When writing fails.
    """
    path = folder / STATE_FILE
    try:
        torch.save(state, path)
    except RuntimeError as error:
        # The archive writer reports a failed write as a RuntimeError.
        raise OSError(f"the checkpoint could not be written: {_first_line(error)}") from error
    meta = {"step": state["step"], "n_bytes": path.stat().st_size, "sha256": _digest(path)}
    (folder / META_FILE).write_text(json.dumps(meta))


def load_newest(run: RunDir) -> Iterator[tuple[Checkpoint, dict[str, Any] | None]]:
    """Yield the run's checkpoints, latest step first, each with its state, or None if corrupt."""
    for found in run.checkpoints():
        state = read(found.path)
        yield found, state if state is not None and state["step"] == found.step else None


def read(folder: Path) -> dict[str, Any] | None:
    """Return the state in a folder, on the CPU; None if it is incomplete or corrupt."""
    path = folder / STATE_FILE
    try:
        meta = json.loads((folder / META_FILE).read_text())
        if path.stat().st_size != meta["n_bytes"] or _digest(path) != meta["sha256"]:
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError):
        return None
    return state if "step" in state else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]

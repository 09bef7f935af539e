"""Notice the checkpoints that a running program saves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from scalelab.launch.programs.checkpoints import (
    CheckpointPattern,
    ProgramCheckpoint,
    note_checkpoint,
    out_dir_of,
)
from scalelab.records.run_dir import Attempt

WATCHED = 100
"""The newest checkpoints of a program that are compared while it writes."""


class CheckpointWatch:
    """Records each new checkpoint of an attempt, for status, retries and the next attempt.

    Parameters
    ----------
    attempt : Attempt
    pattern : CheckpointPattern
    in_place : bool
        Whether all attempts of the run share one folder.
    """

    def __init__(self, attempt: Attempt, pattern: CheckpointPattern, *, in_place: bool) -> None:
        self.pattern = pattern
        self.newest: ProgramCheckpoint | None = None
        """The newest checkpoint, also one that was cloned."""
        self._attempt = attempt
        self._out_dir = out_dir_of(attempt, in_place=in_place)
        self._seen: Mapping[int, object] = {}
        self._noted: object = None

    def start_from(self, checkpoint: ProgramCheckpoint, wall_s: float, *, is_own: bool) -> None:
        """Begin with the checkpoint that the attempt resumes; record one that is its own clone."""
        self.newest = checkpoint
        self._noted = checkpoint.stamp()
        if is_own:
            note_checkpoint(self._attempt, checkpoint, wall_s)

    def look(self, note: dict[str, Any], wall_s: float, *, is_last: bool = False) -> None:
        """Record a new checkpoint in the folder and the note of the attempt.

        Parameters
        ----------
        note : dict
            Content of ``attempt.json``.
        wall_s : float
            Seconds of training so far.
        is_last : bool
            Whether the program has ended; while it runs, only a checkpoint that has not changed
            since the last call counts. That is not always the newest: a program may save more
            often than this is called.
        """
        found: list[ProgramCheckpoint] = []
        with contextlib.suppress(OSError):
            found = self.pattern.find(self._attempt, self._out_dir)
        stamps = {item.step: item.stamp() for item in found[:WATCHED]}
        before, self._seen = self._seen, stamps
        saved = next(
            (i for i in found[:WATCHED] if is_last or stamps[i.step] == before.get(i.step)), None
        )
        if saved is None or (self.newest is not None and saved.step < self.newest.step):
            return
        if stamps[saved.step] == self._noted:
            return
        self._noted, self.newest = stamps[saved.step], saved
        with contextlib.suppress(OSError):
            note_checkpoint(self._attempt, saved, wall_s)
            note["checkpoint"] = {"step": saved.step, "time_s": time.time()}
            self._attempt.write_note(note)

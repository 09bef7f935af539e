"""Stop a launch whose command is wrong: two runs that fail before their first row are enough."""

from __future__ import annotations

import time
from collections.abc import Iterable

from scalelab.errors import RunsFailedError
from scalelab.launch.programs.failures import USAGE
from scalelab.records.run_dir import RunDir, end_of

MOST_USAGE_FAILURES = 2


class UsageFailures:
    """Counts the runs that failed since now because their command is wrong."""

    def __init__(self, sweep: str) -> None:
        self._sweep = sweep
        self._since_s = time.time()
        self._reasons: dict[str, str] = {}

    def add(self, runs: Iterable[RunDir]) -> None:
        """Look at runs that have failed.

        Raises
        ------
        RunsFailedError
            If two runs of this launch failed so; the error has the output of the last one.
        """
        for run in runs:
            attempts = run.attempts()
            end = end_of(attempts[-1].read_note()) if attempts else {}
            if end.get("kind") == USAGE and end.get("time_s", 0.0) >= self._since_s:
                self._reasons[run.run_id] = str(end.get("reason"))
        if len(self._reasons) >= MOST_USAGE_FAILURES:
            run_id, reason = list(self._reasons.items())[-1]
            raise RunsFailedError(
                f"{len(self._reasons)} runs whose program failed before its first row, the last of "
                f"them {run_id}: {reason}",
                "a command that the program accepts",
                "Correct [program] in the sweep file, try it with `scalelab program check FILE`, "
                "and start the sweep again; or correct the program, then type "
                f"`scalelab retry {self._sweep}`.",
            )

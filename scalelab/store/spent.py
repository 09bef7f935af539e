"""The time that a run has cost, and the part of it that no result came of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scalelab.records.run_dir import Attempt, RunDir
from scalelab.store.rows import resumed_from
from scalelab.store.scan import AttemptFiles, RunFiles


def spent_and_wasted_s(run: RunFiles, now_s: float) -> tuple[float, float]:
    """Return the seconds that all attempts took, and those whose steps had to be taken again.

    An attempt counts from its start to its end, or to its last row where it was killed. Wasted is
    what it did after the checkpoint from which a later one went on.

    Parameters
    ----------
    run : RunFiles
    now_s : float
        Unix time, for an attempt that is under way.
    """
    spent = wasted = 0.0
    for index, attempt in enumerate(run.attempts):
        later = run.attempts[index + 1 :]
        started_s = _number(attempt.note.get("started_s"))
        ended_s = _number(attempt.end.get("time_s")) or _last_row_s(attempt, now_s)
        if started_s is None or ended_s is None:
            continue
        took = max(ended_s - started_s, 0.0)
        spent += took
        is_superseded = run.accepted is not None and attempt is not run.accepted
        if later or is_superseded:
            kept = [step for number, step in map(resumed_from, later) if number == attempt.number]
            kept_until = _time_of_step(attempt, kept[-1]) if kept and kept[-1] else started_s
            wasted += min(max(ended_s - kept_until, 0.0), took)
    return spent, wasted


def _last_row_s(attempt: AttemptFiles, now_s: float) -> float | None:
    folder = Path(attempt.folder)
    found = Attempt(
        run=RunDir(folder.parents[1]), number=attempt.number, token=attempt.token
    ).last_metrics()
    return None if found is None else min(found.time_s, now_s)


def _time_of_step(attempt: AttemptFiles, step: int) -> float:
    """Return when an attempt had taken a step, its start when its curve does not tell."""
    reached = _number(attempt.note.get("started_s")) or 0.0
    try:
        lines = (Path(attempt.folder) / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return reached
    for line in lines:
        try:
            row: Any = json.loads(line)
            if row["step"] > step:
                break
            reached = float(row["time_s"])
        except (ValueError, KeyError, TypeError):
            continue
    return reached


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None

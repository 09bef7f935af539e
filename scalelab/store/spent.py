"""Worker time that a run used, and the part of it that produced no result."""

from __future__ import annotations

import json
from typing import Any

from scalelab.records.run_files import AttemptFiles, RunFiles


def spent_and_wasted_s(run: RunFiles, now_s: float) -> tuple[float, float]:
    """Return the seconds of all attempts, and the seconds of steps that were trained again.

    An attempt counts from its start to its end, or to its last row if it recorded no end. Its time
    after the checkpoint from which a later attempt resumed is wasted. ``now_s`` is the Unix time.
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
            sources = [other.resumed_from for other in later]
            kept = [step for number, step in sources if number == attempt.number]
            kept_until = _time_of_step(attempt, kept[-1]) if kept and kept[-1] else started_s
            wasted += min(max(ended_s - kept_until, 0.0), took)
    return spent, wasted


def _last_row_s(attempt: AttemptFiles, now_s: float) -> float | None:
    found = attempt.handle().last_metrics()
    return None if found is None else min(found.time_s, now_s)


def _time_of_step(attempt: AttemptFiles, step: int) -> float:
    """Return when an attempt had taken a step, or its start if its curve does not reach it."""
    reached = _number(attempt.note.get("started_s")) or 0.0
    try:
        lines = attempt.handle().metrics_path.read_bytes().split(b"\n")[:-1]
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

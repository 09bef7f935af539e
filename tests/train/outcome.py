"""What the tests of the trainer read back of a run."""

from __future__ import annotations

import json
from typing import Any

from scalelab.records.run_dir import RunDir
from scalelab.records.types import RunRecord


def result(run: RunDir) -> RunRecord:
    accepted = run.accepted()
    assert accepted is not None
    record = accepted.read_record()
    assert record is not None
    return record


def curve(run: RunDir, column: str = "loss_nats") -> dict[int, float]:
    """Return loss, or another column, by step, later attempts replacing earlier ones."""
    losses = {}
    for attempt in run.attempts():
        if attempt.metrics_path.exists():
            for line in attempt.metrics_path.read_text().splitlines():
                row = json.loads(line)
                losses[row["step"]] = row[column]
    return losses


def last_note(run: RunDir) -> dict[str, Any]:
    return run.attempts()[-1].read_note()

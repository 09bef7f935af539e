"""Attempts at a run, and what the tests read back from its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scalelab.records.run_dir import RunDir
from scalelab.records.types import RunRecord
from scalelab.sweep.execution import ExecutionSpec
from scalelab.train.worker import run_batched


def run_attempt(run: Path, dataset: Path, execution: ExecutionSpec, **options: Any) -> str:
    (status,) = run_batched([run], dataset, execution, **options)
    return status


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

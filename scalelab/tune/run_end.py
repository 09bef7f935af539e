"""Final loss of a run, and its loss curve by percent of its tokens."""

from __future__ import annotations

import json
import math

import numpy as np

from scalelab.records.metric import HELDOUT, Metric
from scalelab.records.run_dir import RunDir
from scalelab.records.run_metric import final_metric

DIVERGED = math.inf
"""Loss of a diverged run, to distinguish it from a missing loss."""

REPORT_EVERY = 10
"""Percent of a run's tokens between points of its curve."""


def final_loss(run: RunDir, metric: Metric = HELDOUT) -> float | None:
    """Return a run's loss in the unit of the metric; infinite if diverged, None if unfinished."""
    return final_metric(run, metric)


def curve_by_percent(run: RunDir) -> dict[int, float]:
    """Return the mean training loss of each finished tenth of a run, by percent of tokens."""
    n_steps = run.read_spec().n_steps
    tenths: dict[int, list[float]] = {}
    last = 0
    for attempt in run.attempts():
        try:
            text = attempt.metrics_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue
        for line in text.split("\n")[:-1]:
            row = json.loads(line)
            last = max(last, row["step"])
            share = min(9, (row["step"] - 1) * 10 // n_steps)
            tenths.setdefault(share, []).append(row["loss_nats"])
    return {
        REPORT_EVERY * (share + 1): float(np.mean(losses))
        for share, losses in tenths.items()
        if last * 10 >= (share + 1) * n_steps and np.all(np.isfinite(losses))
    }

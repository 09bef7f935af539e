"""Intervals are continuous in the target: half the step, half the largest change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from scalelab.api import fit
from scalelab.api.data import frame_of
from scalelab.arrays import FloatArray
from scalelab.forecast.bands import bands_between
from scalelab.forecast.fit_report import FitReport
from scalelab.records.types import Observations
from scalelab.store.table_read import TableRead

ENDS = ("loss", "low", "high", "pred_low", "pred_high")


def largest_steps(report: FitReport, low: float, high: float, points: int) -> FloatArray:
    """Return the largest change of each end between neighbouring targets."""
    bands = bands_between(report, low, high, points)
    assert bands is not None
    assert len(bands.flops) == points
    return np.array([np.abs(np.diff(getattr(bands, end))).max() for end in ENDS])


@pytest.mark.slow
@pytest.mark.parametrize("forecaster", ["law", "averaged"])
def test_the_bands_are_continuous_across_the_ends_of_the_runs(
    isoflop_runs: Callable[..., Observations], forecaster: str
) -> None:
    rows = isoflop_runs(noise=0.005, budgets=(1e18, 3e18, 1e19, 3e19), sizes=7)
    frame = frame_of(TableRead(observations=rows, lines=np.arange(len(rows))))
    report = fit(frame, bootstrap=100, forecaster=forecaster)
    # once across the smallest and once across the largest run
    for end in (float(rows.flops.min()), float(rows.flops.max())):
        coarse = largest_steps(report, end / 3, end * 3, 21)
        fine = largest_steps(report, end / 3, end * 3, 41)
        assert (fine < 0.7 * coarse).all(), (forecaster, end, fine / coarse)


@pytest.mark.slow
def test_the_bands_of_chinchilla_do_not_jump_at_its_largest_run() -> None:
    report = fit("public:chinchilla", bootstrap=100)
    coarse = largest_steps(report, 5e21, 3e22, 21)
    fine = largest_steps(report, 5e21, 3e22, 41)
    assert (fine < 0.7 * coarse).all(), fine / coarse

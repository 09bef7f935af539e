"""Folds of a rolling origin: the levels of compute of rows, by their budgets if they have any.

`scalelab.fit.select` fits the lower levels and predicts the next one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.fit.isoflop import budgets_of
from scalelab.records.types import Observations

MAX_FOLDS = 6
"""Largest number of budgets that are predicted; of more, a part that is spread evenly."""
MIN_FOLDS = 3


def folds_of(observations: Observations) -> tuple[NDArray[np.intp], FloatArray]:
    """Return each row's level of compute (0 is the lowest), and the centre of each level.

    With `MIN_FOLDS` budgets or more the levels are the budgets; rows without a budget belong to the
    nearest one. Otherwise the levels are equal parts of the rows by compute.
    """
    budget, _ = budgets_of(observations)
    centres = np.unique(budget[np.isfinite(budget)])
    log_c = np.log(observations.flops)
    if len(centres) < MIN_FOLDS:
        parts = min(MAX_FOLDS, len(np.unique(observations.flops)))
        edges = np.quantile(log_c, np.linspace(0, 1, parts + 1))
        centres = np.exp((edges[1:] + edges[:-1]) / 2)
        return np.clip(np.searchsorted(edges, log_c, side="right") - 1, 0, parts - 1), centres
    middles = (np.log(centres)[1:] + np.log(centres)[:-1]) / 2
    nearest = np.searchsorted(middles, log_c)
    # The budget column decides: its convention may differ from that of the FLOPs.
    return np.where(np.isfinite(budget), np.searchsorted(centres, budget), nearest), centres

"""The runs that tuning laws are fitted to, grouped into cells: the runs of one N and one D."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.errors import DataError

COLUMNS = ("n_params", "n_tokens", "lr", "batch_tokens", "loss")
SAME_CELL = 0.03
"""Largest gap in log N or log D within a cell: batch sizes round D by about 1 %."""

FAR_FROM_BEST = 0.25
"""Excess of log loss above which a run counts as diverged and is left out of the fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedRuns:
    """Finished runs that differ in learning rate and batch.

    Attributes
    ----------
    n_params, n_tokens : ndarray of float, shape (n,)
        N (in the convention ``param_convention``) and training tokens D.
    lr : ndarray of float, shape (n,)
        Peak learning rate.
    batch_tokens : ndarray of float, shape (n,)
        Tokens in a step.
    loss : ndarray of float, shape (n,)
        Final loss in any unit: only ratios within a cell are used.
    label : ndarray of str, shape (n,), or None
        Separates cells of the same N and D, such as architectures or data sets.
    param_convention : str
        How N is counted.
    n_diverged : int
        Runs left out because their loss is missing, infinite or not above zero.
    """

    n_params: FloatArray
    n_tokens: FloatArray
    lr: FloatArray
    batch_tokens: FloatArray
    loss: FloatArray
    label: NDArray[np.str_] | None = None
    param_convention: str = "unstated"
    n_diverged: int = 0

    def __len__(self) -> int:
        return len(self.loss)

    def __post_init__(self) -> None:
        for name in COLUMNS:
            values = getattr(self, name)
            bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
            if len(bad):
                raise DataError(
                    f"{name} = {values[bad[0]]} in row {bad[0] + 1} of the usable runs",
                    f"finite {name} above zero",
                    f"Give {name} a number above zero, or use another column: --map {name}=COLUMN",
                )

    def cells(self) -> NDArray[np.int64]:
        """Return the number of each run's cell, shape (n,): same N, same D, same label."""
        keys = np.stack([_groups(self.n_params), _groups(self.n_tokens)], axis=1)
        if self.label is not None:
            labels = np.unique(self.label, return_inverse=True)[1]
            keys = np.concatenate([keys, labels.reshape(-1, 1)], axis=1)
        return np.asarray(np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1))

    def take(self, keep: NDArray[np.int64]) -> TunedRuns:
        """Return the runs at these positions, in this order."""
        columns: dict[str, Any] = {name: getattr(self, name)[keep] for name in COLUMNS}
        label = None if self.label is None else self.label[keep]
        return dataclasses.replace(self, **columns, label=label)


def log_excess(loss: FloatArray, cell: NDArray[np.int64]) -> FloatArray:
    """Return log of the loss divided by the median of the cell's three best, shape (n,)."""
    result = np.empty(len(loss))
    for one in np.unique(cell):
        own = cell == one
        result[own] = np.log(loss[own] / np.median(np.sort(loss[own])[:3]))
    return result


def _groups(values: FloatArray) -> NDArray[np.int64]:
    """Return a group number for each value; a gap above `SAME_CELL` starts a new group."""
    order = np.argsort(values)
    is_new = np.diff(np.log(values[order]), prepend=-np.inf) > SAME_CELL
    numbers = np.empty(len(values), dtype=np.int64)
    numbers[order] = np.cumsum(is_new)
    return numbers

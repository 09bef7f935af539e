"""The runs that a law of learning rate and batch is fitted to, in cells of one N and one D."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import DataError

FloatArray = NDArray[np.float64]

SAME_CELL = 0.03
"""Largest gap in log N or log D in a cell: whole steps of unlike batches differ by a percent."""

FAR_FROM_BEST = 0.25
"""Excess of log loss beyond which a run says nothing about the valley: it has diverged."""


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
        Final loss; any unit, since only ratios within a cell are used.
    label : ndarray of str, shape (n,), or None
        What tells cells of the same N and D apart (an architecture, a data set).
    param_convention : str
        How N is counted.
    n_diverged : int
        Runs that were left out for a loss that is missing, infinite or not above zero.
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
        for name in ("n_params", "n_tokens", "lr", "batch_tokens", "loss"):
            values = getattr(self, name)
            bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
            if len(bad):
                raise DataError(
                    f"{name} = {values[bad[0]]} in row {bad[0] + 1} of the usable runs",
                    f"every {name} finite and above zero",
                    "Mend the table, or map another column with --map.",
                )

    def cells(self) -> NDArray[np.int64]:
        """Return the number of each run's cell, shape (n,): same N, same D, same label."""
        keys = np.stack([_groups(self.n_params), _groups(self.n_tokens)], axis=1)
        if self.label is not None:
            labels = np.unique(self.label, return_inverse=True)[1]
            keys = np.concatenate([keys, labels.reshape(-1, 1)], axis=1)
        return np.asarray(np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1))

    def take(self, keep: NDArray[np.int64]) -> TunedRuns:
        """Return the runs of these positions, in this order."""
        return TunedRuns(
            n_params=self.n_params[keep],
            n_tokens=self.n_tokens[keep],
            lr=self.lr[keep],
            batch_tokens=self.batch_tokens[keep],
            loss=self.loss[keep],
            label=None if self.label is None else self.label[keep],
            param_convention=self.param_convention,
            n_diverged=self.n_diverged,
        )


def log_excess(loss: FloatArray, cell: NDArray[np.int64]) -> FloatArray:
    """Return log loss over the median of the three best runs of the cell, shape (n,)."""
    result = np.empty(len(loss))
    for one in np.unique(cell):
        own = cell == one
        result[own] = np.log(loss[own] / np.median(np.sort(loss[own])[:3]))
    return result


def _groups(values: FloatArray) -> NDArray[np.int64]:
    """Return a number for each value, the same for values that a chain of small gaps joins."""
    order = np.argsort(values)
    is_new = np.diff(np.log(values[order]), prepend=-np.inf) > SAME_CELL
    numbers = np.empty(len(values), dtype=np.int64)
    numbers[order] = np.cumsum(is_new)
    return numbers

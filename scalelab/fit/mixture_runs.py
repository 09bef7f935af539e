"""Runs of data mixtures: weights of the sources, and losses on evaluation sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.fit.effective_data import effective_data
from scalelab.fit.mixture_checks import check_weights
from scalelab.theory.laws.mixing import SCALES, WEIGHT


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MixtureRuns:
    """Runs with weights of sources and losses on evaluation sets.

    Attributes
    ----------
    sources : tuple of str
    weights : ndarray of shape (n, m)
        Shares of the training tokens, each row sums to 1.
    losses : Mapping[str, ndarray of shape (n,)]
        Losses by evaluation set.
    n_params, n_tokens : ndarray of shape (n,), or None
        N and D, None if not known.
    unit : str
        Unit of the losses.
    names : tuple of str
        Name of each run.
    unique_tokens : Mapping[str, float]
        Distinct tokens of a source, where known.
    source : str
        Where the runs come from, for messages.
    n_incomplete : int
        Rows that were not used because a loss is missing.

    Raises
    ------
    DataError
        If weights are negative or do not sum to 1.
    """

    sources: tuple[str, ...]
    weights: FloatArray
    losses: Mapping[str, FloatArray]
    n_params: FloatArray | None = None
    n_tokens: FloatArray | None = None
    unit: str = "nats/token"
    names: tuple[str, ...] = ()
    unique_tokens: Mapping[str, float] = field(default_factory=dict)
    source: str = "the runs"
    n_incomplete: int = 0

    def __post_init__(self) -> None:
        check_weights(self.weights, self.sources, self.source)
        object.__setattr__(self, "weights", self.weights / self.weights.sum(axis=1, keepdims=True))

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.weights)

    @property
    def scale(self) -> tuple[str, ...]:
        """Those of N and D that differ between runs."""
        return tuple(
            name
            for name in SCALES
            if (column := getattr(self, name)) is not None and np.ptp(column) > 1e-9 * column.max()
        )

    @property
    def mixtures(self) -> NDArray[np.intp]:
        """Number of the mixture of each run; equal weights have equal numbers."""
        _, number = np.unique(np.round(self.weights, 9), axis=0, return_inverse=True)
        return np.asarray(number).reshape(-1)

    def columns(self) -> dict[str, FloatArray]:
        """Return the columns of a law; repeated tokens count as what they are worth."""
        sizes = {name: np.asarray(getattr(self, name), float) for name in self.scale}
        h = self.weights
        if self.unique_tokens and self.n_tokens is not None:
            h, tokens = effective_data(h, self.n_tokens, self.unique_tokens, self.sources)
            sizes |= {name: tokens for name in sizes if name == "n_tokens"}
        return {WEIGHT + name: h[:, j] for j, name in enumerate(self.sources)} | sizes

"""Resampling plans of the bootstrap: the weight of every row in every replicate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.errors import UsageError, did_you_mean

Method = Literal["auto", "row", "cluster", "residual", "none"]

Weighting = Literal["smooth", "counts"]

DEFAULT_K = 1000
METHODS: tuple[Method, ...] = ("auto", "row", "cluster", "residual", "none")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BootstrapSpec:
    """Settings of the bootstrap.

    Attributes
    ----------
    k : int
        Number of replicates.
    method : {"auto", "row", "cluster", "residual", "none"}
        ``row`` resamples rows; ``cluster`` resamples whole clusters (runs instead of their
        checkpoints, trunks instead of their branches); ``residual`` keeps the design and resamples
        leverage-corrected residuals; ``auto`` uses ``cluster`` if a cluster label repeats, else
        ``row``, with efficient refits where possible (see `scalelab.fit.efficient`).
    weighting : {"smooth", "counts"}
        How rows or clusters are resampled: ``smooth`` draws exponential weights (the Bayesian
        bootstrap, Rubin 1981), ``counts`` draws with replacement. Under Huber's loss with a small
        delta, counts make replicates jump between rows: 90 % percentile intervals then cover 96 %
        and are 10 % wider than smooth ones, which cover 88 to 95 %
        (tests/science/test_coverage.py).
    cluster : str or None
        Column of cluster labels; None uses ``Observations.cluster``.
    seed : int
        Seed of the resampling; the same rows and seed give the same replicates in any row order.
    weights : ndarray of shape (k, n), or None
        Given replicate weights in the caller's row order; ``k``, ``method`` and ``seed`` are then
        ignored.

    Raises
    ------
    UsageError
        For an unknown method, a single replicate, or a negative ``k`` or seed.
    """

    k: int = DEFAULT_K
    method: Method = "auto"
    weighting: Weighting = "smooth"
    cluster: str | None = None
    seed: int = 0
    weights: FloatArray | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(
                f"bootstrap method {self.method!r}",
                f"one of {', '.join(METHODS)}",
                f"{did_you_mean(self.method, METHODS)}Use for example --bootstrap-method row.",
            )
        if self.weighting not in ("smooth", "counts"):
            raise UsageError(
                f"weighting {self.weighting!r}", "smooth or counts", "Use weighting='smooth'."
            )
        if self.k < 0 or (self.k == 1 and self.weights is None):
            raise UsageError(
                f"{self.k} bootstrap replicate{'' if self.k == 1 else 's'}",
                "2 or more for intervals, or 0 for no intervals",
                f"Use for example --bootstrap {DEFAULT_K} (the default).",
            )
        if self.seed < 0:
            raise UsageError(f"seed {self.seed}", "an integer of 0 or more", "Use --seed 0.")

    def fewest(self, level: float) -> int:
        """Return the minimum number of replicates for an interval at this level."""
        return min(math.ceil(round(2 / (1 - level), 6)), DEFAULT_K)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ResamplingPlan:
    """The weights of all replicates, made in batches to limit memory.

    Attributes
    ----------
    method : str
        What is resampled: ``row``, ``cluster``, ``residual``, ``weights`` (given) or ``none``.
    k, n : int
        Numbers of replicates and rows.
    seed : int
        Seed of the resampling.
    weighting : {"smooth", "counts"}
        See `BootstrapSpec`.
    given : ndarray of shape (k, n), or None
        Weights from the caller, in canonical row order.
    shape : ndarray of shape (n,), or None
        For ``smooth``: gamma shapes of the weights, equal within a cluster. The weights have mean 1
        and variance 1/shape. None gives exponential weights (shape 1).
    member : ndarray of int, shape (n,), or None
        For ``cluster``: number of the cluster of each row.
    cluster : str or None
        Column of the labels.
    n_clusters : int or None
        Number of clusters.
    """

    method: str
    k: int
    n: int
    seed: int = 0
    weighting: Weighting = "smooth"
    given: FloatArray | None = None
    shape: FloatArray | None = None
    member: NDArray[np.intp] | None = None
    cluster: str | None = None
    n_clusters: int | None = None

    def weights(self, batch: int) -> Iterator[FloatArray]:
        """Yield weights of shape (up to batch, n), the same for any batch size."""
        rng = np.random.default_rng(self.seed)
        for start in range(0, self.k, batch):
            size = min(batch, self.k - start)
            if self.given is not None:
                yield self.given[start : start + size]
            elif self.member is None:
                yield self._draw(rng, size, self.n, self.shape)
            else:
                _, first = np.unique(self.member, return_index=True)
                shape = None if self.shape is None else self.shape[first]
                yield self._draw(rng, size, len(first), shape)[:, self.member]

    def draws(self, batch: int) -> Iterator[NDArray[np.intp]]:
        """Yield, for ``residual``, the source row of each row's residual, (up to batch, n)."""
        rng = np.random.default_rng(self.seed)
        for start in range(0, self.k, batch):
            yield rng.integers(0, self.n, size=(min(batch, self.k - start), self.n))

    def _draw(
        self, rng: np.random.Generator, size: int, n: int, shape: FloatArray | None
    ) -> FloatArray:
        if shape is not None:
            return rng.gamma(shape, 1.0 / shape, size=(size, n))
        if self.weighting == "smooth":
            return rng.exponential(size=(size, n))
        drawn = rng.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n)
        return counts.reshape(size, n).astype(np.float64)


def plan(
    spec: BootstrapSpec, n: int, labels: NDArray[Any] | None, source: str, order: NDArray[np.intp]
) -> ResamplingPlan:
    """Return the resampling plan of n rows.

    Parameters
    ----------
    spec : BootstrapSpec
        The requested bootstrap.
    n : int
        Number of rows.
    labels : ndarray of shape (n,), or None
        Cluster labels in canonical row order.
    source : str
        Column of the labels.
    order : ndarray of int, shape (n,)
        Canonical order of the caller's rows, applied to given weights.

    Raises
    ------
    UsageError
        For weights of the wrong shape, or ``cluster`` without labels.
    """
    if spec.weights is not None:
        weights = np.asarray(spec.weights, dtype=np.float64)
        if weights.ndim != 2 or weights.shape[1] != n or not (weights >= 0).all():
            raise UsageError(
                f"replicate weights of shape {weights.shape}",
                f"shape (k, {n}), one column per row, without negative values",
                f"Use for example weights=np.ones((1000, {n})).",
            )
        return ResamplingPlan(method="weights", k=len(weights), n=n, given=weights[:, order])
    method = spec.method
    repeats = labels is not None and len(np.unique(labels)) < n
    if method == "auto":
        method = "cluster" if repeats else "row"
    if method == "cluster" and labels is None:
        raise UsageError(
            "a cluster bootstrap of rows without cluster labels",
            "a column whose value is the same for all rows of one run",
            "Use --cluster COLUMN, for example --cluster run_id.",
        )
    if method == "none" or spec.k == 0:
        return ResamplingPlan(method="none", k=0, n=n, seed=spec.seed)
    if method != "cluster" or labels is None:
        return ResamplingPlan(
            method=method, k=spec.k, n=n, seed=spec.seed, weighting=spec.weighting
        )
    _, first, member = np.unique(labels, return_index=True, return_inverse=True)
    # Clusters are numbered by first appearance: renaming them does not change the replicates.
    rank = np.empty(len(first), dtype=np.intp)
    rank[np.argsort(first)] = np.arange(len(first))
    return ResamplingPlan(
        method="cluster",
        k=spec.k,
        n=n,
        seed=spec.seed,
        weighting=spec.weighting,
        member=rank[member],
        cluster=source,
        n_clusters=len(first),
    )

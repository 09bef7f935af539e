"""Checks of the weights of mixtures before laws are fitted to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import DataError, UsageError, did_you_mean
from scalelab.units import plural

SUM_TOLERANCE = 5e-3
"""Deviation of a row's sum of weights from 1 that counts as rounding."""


def check_weights(h: FloatArray, sources: Sequence[str], source: str) -> None:
    """Raise DataError unless weights (n, m) are shares that sum to 1 in each row."""
    if len(sources) < 2:
        raise DataError(
            f"{plural(len(sources), 'source')} in {source}",
            "two or more sources",
            "Name the columns of the weights, for example --map weight_code=w_code,weight_web=w_w.",
        )
    bad = np.flatnonzero(~np.isfinite(h).all(axis=1) | (h < 0).any(axis=1))
    if len(bad):
        raise DataError(
            f"a weight in row {bad[0] + 1} of {source} that is missing or negative "
            f"({plural(len(bad), 'such row')})",
            "weights of 0 or more",
            "Leave these rows out with --where.",
        )
    total = h.sum(axis=1)
    bad = np.flatnonzero(np.abs(total - 1) > SUM_TOLERANCE)
    if len(bad):
        is_percent = np.abs(total / 100 - 1).max() <= SUM_TOLERANCE
        first = sources[0]
        raise DataError(
            f"weights that sum to {total[bad[0]]:.6g} in row {bad[0] + 1} of {source} "
            f"({plural(len(bad), 'such row')})",
            f"weights of all sources ({', '.join(sources)}) that sum to 1",
            f"Divide by 100, for example --map weight_{first}=COLUMN/100."
            if is_percent
            else "Name the weight columns of all sources with --map weight_SOURCE=COLUMN,..",
        )


def check_design(h: FloatArray, sources: Sequence[str], source: str) -> None:
    """Raise DataError for too few mixtures, unused sources or weights that change together."""
    distinct = np.unique(np.round(h, 9), axis=0)
    needed = len(sources) + 2
    if len(distinct) < needed:
        raise DataError(
            f"{plural(len(distinct), 'mixture')} of {plural(len(sources), 'source')} in {source}",
            f"at least {needed} different mixtures",
            f"Train {needed - len(distinct)} more, for example with `scalelab sweep mixture`.",
        )
    unused = [name for j, name in enumerate(sources) if not (h[:, j] > 0).any()]
    if unused:
        raise DataError(
            f"source {unused[0]}, whose weight is 0 in every run",
            "sources that some runs use",
            f"Remove its column, or train runs with {unused[0]}.",
        )
    if np.linalg.matrix_rank(distinct, tol=1e-6) < len(sources):
        _, _, right = np.linalg.svd(distinct)
        tied = [
            name
            for name, part in zip(sources, right[-1], strict=True)
            if abs(part) > 0.05 * np.abs(right[-1]).max()
        ]
        raise DataError(
            f"weights of {', '.join(tied)} that change only together in {source}",
            "mixtures in which each weight changes by itself",
            "Train mixtures with other ratios of these sources, or merge them into one source "
            f"with --map weight_{tied[0]}={'+'.join(tied)}.",
        )


def checked_weights(weights: Mapping[str, float], sources: Sequence[str]) -> FloatArray:
    """Return weights in the order of the sources, missing ones 0; UsageError if they are wrong."""
    for name in weights:
        if name not in sources:
            raise UsageError(
                f"source {name!r}",
                f"one of {', '.join(sources)}",
                did_you_mean(name, sources) or f"Write for example {sources[0]}=1.",
            )
    h = np.array([float(weights.get(name, 0.0)) for name in sources])
    if not np.isfinite(h).all() or (h < 0).any() or abs(h.sum() - 1) > 1e-6:
        raise UsageError(
            f"weights that sum to {h.sum():.6g}",
            "weights of 0 or more that sum to 1",
            f"Divide each weight by {h.sum():.6g}." if h.sum() > 0 else "Give weights above 0.",
        )
    return h

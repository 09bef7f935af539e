r"""Approach 1: the lower envelope of training curves.

At each compute C, the run with the lowest loss gives the best size; a power law through those sizes
gives :math:`N_{opt}(C)`. Every run needs several checkpoints. Points where the smallest or largest
size is best are left out: the optimum may be outside the grid. Checkpoints before the end of a
cosine schedule have too high a loss, so use curves of constant learning rates.

References
----------
Hoffmann et al. 2022, arXiv:2203.15556, section 3.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.fit.intervals import percentile_limits
from scalelab.fit.isoflop import unusable
from scalelab.fit.power_law import PowerLaw
from scalelab.records.types import Curves, Observations
from scalelab.units import plural

GRID_POINTS = 300
FEWEST_POINTS = 30
MOST_ENTRIES = 200_000
"""Maximum number of curves x grid points; many curves get a coarser grid."""
MIN_CHECKPOINTS = 3
MIN_CURVES = 3
REPLICATES = 200


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EnvelopeFit:
    """Approach 1 on one table.

    Attributes
    ----------
    flops : ndarray of shape (m,)
        Compute of the points where the best run is not the smallest or largest.
    n_params, n_tokens, loss_nats : ndarray of shape (m,)
        Size, tokens and loss of the best run there.
    n_curves : int
        Number of training curves.
    n_law, d_law : PowerLaw or None
        Power laws through the points; the intervals of the exponents come from resampled runs.
    reason : str or None
        Why there is no power law.
    """

    flops: FloatArray
    n_params: FloatArray
    n_tokens: FloatArray
    loss_nats: FloatArray
    n_curves: int = 0
    n_law: PowerLaw | None = None
    d_law: PowerLaw | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Curves:
    """Training curves on a common grid of compute; NaN outside the range of a curve."""

    log_c: FloatArray
    loss: FloatArray
    log_d: FloatArray
    log_n: FloatArray


def fit_envelope(observations: Observations, *, level: float = 0.9, seed: int = 0) -> EnvelopeFit:
    """Return approach 1, or the reason why the rows do not allow it.

    Parameters
    ----------
    observations : Observations
        Checkpoints; ``cluster`` names the run of each.
    level : float
        Level of the intervals of the exponents.
    seed : int
        Seed of the resampling of runs.
    """
    none = np.zeros(0)
    empty = EnvelopeFit(flops=none, n_params=none, n_tokens=none, loss_nats=none)
    curves = _curves(observations)
    if isinstance(curves, str):
        return replace(empty, reason=curves)
    best = _best(curves.loss, curves.log_n)
    there = best >= 0
    if len(np.unique(curves.log_n[best[there]])) < 2:
        return replace(
            empty,
            reason="fewer than 2 sizes between the smallest and the largest are ever the best",
        )
    points = (np.flatnonzero(there), best[there])
    n_slope, n_intercept = np.polyfit(curves.log_c[there], curves.log_n[best[there]], 1)
    log_d = curves.log_d[points[1], points[0]]
    d_slope, d_intercept = np.polyfit(curves.log_c[there], log_d, 1)
    draws = _replicates(curves, np.random.default_rng(seed))
    n_low, n_high = _limits(draws[:, 0], level, float(n_slope))
    d_low, d_high = _limits(draws[:, 1], level, float(d_slope))
    return EnvelopeFit(
        flops=np.exp(curves.log_c[there]),
        n_params=np.exp(curves.log_n[best[there]]),
        n_tokens=np.exp(log_d),
        loss_nats=curves.loss[points[1], points[0]],
        n_curves=len(curves.log_n),
        n_law=PowerLaw(
            exponent=float(n_slope), log_coefficient=float(n_intercept), low=n_low, high=n_high
        ),
        d_law=PowerLaw(
            exponent=float(d_slope), log_coefficient=float(d_intercept), low=d_low, high=d_high
        ),
    )


def along_curves(rows: Observations, curves: Curves | None) -> Observations:
    """Return the points of the rows' training curves.

    Parameters
    ----------
    rows : Observations
        Runs; ``cluster`` is the name of the run.
    curves : Curves or None
        Training curves. Curves of other runs are ignored.

    Returns
    -------
    Observations
        N of the run, C in proportion to the tokens; the rows themselves if there are no curves.
    """
    if curves is None or rows.cluster is None:
        return rows
    names, first = np.unique(rows.cluster, return_index=True)
    place = np.searchsorted(names, curves.run_id).clip(max=len(names) - 1)
    own = names[place] == curves.run_id
    if not own.any():
        return rows
    run = first[place[own]]
    n_tokens = curves.n_tokens[own]
    return replace(
        rows.take(run),
        n_tokens=n_tokens,
        loss_nats=curves.loss_nats[own],
        flops=rows.flops[run] * n_tokens / rows.n_tokens[run],
    )


def _curves(observations: Observations) -> _Curves | str:
    """Return the curves, or why there are none."""
    reason = unusable(observations)
    if reason is not None:
        return reason
    if observations.cluster is None:
        return "no training curves: no column names the run of each row (--cluster)"
    runs = []
    _, owner = np.unique(observations.cluster, return_inverse=True)
    order = np.lexsort((observations.flops, owner))
    for rows in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
        sizes = observations.n_params[rows]
        if len(rows) >= MIN_CHECKPOINTS and np.ptp(sizes) <= 1e-9 * sizes[0]:
            runs.append(rows)
    if len(runs) < MIN_CURVES:
        return (
            f"{plural(len(runs), 'run')} with {MIN_CHECKPOINTS} or more checkpoints; approach 1 "
            f"needs {MIN_CURVES}"
        )
    log_c = np.log(observations.flops)
    grid = np.linspace(
        min(log_c[rows].min() for rows in runs),
        max(log_c[rows].max() for rows in runs),
        int(np.clip(MOST_ENTRIES // len(runs), FEWEST_POINTS, GRID_POINTS)),
    )

    def on_grid(values: FloatArray, rows: NDArray[np.intp]) -> FloatArray:
        return np.interp(grid, log_c[rows], values[rows], left=np.nan, right=np.nan)

    return _Curves(
        log_c=grid,
        loss=np.array([on_grid(observations.loss_nats, rows) for rows in runs]),
        log_d=np.array([on_grid(np.log(observations.n_tokens), rows) for rows in runs]),
        log_n=np.log([observations.n_params[rows[0]] for rows in runs]),
    )


def _best(loss: FloatArray, log_n: FloatArray) -> NDArray[np.intp]:
    """Return the best curve at each grid point, -1 if its size is the smallest or largest."""
    there = np.isfinite(loss)
    best: NDArray[np.intp] = np.where(there, loss, np.inf).argmin(axis=0)
    size = log_n[best]
    smallest = np.where(there, log_n[:, None], np.inf).min(axis=0)
    largest = np.where(there, log_n[:, None], -np.inf).max(axis=0)
    best[~((size > smallest) & (size < largest))] = -1
    return best


def _replicates(curves: _Curves, generator: np.random.Generator) -> FloatArray:
    """Return both exponents of each replicate of resampled runs that has them, shape (k, 2)."""
    count = len(curves.log_n)
    draws = []
    for _ in range(REPLICATES):
        chosen = np.unique(generator.integers(count, size=count))
        best = _best(curves.loss[chosen], curves.log_n[chosen])
        at = np.flatnonzero(best >= 0)
        who = chosen[best[at]]
        if len(np.unique(curves.log_n[who])) < 2:
            continue
        log_c = curves.log_c[at] - curves.log_c[at].mean()
        both = np.column_stack([curves.log_n[who], curves.log_d[who, at]])
        draws.append(log_c @ both / (log_c @ log_c))
    return np.array(draws).reshape(-1, 2)


def _limits(draws: FloatArray, level: float, value: float) -> tuple[float | None, float | None]:
    if len(draws) < REPLICATES / 2:
        return None, None
    low, high = percentile_limits(draws, level, value)
    return (low, high) if math.isfinite(low) else (None, None)

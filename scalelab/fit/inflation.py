"""Extrapolation inflation: errors on held-out larger runs relative to their prediction intervals.

An interval from replicates and residuals assumes that the form is right. The residuals cannot test
this beyond the largest run. This module tests it on the rows at hand: fit the smaller runs, predict
the larger ones, and compare the errors with their prediction intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.fit.bootstrap import ResamplingPlan
from scalelab.fit.efficient import deviates, fit_efficient, newton_steps, weight_shape
from scalelab.fit.few_rows import SPARE_ROWS, draw_few
from scalelab.fit.newton import Box, minimise
from scalelab.fit.noise import compute_of, local_noise
from scalelab.fit.outcome import Refits
from scalelab.fit.penalty import Penalty
from scalelab.fit.powered_sum import row_model_of
from scalelab.fit.replicates import Optimum, refit
from scalelab.fit.row_model import Rows
from scalelab.theory.laws.base import Law

CUTS = (0.5, 0.6, 0.7, 0.8)
"""Quantiles of compute; at each, the runs below are fitted and those above predicted."""
LEVEL = 0.9
MOST_ROWS = 300
"""Maximum number of rows used."""
N_REPLICATES = 64
MIN_ROWS_AHEAD = 3
FEW_DRAWS, FEW_STEPS = 400, 40
"""Draws and steps of the sampler for few rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inflation:
    """The extrapolation inflation of a fit, computed when it is first asked for.

    It costs as much as the fit itself, and most questions are answered without it.

    Attributes
    ----------
    law : type[Law]
        The form.
    columns : Mapping[str, ndarray of shape (n,)]
        The design.
    rows : Rows
        Targets and weights.
    theta : ndarray of shape (p,)
        Optimum of all rows, the starting point of the smaller fits.
    penalty, box
        As in the full fit.
    refits : {"objective", "efficient", "posterior"}
        How the draws of the full fit were made.
    """

    law: type[Law]
    columns: Mapping[str, FloatArray]
    rows: Rows
    theta: FloatArray
    penalty: Penalty
    box: Box
    refits: Refits

    def __call__(self) -> float:
        """Return the factor, at least 1, by which errors on larger runs exceed their intervals.

        Median over the cuts of the 90 % quantile of error over half-width; 1 with too few rows.
        """
        return self._factor

    @cached_property
    def _factor(self) -> float:
        return _inflation(
            self.law, self.columns, self.rows, self.theta, self.penalty, self.box, self.refits
        )


def _inflation(
    law: type[Law],
    columns: Mapping[str, FloatArray],
    rows: Rows,
    theta: FloatArray,
    penalty: Penalty,
    box: Box,
    refits: Refits,
) -> float:
    compute = compute_of(columns)
    if compute is None:
        return 1.0
    if rows.n > MOST_ROWS:
        keep = np.linspace(0, rows.n - 1, MOST_ROWS).astype(int)
        columns = {name: values[keep] for name, values in columns.items()}
        rows, compute = _part(rows, keep), compute[keep]
    factors = []
    for cut in np.quantile(compute, CUTS):
        behind = compute <= cut
        if behind.sum() < box.free.sum() + SPARE_ROWS or (~behind).sum() < MIN_ROWS_AHEAD:
            continue
        factor = _ratio(law, columns, rows, theta, penalty, box, compute, behind, refits)
        if np.isfinite(factor):
            factors.append(factor)
    return max(1.0, float(np.median(factors))) if factors else 1.0


def _ratio(
    law: type[Law],
    columns: Mapping[str, FloatArray],
    rows: Rows,
    theta: FloatArray,
    penalty: Penalty,
    box: Box,
    compute: FloatArray,
    behind: NDArray[np.bool_],
    refits: Refits,
) -> float:
    """Return the quantile of error over half-width for one cut."""
    is_centred = bool(box.free.all())
    near = row_model_of(law, _pick(columns, behind), is_centred=is_centred)
    far = row_model_of(law, _pick(columns, ~behind), is_centred=is_centred)
    known, ahead = _part(rows, behind), _part(rows, ~behind)
    end = minimise(near, near.eta(theta[None]), known, penalty, box, max_iterations=60)
    best = end.eta[0]
    optimum = Optimum(model=near, eta=best, rows=known, penalty=penalty, box=box)
    n, p = known.n, int(box.free.sum())
    errors = -near.residuals(best[None], known)[0] * (n / max(n - p, 1)) ** 0.5
    noise = local_noise(errors, compute[behind], compute[~behind])
    draws = None
    if refits == "efficient":
        draws = _efficient_draws(optimum, compute[behind])
    elif refits == "posterior":
        few = draw_few(law, optimum, n, None, FEW_DRAWS, 0, steps=FEW_STEPS)
        if few is not None:
            draws, noise = few.eta, np.tile(few.noise, (ahead.n, 1))
    if draws is None:
        draws = refit(optimum, ResamplingPlan(method="row", k=N_REPLICATES, n=n)).eta
    error = far.residuals(far.eta(near.theta(best[None])), ahead)[0]
    with np.errstate(all="ignore"):
        draws = far.predicted(far.eta(near.theta(draws)))
        draws = np.log(draws) if rows.is_log else draws
    draws = draws[np.isfinite(draws).all(axis=1)]
    if not len(draws):
        return float("nan")
    # Rows first: each quantile is then taken over contiguous memory.
    shift = (draws - (error + ahead.compared)).T
    new = (shift[:, :, None] + noise[:, None, :]).reshape(ahead.n, -1)
    low, high = np.quantile(new, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1, overwrite_input=True)
    half = np.maximum(np.where(error > 0, -low, high), 1e-300)
    return float(np.quantile(np.abs(error) / half, LEVEL))


def _efficient_draws(optimum: Optimum, compute: FloatArray) -> FloatArray | None:
    """Return efficient replicates, shape (k, p); None where a check fails."""
    found = fit_efficient(optimum, compute)
    if found is None:
        return None
    shape = weight_shape(found)
    replicates = ResamplingPlan(method="row", k=N_REPLICATES, n=found.rows.n, shape=shape)
    steps = newton_steps(found, replicates)
    return None if steps is None else deviates(found, steps, replicates.seed)


def _pick(columns: Mapping[str, FloatArray], mask: NDArray[np.bool_]) -> dict[str, FloatArray]:
    return {name: values[mask] for name, values in columns.items()}


def _part(rows: Rows, which: NDArray[np.bool_] | NDArray[np.intp]) -> Rows:
    return Rows(rows.target[which], rows.weight[which], rows.residual)

"""The forms that describe a table, at their modes, with the outliers among its rows.

A form that no loss could follow is left out: one of absurd size, or one that rises with more
parameters or more data beyond the rows, as a flexible form can when the rows do not determine it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import NotIdentifiedError
from scalelab.forecast.bent import bent_priors
from scalelab.forecast.modes import (
    FormPosterior,
    Hyperparameters,
    fit_form,
    random_starts,
    row_grids,
)
from scalelab.forecast.points import Points
from scalelab.forecast.priors import Prior, priors_of
from scalelab.forecast.whitened import student

LARGEST_LOG = 13.0
"""Largest log loss, relative to the median, of a form that is taken for a number."""
BEYOND, MOST_RISE = (10.0,), 0.05
"""Factors beyond the largest N and D, over which the log loss of a form may rise by this much."""
N_REWEIGHTED, ROWS_PER_TERM, OUTLIER = 20, 2, 10.0
"""Steps of the robust quadratic, fewest rows for each of its terms, and the residual, in robust
standard deviations, that makes a row a gross outlier."""
SEED = 0

Line = tuple[FloatArray, FloatArray]


def describing_forms(
    points: Points,
    y: FloatArray,
    near: Sequence[FormPosterior] = (),
    *,
    is_only_count: bool = True,
) -> tuple[list[FormPosterior], list[Line], FloatArray]:
    """Return the forms, their values and slopes at the rows, and the factors of the noise variance.

    Parameters
    ----------
    points : Points
        The rows, m of them.
    y : ndarray of shape (m,)
        Their log losses, relative to the median.
    near : sequence of FormPosterior
        Forms at the modes of a table that has these rows and others: the modes are searched from
        there, and from the centre of the prior, since Farseer's form can have several.
    is_only_count : bool
        Whether the rows have one count of N.

    Raises
    ------
    NotIdentifiedError
        If no form describes the losses.
    """
    found = _at_modes(points, y, _outliers(points, y), near, is_only_count)
    kept = [each for each in found if _falls(each[0].prior, each[0].z, points.columns)]
    if not kept:
        raise NotIdentifiedError(
            "runs whose losses no form can describe",
            "losses that fall with N and D",
            "Check the units of loss, N and D, or use --forecaster law.",
        )
    residuals = [y - value for _, (value, _) in kept]
    widened = student(min(residuals, key=lambda each: float(np.median(np.abs(each)))), points)
    return [form for form, _ in kept], [line for _, line in kept], widened


def _outliers(points: Points, y: FloatArray) -> FloatArray:
    """Return a factor of each row's noise variance: above 1 for gross outliers, shape (m,).

    They are rows far from the quadratic in log N and log D of least absolute deviations. Without
    this, one diverged run can bend every form.
    """
    x = points.features[:, :2] - points.features[:, :2].mean(axis=0)
    terms = np.column_stack([np.ones(len(y)), x, x**2, x.prod(axis=1)])
    if len(y) < ROWS_PER_TERM * terms.shape[1]:
        return np.ones(len(y))
    residual = y
    for _ in range(N_REWEIGHTED):
        root = 1 / np.sqrt(np.maximum(np.abs(residual), 1e-6))
        best = np.linalg.lstsq(terms * root[:, None], y * root, rcond=None)[0]
        residual = y - terms @ best
    relative = residual / max(1.4826 * float(np.median(np.abs(residual))), 1e-6)
    return np.where(np.abs(relative) > OUTLIER, relative**2, 1.0)


def _at_modes(
    points: Points,
    y: FloatArray,
    widened: FloatArray,
    near: Sequence[FormPosterior],
    is_only_count: bool,
) -> list[tuple[FormPosterior, Line]]:
    """Return the forms at their modes with their lines, without those of absurd size."""
    found = []
    grids = row_grids(points, widened)
    known = {form.prior.law: form for form in near}
    bent = bent_priors(points.columns, is_only_count=is_only_count)
    for prior in (*priors_of(points.columns), *bent):
        if prior.law in known:
            starts = [prior.standardised(known[prior.law].theta), np.zeros(len(prior.mean))]
        else:
            starts = random_starts(prior, np.random.default_rng(SEED))
        form = fit_form(prior, points, y, starts, Hyperparameters(), grids)
        line = prior.log_loss(form.z, points.columns)
        if np.abs(line[0]).max() < LARGEST_LOG:
            found.append((form, line))
    return found


def _falls(prior: Prior, z: FloatArray, columns: Mapping[str, FloatArray]) -> bool:
    """Return whether the loss of a form never rises by more than `MOST_RISE` beyond the rows.

    It is asked at the largest N and D and at 10 and 100 times these, on data that do not repeat.
    """
    far = (1.0, *BEYOND)
    N, D = (np.outer(columns[name].max(), far).ravel() for name in ("n_params", "n_tokens"))
    grid = {"n_params": np.repeat(N, len(far)), "n_tokens": np.tile(D, len(far))}
    if "unique_tokens" in columns:
        grid["unique_tokens"] = grid["n_tokens"]
    value = prior.log_loss(z, grid)[0].reshape(len(far), len(far))
    return all(float(np.diff(value, axis=axis).max()) < MOST_RISE for axis in (0, 1))

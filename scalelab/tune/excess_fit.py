r"""Robust fit of the excess loss (`scalelab.tune.excess_loss`) to the runs of all cells at once.

Each cell has a free offset, which is profiled out. The residual of a run with excess q has the
scale :math:`\alpha + \beta q`: noise of runs at the optimum, plus a misfit of the shape that grows
with q. Both are estimated from the residuals, so that no cutoff on q is needed. Beyond 1.345 scales
a residual counts linearly (Huber), which limits the influence of diverged runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import NotIdentifiedError
from scalelab.tune.excess_loss import Axes, excess
from scalelab.tune.runs_table import FAR_FROM_BEST, TunedRuns, log_excess
from scalelab.units import plural

HUBER = 1.345
"""Residual, in scales, up to which the loss is quadratic: 95 % efficient for Gaussian noise."""

MEAN_TO_SD = 1.2533
"""Ratio of standard deviation to mean absolute deviation of a Gaussian."""

SMALLEST_NOISE = 1e-4
SMALLEST_VARIATION = 0.05
"""Standard deviation of log N, log D, log lr or log batch below which it counts as constant."""

MAX_STEPS = 200
FIRST_STEPS = 8
STEP_TOLERANCE = 1e-5
REFIT_TOLERANCE = 1e-3
"""Step size at which a replicate has converged: below a tenth of the replicates' deviation."""

BEST_SHARE = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Means of log N, log D, log lr and log batch, subtracted before the fit."""

    log_n: float
    log_d: float
    log_lr: float
    log_batch: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidualScale:
    """Scale of a residual, ``noise + misfit * q``, in log loss."""

    noise: float
    misfit: float

    def at(self, q: FloatArray) -> FloatArray:
        """Return the scale for these values of excess log loss."""
        return self.noise + self.misfit * q


class ExcessFit:
    """The fit of the excess loss to some runs.

    Raises
    ------
    NotIdentifiedError
        If the runs cannot determine a law: one cell, constant rates, or too few runs.
    """

    def __init__(self, runs: TunedRuns) -> None:
        cell = runs.cells()
        far = log_excess(runs.loss, cell) > FAR_FROM_BEST
        single = np.bincount(cell)[cell] - np.bincount(cell, far)[cell] < 2
        self.n_far = int(far.sum())
        self.n_single = len(np.unique(cell[single]))
        kept = np.flatnonzero(~(far | single))
        kept = kept[np.argsort(cell[kept], kind="stable")]
        self.runs = runs = runs.take(kept)
        starts = np.unique(cell[kept], return_index=True)[1]
        self.starts, self.n_cells = starts, len(starts)
        self.sizes = np.diff(starts, append=len(kept))
        self.cell = np.repeat(np.arange(self.n_cells), self.sizes)
        if self.n_cells < 2:
            raise NotIdentifiedError(
                f"{plural(self.n_cells, 'cell')} (N, D) with two or more runs",
                "at least 3 cells that differ in N and in D, each with several rates and batches",
                "The law is not identified: add runs at other N and D.",
            )
        log_n, log_d = np.log(runs.n_params), np.log(runs.n_tokens)
        x, y = np.log(runs.lr), np.log(runs.batch_tokens)
        self.origin = Origin(
            log_n=float(log_n.mean()),
            log_d=float(log_d.mean()),
            log_lr=float(x.mean()),
            log_batch=float(y.mean()),
        )
        self.x, self.y = x - x.mean(), y - y.mean()
        self.response = log_excess(runs.loss, self.cell)
        self.cell_place = np.stack(
            [self._cell_mean(log_n - log_n.mean()), self._cell_mean(log_d - log_d.mean())], axis=1
        )
        if self._variation_within(self.x) < SMALLEST_VARIATION:
            raise NotIdentifiedError(
                f"learning rates that do not differ within cells ({plural(len(runs), 'run')})",
                "several learning rates at each N and D",
                "The law is not identified: add runs at other learning rates.",
            )
        self.axes = Axes(
            basis=_directions(self.cell_place),
            has_batch=self._variation_within(self.y) >= SMALLEST_VARIATION,
        )
        self.features = self.axes.features(log_n - log_n.mean(), log_d - log_d.mean())
        n_unknown = self.axes.n_parameters - len(self.axes.shape_names)
        if self.axes.basis.shape[1] == 0 or len(runs) < self.n_cells + n_unknown:
            raise NotIdentifiedError(
                f"{plural(len(runs), 'run')} in {plural(self.n_cells, 'cell')} "
                f"for a law of {n_unknown} constants",
                f"cells that differ in N or D, and at least {self.n_cells + n_unknown} runs",
                "The law is not identified: add runs at other N, D, rates or batches.",
            )

    def fit(self) -> tuple[FloatArray, ResidualScale, bool]:
        """Return the parameters, the residual scale, and whether the fit converged."""
        return self._solve(self._start(), np.ones(len(self.x)), None)

    def refit(self, theta: FloatArray, scale: ResidualScale, weights: FloatArray) -> FloatArray:
        """Return the parameters for other weights of the runs, starting from a fit."""
        return self._solve(theta, weights, scale)[0]

    def centres(self, theta: FloatArray) -> tuple[FloatArray, FloatArray | None]:
        """Return the best log lr and log batch of each cell, shape (n_cells,)."""
        m = self.axes.n_centre
        features = self.axes.features(self.cell_place[:, 0], self.cell_place[:, 1])
        lr = self.origin.log_lr + features @ theta[:m]
        if not self.axes.has_batch:
            return lr, None
        return lr, self.origin.log_batch + features @ theta[m : 2 * m]

    def _solve(
        self, theta: FloatArray, weights: FloatArray, scale: ResidualScale | None
    ) -> tuple[FloatArray, ResidualScale, bool]:
        """Take damped, reweighted Gauss-Newton steps; estimate the scale unless given."""
        prior_mean, prior_precision = self.axes.prior()
        damping = 1e-2
        tolerance = STEP_TOLERANCE if scale is None else REFIT_TOLERANCE
        q, jacobian = excess(theta, self.axes, self.features, self.x, self.y)
        sigma = (scale or ResidualScale(noise=2e-3, misfit=0.2)).at(q)
        for step in range(MAX_STEPS):
            residual, row_weights = self._offset_free(self.response - q, sigma, weights)
            current = scale or self._estimate_scale(q, residual, weights)
            # Geometric mean of old and new scale: avoids oscillation of weights and parameters.
            sigma = np.sqrt(sigma * current.at(q))
            residual, row_weights = self._offset_free(self.response - q, sigma, weights)
            design = self._demean(jacobian, row_weights)
            pull = prior_precision * (theta - prior_mean)
            gradient = design.T @ (row_weights * residual) - pull
            normal = (design * row_weights[:, None]).T @ design + np.diag(prior_precision)
            before = self._objective(q, theta, row_weights)
            for _ in range(20):
                damped = normal + damping * np.diag(np.diag(normal) + 1e-12)
                move = np.linalg.lstsq(damped, gradient, rcond=None)[0]
                tried = theta + move
                q, jacobian = excess(tried, self.axes, self.features, self.x, self.y)
                if self._objective(q, tried, row_weights) <= before:
                    damping = max(damping / 5, 1e-9)
                    theta = tried
                    break
                damping *= 5
            else:
                q, jacobian = excess(theta, self.axes, self.features, self.x, self.y)
                return theta, current, True
            is_settled = scale is not None or step >= FIRST_STEPS
            if is_settled and np.max(np.abs(move)) < tolerance:
                return theta, current, True
        return theta, current, False

    def _objective(self, q: FloatArray, theta: FloatArray, row_weights: FloatArray) -> float:
        residual = self._demean(self.response - q, row_weights)
        mean, precision = self.axes.prior()
        return float(np.sum(row_weights * residual**2) + np.sum(precision * (theta - mean) ** 2))

    def _offset_free(
        self, raw: FloatArray, sigma: FloatArray, weights: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return residuals from each cell's robust offset, and the weights of the runs."""
        row_weights = weights / sigma**2
        for _ in range(3):
            residual = self._demean(raw, row_weights)
            far = np.maximum(np.abs(residual) / (HUBER * sigma), 1.0)
            row_weights = weights / (sigma**2 * far)
        return self._demean(raw, row_weights), row_weights

    def _demean(self, values: FloatArray, row_weights: FloatArray) -> FloatArray:
        """Return values minus their weighted mean over the cell, per column."""
        total = np.add.reduceat(row_weights, self.starts)
        total = np.where(total > 0, total, 1.0)
        row_weights = row_weights if values.ndim == 1 else row_weights[:, None]
        total = total if values.ndim == 1 else total[:, None]
        means = np.add.reduceat(row_weights * values, self.starts) / total
        return np.asarray(values - np.repeat(means, self.sizes, axis=0))

    def _estimate_scale(
        self, q: FloatArray, residual: FloatArray, weights: FloatArray
    ) -> ResidualScale:
        """Return noise and misfit from a reweighted regression of |residual| on q."""
        lost = self.n_cells + self.axes.n_parameters - len(self.axes.shape_names)
        freedom = np.sqrt(len(q) / max(len(q) - lost, 1))
        size = np.abs(residual) * MEAN_TO_SD * freedom
        design = np.stack([np.ones_like(q), q], axis=1)
        deviation = SMALLEST_NOISE + size
        noise, misfit = SMALLEST_NOISE, 0.0
        for _ in range(6):
            root = np.sqrt(weights) / deviation
            noise, misfit = np.linalg.lstsq(design * root[:, None], size * root, rcond=None)[0]
            if misfit < 0:
                noise, misfit = float(np.average(size, weights=root**2)), 0.0
            noise = max(noise, SMALLEST_NOISE)
            deviation = noise + misfit * q
        return ResidualScale(noise=float(noise), misfit=float(misfit))

    def _start(self) -> FloatArray:
        """Return optima regressed on the best quarter of each cell, and the prior shape."""
        best = np.zeros(len(self.x), bool)
        for start, size in zip(self.starts, self.sizes, strict=True):
            order = np.argsort(self.response[start : start + size])
            best[start + order[: max(1, round(BEST_SHARE * size))]] = True
        m = self.axes.n_centre
        theta = self.axes.prior()[0].copy()
        theta[:m] = np.linalg.lstsq(self.features[best], self.x[best], rcond=None)[0]
        if self.axes.has_batch:
            theta[m : 2 * m] = np.linalg.lstsq(self.features[best], self.y[best], rcond=None)[0]
        return theta

    def _cell_mean(self, values: FloatArray) -> FloatArray:
        return np.asarray(np.add.reduceat(values, self.starts) / self.sizes)

    def _variation_within(self, values: FloatArray) -> float:
        return float(np.std(values - self._cell_mean(values)[self.cell]))


def _directions(cell_place: FloatArray) -> FloatArray:
    """Return the directions in (log N, log D) in which the cells vary, shape (2, rank)."""
    centred = cell_place - cell_place.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    rank = int(np.sum(singular / np.sqrt(len(cell_place)) > SMALLEST_VARIATION))
    return np.eye(2) if rank == 2 else np.asarray(directions[:rank].T)

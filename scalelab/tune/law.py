"""Power laws of the best learning rate and batch, lr* = k N^p D^q, with intervals.

The laws are fitted to the excess loss of all runs (`scalelab.tune.excess_fit`), not to the best run
of each cell: with noise, the best run can be anywhere near the flat minimum. Intervals come from a
bootstrap over cells, which includes the noise of runs and the scatter of cells around the law. With
few cells the bootstrap resamples runs within cells and includes only the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from scalelab.arrays import FloatArray
from scalelab.errors import NotIdentifiedError
from scalelab.fit.outcome import FitWarning
from scalelab.tune.excess_fit import SMALLEST_VARIATION, ExcessFit, Origin, ResidualScale
from scalelab.tune.excess_loss import Axes
from scalelab.tune.runs_table import FAR_FROM_BEST, TunedRuns
from scalelab.units import format_quantity, plural

FEW_CELLS = 8
"""Fewer cells are not resampled: replicates would fit three constants to two or three cells."""

LARGEST_MOVE = math.log(1e4)
"""Replicates that move a coefficient of an optimum further have failed and are dropped."""

OFF_LINE = 0.15
"""Distance in (log N, log D) up to which a model counts as on the line of collinear cells."""

DEFAULT_REPLICATES = 300
DEFAULT_LEVEL = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A value with the limits of its interval; the limits are None without replicates."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class HyperparameterLaw:
    """The law k N^p D^q of one hyperparameter."""

    k: Estimate
    p: Estimate
    q: Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningLaw:
    """Laws of the best learning rate and batch, fitted.

    Attributes
    ----------
    theta : ndarray of float, shape (axes.n_parameters,)
        Parameters of the excess loss.
    replicates : ndarray of float, shape (k, axes.n_parameters)
        Parameters of each bootstrap replicate.
    axes : Axes
    origin : Origin
    scale : ResidualScale
    cell_place : ndarray of float, shape (n_cells, 2)
        Centred log N and log D of the cells.
    n_rows, n_cells : int
        Number of runs and cells in the fit.
    widening : float
        Factor on the deviation of replicates that corrects for few cells.
    level : float
        Confidence level of the intervals.
    bootstrap : str
        ``cells`` or ``runs``: what was resampled.
    param_convention : str
        How N is counted.
    warnings : tuple of FitWarning
    """

    theta: FloatArray
    replicates: FloatArray
    axes: Axes
    origin: Origin
    scale: ResidualScale
    cell_place: FloatArray
    n_rows: int
    n_cells: int
    widening: float
    level: float
    bootstrap: str
    param_convention: str
    warnings: tuple[FitWarning, ...]

    def lr(self) -> HyperparameterLaw:
        """Return the law of the learning rate."""
        return self._law(0, self.origin.log_lr)

    def batch_tokens(self) -> HyperparameterLaw | None:
        """Return the law of the batch in tokens; None if batches do not differ within cells."""
        return self._law(1, self.origin.log_batch) if self.axes.has_batch else None

    def largest_cell(self) -> tuple[float, float]:
        """Return N and D of the cell of most compute."""
        log_n, log_d = self.cell_place[self.cell_place.sum(axis=1).argmax()]
        return math.exp(log_n + self.origin.log_n), math.exp(log_d + self.origin.log_d)

    def best(self, n_params: float, n_tokens: float) -> tuple[Estimate, Estimate | None]:
        """Return the best learning rate and batch (tokens) of a model, with intervals.

        Raises
        ------
        NotIdentifiedError
            If the cells are on one line in (log N, log D) and the model is not.
        """
        place = np.array([math.log(n_params), math.log(n_tokens)])
        place -= (self.origin.log_n, self.origin.log_d)
        self._check_on_line(place)
        row = self.axes.features(place[:1], place[1:])[0]
        lr = self._interval(0, row, self.origin.log_lr, np.exp)
        if not self.axes.has_batch:
            return lr, None
        return lr, self._interval(1, row, self.origin.log_batch, np.exp)

    def extrapolation_warnings(self, n_params: float, n_tokens: float) -> list[FitWarning]:
        """Return a warning for N and for D if it is outside the range of the cells."""
        found = []
        low, high = self.cell_place.min(axis=0), self.cell_place.max(axis=0)
        for i, (name, value, mean) in enumerate(
            (("N", n_params, self.origin.log_n), ("D", n_tokens, self.origin.log_d))
        ):
            beyond = max(math.log(value) - mean - high[i], low[i] - math.log(value) + mean)
            if beyond > SMALLEST_VARIATION:
                ends = [format_quantity(math.exp(end + mean)) for end in (low[i], high[i])]
                found.append(
                    FitWarning(
                        code="extrapolation",
                        message=f"Extrapolation: {name} = {format_quantity(value)} is outside the "
                        f"range of the runs ({ends[0]} to {ends[1]}) by a factor of "
                        f"{math.exp(beyond):.3g}.",
                    )
                )
        return found

    def _law(self, which: int, log_mean: float) -> HyperparameterLaw:
        """Return k, p, q; if the cells are on one line, the smallest (p, q), without limits."""
        basis = self.axes.basis
        origin = np.array([self.origin.log_n, self.origin.log_d])
        k = self._interval(which, np.append(1.0, -(origin @ basis)), log_mean, np.exp)
        p, q = (self._interval(which, np.append(0.0, row), 0.0, float) for row in basis)
        if basis.shape[1] < 2:
            k, p, q = (Estimate(value=found.value, low=None, high=None) for found in (k, p, q))
        return HyperparameterLaw(k=k, p=p, q=q)

    def _interval(
        self, which: int, row: FloatArray, mean: float, change: Callable[[float], float]
    ) -> Estimate:
        """Return value and limits of a row of features, ``mean`` added and ``change`` applied."""
        m = self.axes.n_centre
        part = slice(which * m, (which + 1) * m)
        value, replicates = float(self.theta[part] @ row), self.replicates[:, part] @ row
        if not len(replicates):
            return Estimate(value=float(change(value + mean)), low=None, high=None)
        tail = (1 - self.level) / 2
        deviation = np.quantile(replicates - value, [tail, 1 - tail]) * self.widening
        low, high = np.minimum(deviation[0], 0.0), np.maximum(deviation[1], 0.0)
        ends = (value, value + low, value + high)
        centre, low, high = (float(change(min(end + mean, 700.0))) for end in ends)
        return Estimate(value=centre, low=low, high=high)

    def _check_on_line(self, place: FloatArray) -> None:
        if self.axes.basis.shape[1] == 2:
            return
        middle = self.cell_place.mean(axis=0)
        across = np.array([-self.axes.basis[1, 0], self.axes.basis[0, 0]])
        distance = abs(float((place - middle) @ across))
        if distance > OFF_LINE:
            raise NotIdentifiedError(
                "a model off the line in (log N, log D) of all runs by a factor of "
                f"{math.exp(distance):.3g}",
                "a model on that line, or runs that vary N and D separately",
                "The law is not identified there: add runs with another D at the same N.",
            )


def fit_law(
    runs: TunedRuns,
    *,
    level: float = DEFAULT_LEVEL,
    n_replicates: int = DEFAULT_REPLICATES,
    seed: int = 0,
) -> TuningLaw:
    """Fit the laws of the best learning rate and batch to runs.

    Raises
    ------
    NotIdentifiedError
        If the runs cannot determine a law.
    """
    fit = ExcessFit(runs)
    theta, scale, is_converged = fit.fit()
    by_cells = fit.n_cells >= FEW_CELLS
    replicates = _replicates(fit, theta, scale, n_replicates, seed, by_cells=by_cells)
    return TuningLaw(
        theta=theta,
        replicates=replicates,
        axes=fit.axes,
        origin=fit.origin,
        scale=scale,
        cell_place=fit.cell_place,
        n_rows=len(fit.runs),
        n_cells=fit.n_cells,
        widening=_widening(fit, level) if by_cells else 1.0,
        level=level,
        bootstrap="cells" if by_cells else "runs",
        param_convention=runs.param_convention,
        warnings=tuple(
            _warnings(fit, theta, is_converged=is_converged, n_diverged=runs.n_diverged)
        ),
    )


def _replicates(
    fit: ExcessFit, theta: FloatArray, scale: ResidualScale, k: int, seed: int, *, by_cells: bool
) -> FloatArray:
    """Return the parameters of k resampled tables, shape (at most k, n_parameters)."""
    random = np.random.default_rng(seed)
    found = []
    n_centres = (2 if fit.axes.has_batch else 1) * fit.axes.n_centre
    for _ in range(k):
        if by_cells:
            drawn = random.integers(fit.n_cells, size=fit.n_cells)
            weights = np.bincount(drawn, minlength=fit.n_cells)[fit.cell].astype(float)
        else:
            counts = [random.multinomial(size, np.full(size, 1 / size)) for size in fit.sizes]
            weights = np.concatenate(counts).astype(float)
        replicate = fit.refit(theta, scale, weights)
        if np.all(np.abs(replicate - theta)[:n_centres] < LARGEST_MOVE):
            found.append(replicate)
    return np.array(found).reshape(len(found), len(theta))


def _widening(fit: ExcessFit, level: float) -> float:
    """Return the factor from a bootstrap of few cells to Student's t interval."""
    freedom = fit.n_cells - fit.axes.n_centre
    tail = (1 + level) / 2
    return float(math.sqrt(fit.n_cells / freedom) * stats.t.ppf(tail, freedom)) / float(
        stats.norm.ppf(tail)
    )


def _warnings(
    fit: ExcessFit, theta: FloatArray, *, is_converged: bool, n_diverged: int
) -> list[FitWarning]:
    found = []

    def warn(code: str, message: str) -> None:
        found.append(FitWarning(code=code, message=message))

    if n_diverged:
        left_out = plural(n_diverged, "run")
        warn("diverged_rows", f"Left out {left_out} without a finite loss above zero.")
    if fit.n_far:
        share, left_out = math.expm1(FAR_FROM_BEST), plural(fit.n_far, "run")
        warn("far_rows", f"Left out {left_out} with a loss over {share:.0%} above the cell's best.")
    if fit.n_single:
        left_out = plural(fit.n_single, "cell")
        warn("single_run_cells", f"Left out {left_out} (N, D) with fewer than two runs.")
    if not is_converged:
        warn("not_converged", "The fit did not converge; its values and intervals may be wrong.")
    if fit.n_cells < FEW_CELLS:
        warn(
            "few_cells",
            f"{plural(fit.n_cells, 'cell')} (N, D): the intervals include the noise of runs but "
            "not the scatter of cells around the law, so they may be too narrow. "
            f"Add cells: {FEW_CELLS} or more are needed.",
        )
    if fit.axes.basis.shape[1] < 2:
        slope = fit.axes.basis[:, 0]
        warn(
            "collinear",
            "All cells are on one line in (log N, log D), along "
            f"({slope[0]:.3g}, {slope[1]:.3g}): the exponents of N and D are not identified "
            "separately, and only predictions on that line are valid. Add runs with another D at "
            "the same N.",
        )
    if not fit.axes.has_batch:
        words = "Batches do not differ within cells, so there is no batch law. Add other batches."
        warn("batch_not_varied", words)
    found.extend(_edge_warnings(fit, theta))
    return found


def _edge_warnings(fit: ExcessFit, theta: FloatArray) -> list[FitWarning]:
    """Return warnings about cells whose optimum is outside the values tried.

    Raises
    ------
    NotIdentifiedError
        If the best learning rate is outside the tried values in every cell.
    """
    found = []
    lr, batch = fit.centres(theta)
    for code, word, centre, tried in (
        ("edge_lr", "learning rate", lr, np.log(fit.runs.lr)),
        ("edge_batch", "batch", batch, np.log(fit.runs.batch_tokens)),
    ):
        if centre is None:
            continue
        low = np.minimum.reduceat(tried, fit.starts)
        high = np.maximum.reduceat(tried, fit.starts)
        outside = int(np.sum((centre < low) | (centre > high)))
        if outside == fit.n_cells and code == "edge_lr":
            raise NotIdentifiedError(
                f"best learning rates outside those tried in all {fit.n_cells} cells",
                "rates on both sides of the best one",
                "The law is not identified: add runs with lower or higher learning rates.",
            )
        if outside:
            found.append(
                FitWarning(
                    code=code,
                    message=f"The best {word} is outside those tried in {outside} of "
                    f"{plural(fit.n_cells, 'cell')}, and extrapolated there. "
                    "Add runs with lower or higher values.",
                )
            )
    return found

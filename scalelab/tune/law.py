"""Power laws of the best learning rate and batch, lr* = k N^p D^q, with intervals.

Fitted to the valley of the loss over all runs (`scalelab.tune.excess_fit`), never to the best runs:
the best of noisy runs lies anywhere on the valley's floor. Intervals come from a bootstrap over
cells, which holds both the noise of runs and the scatter of cells about the law; with few cells,
over the runs within cells, which holds the noise alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scalelab.errors import NotIdentifiedError
from scalelab.fit.outcome import FitWarning
from scalelab.tune.excess_fit import SMALLEST_SPREAD, ExcessFit, Origin, Scale
from scalelab.tune.excess_loss import Axes
from scalelab.tune.runs_table import FAR_FROM_BEST, TunedRuns
from scalelab.units import format_quantity

FloatArray = NDArray[np.float64]

FEW_CELLS = 8
"""Fewer cells are not resampled: a law of three constants would hang on two or three of them."""

LARGEST_MOVE = math.log(1e4)
"""Replicates that move a centre further are failures of the replicate, not evidence."""

OFF_LINE = 0.15
"""Distance in logs up to which a point counts as on the line on which all cells lie."""

DEFAULT_REPLICATES = 300
DEFAULT_LEVEL = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A value between its limits; the limits are None where there is nothing to resample."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """The law k N^p D^q of one hyperparameter."""

    k: Interval
    p: Interval
    q: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningLaw:
    """Laws of the best learning rate and batch, fitted.

    Attributes
    ----------
    theta : ndarray of float, shape (axes.n_parameters,)
        Parameters of the surface.
    replicates : ndarray of float, shape (k, axes.n_parameters)
        The same of each bootstrap replicate.
    axes : Axes
    origin : Origin
    scale : Scale
        Of a run's residual, in log loss.
    cell_place : ndarray of float, shape (n_cells, 2)
        Centred log N and log D of the cells.
    n_rows, n_cells : int
        What was fitted.
    widening : float
        Factor on a replicate's deviation: cells are few, and the law has spent some of them.
    level : float
        Level of every interval.
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
    scale: Scale
    cell_place: FloatArray
    n_rows: int
    n_cells: int
    widening: float
    level: float
    bootstrap: str
    param_convention: str
    warnings: tuple[FitWarning, ...]

    def lr(self) -> PowerLaw:
        """Return the law of the learning rate."""
        return self._law(0, self.origin.log_lr)

    def batch_tokens(self) -> PowerLaw | None:
        """Return the law of the batch in tokens; None when batches were not varied."""
        return self._law(1, self.origin.log_batch) if self.axes.has_batch else None

    def best(self, n_params: float, n_tokens: float) -> tuple[Interval, Interval | None]:
        """Return the best learning rate and batch (tokens) of a model, with intervals.

        Raises
        ------
        NotIdentifiedError
            When the cells lie on one line in (log N, log D) and the model does not.
        """
        place = np.array([math.log(n_params), math.log(n_tokens)])
        place -= (self.origin.log_n, self.origin.log_d)
        self._check_on_line(place)
        row = self.axes.features(place[:1], place[1:])[0]
        lr = self._interval(self._linear(0, row), self.origin.log_lr, np.exp)
        if not self.axes.has_batch:
            return lr, None
        return lr, self._interval(self._linear(1, row), self.origin.log_batch, np.exp)

    def reach(self, n_params: float, n_tokens: float) -> list[FitWarning]:
        """Return a warning for each of N and D that lies outside of the cells."""
        found = []
        low, high = self.cell_place.min(axis=0), self.cell_place.max(axis=0)
        for i, (name, value, mean) in enumerate(
            (("N", n_params, self.origin.log_n), ("D", n_tokens, self.origin.log_d))
        ):
            beyond = max(math.log(value) - mean - high[i], low[i] - math.log(value) + mean)
            if beyond > SMALLEST_SPREAD:
                ends = [format_quantity(math.exp(end + mean)) for end in (low[i], high[i])]
                found.append(
                    FitWarning(
                        code="extrapolation",
                        message=f"{name} = {format_quantity(value)} lies {math.exp(beyond):.3g} "
                        f"times outside of the runs ({ends[0]} to {ends[1]}).",
                    )
                )
        return found

    def _law(self, which: int, log_mean: float) -> PowerLaw:
        """Return k, p, q; where cells lie on one line, the shortest (p, q), without limits."""
        names = {}
        are_apart = self.axes.basis.shape[1] == 2
        origin = np.array([self.origin.log_n, self.origin.log_d])
        for name, row in (
            ("k", np.concatenate([[1.0], -(origin @ self.axes.basis)])),
            ("p", np.concatenate([[0.0], self.axes.basis[0]])),
            ("q", np.concatenate([[0.0], self.axes.basis[1]])),
        ):
            is_log = name == "k"
            names[name] = self._interval(
                self._linear(which, row), log_mean if is_log else 0.0, np.exp if is_log else float
            )
            if not are_apart:
                names[name] = Interval(value=names[name].value, low=None, high=None)
        return PowerLaw(**names)

    def _linear(self, which: int, row: FloatArray) -> tuple[float, FloatArray]:
        m = self.axes.n_centre
        part = slice(which * m, (which + 1) * m)
        return float(self.theta[part] @ row), self.replicates[:, part] @ row

    def _interval(
        self, found: tuple[float, FloatArray], mean: float, change: Callable[[float], float]
    ) -> Interval:
        """Return value and limits, moved by ``mean`` and then ``change``d."""
        value, replicates = found
        if not len(replicates):
            return Interval(value=float(change(value + mean)), low=None, high=None)
        tail = (1 - self.level) / 2
        deviation = np.quantile(replicates - value, [tail, 1 - tail]) * self.widening
        low, high = np.minimum(deviation[0], 0.0), np.maximum(deviation[1], 0.0)
        ends = (value, value + low, value + high)
        centre, low, high = (float(change(min(end + mean, 700.0))) for end in ends)
        return Interval(value=centre, low=low, high=high)

    def _check_on_line(self, place: FloatArray) -> None:
        if self.axes.basis.shape[1] == 2:
            return
        middle = self.cell_place.mean(axis=0)
        across = np.array([-self.axes.basis[1, 0], self.axes.basis[0, 0]])
        distance = abs(float((place - middle) @ across))
        if distance > OFF_LINE:
            raise NotIdentifiedError(
                f"a model {math.exp(distance):.3g} times off the one line of (N, D) that was run",
                "a model on that line, or runs that vary N and D apart",
                "The law is not identified there: add runs at another number of tokens.",
            )


def fit_law(
    runs: TunedRuns,
    *,
    level: float = DEFAULT_LEVEL,
    n_replicates: int = DEFAULT_REPLICATES,
    seed: int = 0,
) -> TuningLaw:
    """Return the law that the runs say.

    Raises
    ------
    NotIdentifiedError
        When the runs cannot determine it.
    """
    surface = ExcessFit(runs)
    theta, scale, is_converged = surface.fit()
    by_cells = surface.n_cells >= FEW_CELLS
    replicates = _replicates(surface, theta, scale, n_replicates, seed, by_cells=by_cells)
    return TuningLaw(
        theta=theta,
        replicates=replicates,
        axes=surface.axes,
        origin=surface.origin,
        scale=scale,
        cell_place=surface.cell_place,
        n_rows=len(surface.runs),
        n_cells=surface.n_cells,
        widening=_widening(surface, level) if by_cells else 1.0,
        level=level,
        bootstrap="cells" if by_cells else "runs",
        param_convention=runs.param_convention,
        warnings=tuple(
            _warnings(surface, theta, is_converged=is_converged, n_lost=runs.n_diverged)
        ),
    )


def _replicates(
    surface: ExcessFit, theta: FloatArray, scale: Scale, k: int, seed: int, *, by_cells: bool
) -> FloatArray:
    """Return the parameters of k resampled tables, shape (at most k, n_parameters)."""
    random = np.random.default_rng(seed)
    found = []
    n_centres = (2 if surface.axes.has_batch else 1) * surface.axes.n_centre
    for _ in range(k):
        if by_cells:
            drawn = random.integers(surface.n_cells, size=surface.n_cells)
            weights = np.bincount(drawn, minlength=surface.n_cells)[surface.cell].astype(float)
        else:
            counts = [random.multinomial(size, np.full(size, 1 / size)) for size in surface.sizes]
            weights = np.concatenate(counts).astype(float)
        replicate = surface.refit(theta, scale, weights)
        if np.all(np.abs(replicate - theta)[:n_centres] < LARGEST_MOVE):
            found.append(replicate)
    return np.array(found).reshape(len(found), len(theta))


def _widening(surface: ExcessFit, level: float) -> float:
    """Return the factor from a bootstrap of few cells to Student's interval on what is left."""
    freedom = surface.n_cells - surface.axes.n_centre
    tail = (1 + level) / 2
    return float(math.sqrt(surface.n_cells / freedom) * stats.t.ppf(tail, freedom)) / float(
        stats.norm.ppf(tail)
    )


def _warnings(
    surface: ExcessFit, theta: FloatArray, *, is_converged: bool, n_lost: int
) -> list[FitWarning]:
    found = []

    def warn(code: str, message: str) -> None:
        found.append(FitWarning(code=code, message=message))

    if n_lost:
        warn("diverged_rows", f"{n_lost} runs without a finite loss above zero were left out.")
    if surface.n_far:
        share = math.expm1(FAR_FROM_BEST)
        warn(
            "far_rows",
            f"{surface.n_far} runs with a loss {share:.0%} above their cell's best were left out.",
        )
    if surface.n_single:
        warn(
            "single_run_cells", f"{surface.n_single} cells with fewer than two runs were left out."
        )
    if not is_converged:
        warn("not_converged", "The fit stopped before its steps ended; take it with care.")
    if surface.n_cells < FEW_CELLS:
        warn(
            "few_cells",
            f"{surface.n_cells} cells (N, D): the intervals hold the noise of runs, not the "
            f"scatter of cells about the law, which takes {FEW_CELLS} cells.",
        )
    if surface.axes.basis.shape[1] < 2:
        slope = surface.axes.basis[:, 0]
        warn(
            "collinear",
            f"The cells lie on one line, (log N, log D) along ({slope[0]:.3g}, {slope[1]:.3g}): "
            "the exponents of N and D are not identified apart, only predictions on that line.",
        )
    if not surface.axes.has_batch:
        warn("batch_not_varied", "Batches do not differ within cells: no law of the batch.")
    found.extend(_edge_warnings(surface, theta))
    return found


def _edge_warnings(surface: ExcessFit, theta: FloatArray) -> list[FitWarning]:
    """Return what the cells whose best lies outside of what was tried amount to.

    Raises
    ------
    NotIdentifiedError
        When no cell has its best learning rate within what was tried.
    """
    found = []
    lr, batch = surface.centres(theta)
    for code, word, centre, tried in (
        ("edge_lr", "learning rate", lr, np.log(surface.runs.lr)),
        ("edge_batch", "batch", batch, np.log(surface.runs.batch_tokens)),
    ):
        if centre is None:
            continue
        low = np.minimum.reduceat(tried, surface.starts)
        high = np.maximum.reduceat(tried, surface.starts)
        outside = int(np.sum((centre < low) | (centre > high)))
        if outside == surface.n_cells and code == "edge_lr":
            raise NotIdentifiedError(
                f"{surface.n_cells} cells, each with its best learning rate beyond those tried",
                "rates on both sides of the best one",
                "The law is not identified: add runs with lower or higher learning rates.",
            )
        if outside:
            found.append(
                FitWarning(
                    code=code,
                    message=f"In {outside} of {surface.n_cells} cells the best {word} lies "
                    "beyond those tried.",
                )
            )
    return found

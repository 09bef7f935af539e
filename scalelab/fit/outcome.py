"""Result of a parametric fit: the law, its status, what it predicts, and warnings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalelab.arrays import FloatArray
from scalelab.fit.intervals import (
    DEFAULT_LEVEL,
    ROUNDING,
    Interval,
    Prediction,
    check_level,
    percentile_limits,
)
from scalelab.fit.noise import NOISE_LEVELS, compute_of, local_noise
from scalelab.fit.objective import Objective
from scalelab.theory.laws.base import Law

Status = Literal["ok", "not_identified", "at_bound"]
Refits = Literal["objective", "efficient", "posterior"]
RAMP = 2.0
"""Factor below the largest run over which prediction intervals grow to their inflated width."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitWarning:
    """A warning about a fit.

    ``code`` is a stable name, for scripts; ``message`` says what is true, why it matters for the
    result, and what to do; ``runs`` are the runs, or lines of a table, that it is about, as
    ``--exclude`` takes them.
    """

    code: str
    message: str
    runs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Minimum:
    """One local minimum of the objective: its value and the parameters there."""

    value: float
    params: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class BootstrapReport:
    """The bootstrap replicates of the intervals: method, number and failures.

    Attributes
    ----------
    method : str
        ``row``, ``cluster``, ``residual``, ``weights`` (given by the caller) or ``none``.
    k : int
        Number of replicates.
    failed : int
        Replicates that did not converge; the intervals do not use them.
    seed : int
        Seed of the resampling.
    cluster : str or None
        Column of the cluster labels, for ``cluster``.
    n_clusters : int or None
        Number of clusters.
    refits : {"objective", "efficient", "posterior"}
        ``objective``: refits of the objective of the fit; ``efficient``: efficient refits (see
        `scalelab.fit.efficient`); ``posterior``: draws from few rows or clusters (see
        `scalelab.fit.few_rows`).
    """

    method: str
    k: int
    failed: int
    seed: int
    cluster: str | None = None
    n_clusters: int | None = None
    refits: Refits = "objective"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ParametricFit:
    """A law fitted to observations.

    Attributes
    ----------
    form : str
        Name of the law's form.
    law : Law
        The law at the best minimum, even if it is not identified.
    status : {"ok", "not_identified", "at_bound"}
        ``not_identified``: the rows do not determine the parameters (a term that vanishes, a
        rank-deficient design, a poorly constrained parameter, too few rows). ``at_bound``: the
        best value is at a finite bound of a parameter. ``warnings`` has the reasons, under the
        same code.
    objective : Objective
        The objective that was minimised.
    value : float
        Objective at ``law``: a sum over rows.
    scale : float or None
        Fitted noise scale of the ``likelihood`` loss.
    minima : tuple of Minimum
        Distinct minima within 0.2 % of the best, best first.
    names : tuple of str
        Parameter names, in the order of the columns of ``samples``.
    samples : ndarray of shape (k_ok, p)
        Parameters of the replicates that converged.
    bootstrap : BootstrapReport
        Method and number of the replicates.
    kept : ndarray of bool, shape (k,), or None
        Whether each replicate of the resampling plan is in ``samples``; None if unknown.
    residuals : ndarray of shape (n,)
        ``log(predicted / observed)`` or ``predicted - observed``, in the caller's row order.
    fixed : Mapping[str, float]
        Parameters that were held fixed.
    n_rows : int
        Number of rows fitted.
    max_flops : float
        Compute of the largest run fitted.
    warnings : tuple of FitWarning
        Warnings of the solver, of identification and of the replicates.
    inflation_of : callable, or None
        Returns `inflation`; None: it is 1.
    shape : ndarray of shape (n,), or None
        Gamma shapes of the replicates' weights in the caller's row order; None for exponential
        weights.
    compute : ndarray of shape (n,), or None
        Compute of every row from the form's columns (N D, or FLOPs), in the caller's row order. A
        prediction takes its noise from the rows nearest in compute, since small runs are often
        noisier.
    noise : ndarray of shape (levels,), or None
        Quantiles of the noise of a new run from few rows; NaN if they do not show it. None: from
        the residuals.
    """

    form: str
    law: Law
    status: Status
    objective: Objective
    value: float
    scale: float | None = None
    minima: tuple[Minimum, ...]
    names: tuple[str, ...]
    samples: FloatArray
    bootstrap: BootstrapReport
    residuals: FloatArray
    fixed: Mapping[str, float]
    n_rows: int
    max_flops: float
    warnings: tuple[FitWarning, ...]
    kept: NDArray[np.bool_] | None = None
    inflation_of: Callable[[], float] | None = None
    shape: FloatArray | None = None
    compute: FloatArray | None = None
    noise: FloatArray | None = None

    @property
    def params(self) -> dict[str, float]:
        """Parameters by name."""
        return self.law.params

    @property
    def inflation(self) -> float:
        """Extrapolation inflation, at least 1 (see `scalelab.fit.inflation`).

        Ratio of error to prediction interval when larger runs are predicted from smaller ones. It
        widens prediction intervals beyond the largest run.
        """
        return 1.0 if self.inflation_of is None else self.inflation_of()

    @property
    def failed(self) -> int:
        """Number of replicates that did not converge."""
        return self.bootstrap.failed

    def replicate_laws(self) -> tuple[Law, ...]:
        """Return the law of each converged replicate."""
        kind = type(self.law)
        return tuple(
            kind(**dict(zip(self.names, (float(v) for v in row), strict=True)))
            for row in self.samples
        )

    def interval(self, fn: Callable[[Law], float], level: float = DEFAULT_LEVEL) -> Interval:
        """Return a scalar function of the law with its confidence interval.

        Parameters
        ----------
        fn : callable
            Function of a law, called once for each replicate. Results that are not finite are
            ignored.
        level : float
            Between 0 and 1.

        Raises
        ------
        UsageError
            For a level outside (0, 1).
        """
        check_level(level)
        draws = np.array([fn(law) for law in self.replicate_laws()], dtype=np.float64)
        value = float(fn(self.law))
        low, high = percentile_limits(draws[np.isfinite(draws)], level, value)
        return Interval(value=value, low=low, high=high)

    def param_intervals(self, level: float = DEFAULT_LEVEL) -> dict[str, Interval]:
        """Return every parameter with its confidence interval, by name."""
        check_level(level)
        params = self.params
        out = {}
        for j, name in enumerate(self.names):
            low, high = percentile_limits(self.samples[:, j], level, params[name])
            if name in self.fixed and len(self.samples):
                low = high = params[name]
            out[name] = Interval(value=params[name], low=low, high=high)
        return out

    @property
    def target(self) -> str:
        """Column that the law predicts."""
        return self.law.target

    def predict(self, columns: Mapping[str, ArrayLike], level: float = DEFAULT_LEVEL) -> Prediction:
        """Return the predicted target with confidence and prediction intervals.

        Parameters
        ----------
        columns : Mapping[str, array_like of shape (m,)]
            The columns that the law needs (``law.columns``); scalars broadcast.
        level : float
            Between 0 and 1.

        Raises
        ------
        UsageError
            For a missing column or a level outside (0, 1).
        """
        check_level(level)
        kind = type(self.law)
        needed = np.broadcast_arrays(*(np.atleast_1d(v) for v in kind.columns_of(columns).values()))
        at = dict(zip(kind.columns, needed, strict=True))
        value = np.broadcast_to(self.law.loss(at), needed[0].shape)
        return self.around(at, value, self.values_of_replicates(at), level)

    def around(
        self, at: Mapping[str, FloatArray], value: FloatArray, draws: FloatArray, level: float
    ) -> Prediction:
        """Return predictions with their intervals where the values are known.

        Parameters
        ----------
        at : Mapping[str, ndarray of shape (m,)]
            Columns that give the compute of the points.
        value : ndarray of shape (m,)
            Of the law.
        draws : ndarray of shape (k, m)
            Of the replicates.
        level : float
        """
        tails = [(1 - level) / 2, (1 + level) / 2]
        noise = self._noise(compute_of(at), len(value))
        limits = np.full((4, len(value)), np.nan)
        # Where the noise is not finite, the limits are NaN.
        with np.errstate(all="ignore"):
            for i in range(len(value)):
                here = draws[:, i][np.isfinite(draws[:, i])]
                limits[:2, i] = percentile_limits(here, level, float(value[i]))
                limits[2:, i] = np.quantile(self._new_runs(value[i], here, noise[i]), tails)
            widening = self._widening(at)
            limits[2:] = self._stretched(limits[2:], value, widening)
        # Where a new run lands is never more certain than where the law lies.
        is_known = limits[3] - limits[2] > ROUNDING * np.abs(value)
        limits[2] = np.where(is_known, np.fmin(limits[2], np.fmin(limits[0], value)), np.nan)
        limits[3] = np.where(is_known, np.fmax(limits[3], np.fmax(limits[1], value)), np.nan)
        return Prediction(
            value=np.asarray(value, dtype=np.float64),
            low=limits[0],
            high=limits[1],
            pred_low=limits[2],
            pred_high=limits[3],
            level=level,
        )

    def miss_probability(
        self, columns: Mapping[str, float], target: float, value: float, draws: FloatArray
    ) -> float:
        """Return the probability that one new run ends above a target.

        It uses the distribution of the prediction interval of `predict`: the result is 0.05 if the
        target is the upper limit at level 0.9.

        Parameters
        ----------
        columns : Mapping[str, float]
            N and D of the run.
        target : float
            Loss to reach.
        value : float
            Loss of the law at this point.
        draws : ndarray of shape (k_ok,)
            Loss of every replicate at this point; if empty, only noise is counted.

        Returns
        -------
        float
            NaN if the noise is not known.
        """
        at = {name: np.array([x]) for name, x in columns.items()}
        with np.errstate(all="ignore"):
            # Narrowing the target by the inflation equals widening every draw by it.
            narrow = self._stretched(np.array(target), np.array(value), 1 / self._widening(at))
            runs = self._new_runs(
                value, draws[np.isfinite(draws)], self._noise(compute_of(at), 1)[0]
            )
        return float((runs > narrow).mean()) if np.isfinite(runs).any() else float("nan")

    def _new_runs(self, value: float, draws: FloatArray, noise: FloatArray) -> FloatArray:
        """Return possible new runs at one point: all replicates (or the law) x all noise."""
        draws = draws if len(draws) else np.array([value])
        if self.objective.residual == "log":
            return draws[:, None] * np.exp(noise)
        return draws[:, None] + noise

    def _widening(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the factor on prediction intervals, without a jump along compute.

        It is `inflation` beyond the largest run and 1 up to `RAMP` below it; between, its logarithm
        grows with that of the compute.
        """
        compute = compute_of(columns)
        if compute is None or self.compute is None:
            return np.ones(1)
        share = 1 + np.log(compute / self.compute.max()) / np.log(RAMP)
        if not (share > 0).any():
            return np.ones(1)
        return np.asarray(self.inflation ** np.clip(share, 0.0, 1.0))

    def _stretched(self, limits: FloatArray, value: FloatArray, factor: FloatArray) -> FloatArray:
        """Return limits with their distance from the value multiplied by a factor."""
        if self.objective.residual == "log":
            wide = value * (limits / value) ** factor
        else:
            wide = value + (limits - value) * factor
        return np.where(factor == 1.0, limits, wide)

    def values_of_replicates(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the predictions of every replicate, shape (k_ok, m)."""
        kind = type(self.law)
        encoded = kind.encode(self.samples)
        theta = tuple(encoded[:, j : j + 1] for j in range(encoded.shape[1]))
        m = len(next(iter(columns.values())))
        with np.errstate(all="ignore"):
            values = np.asarray(kind.evaluate(theta, columns), dtype=np.float64)
        return np.broadcast_to(values, (len(self.samples), m))

    def largest_run_noise(self) -> FloatArray:
        """Return quantiles of the noise of a new run at the largest compute, shape (levels,)."""
        largest = None if self.compute is None else self.compute.max(keepdims=True)
        quantiles: FloatArray = self._noise(largest, 1)[0]
        return quantiles

    def _noise(self, wanted: FloatArray | None, m: int) -> FloatArray:
        """Return quantiles of the noise of a new run at m values of compute, shape (m, levels)."""
        if self.noise is not None:
            return np.tile(self.noise, (m, 1))
        n, p = self.n_rows, len(self.names) - len(self.fixed)
        errors = -self.residuals * (n / max(n - p, 1)) ** 0.5
        if wanted is None or self.compute is None:
            return np.tile(np.quantile(errors, NOISE_LEVELS), (m, 1))
        return local_noise(errors, self.compute, np.broadcast_to(wanted, (m,)))

"""Weights of the sources that minimise a weighted target, with limits and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.fit.intervals import Interval, check_level, percentile_limits
from scalelab.fit.mixing import MixtureFit
from scalelab.fit.mixing_goal import Goal, MixtureLimits, within
from scalelab.fit.outcome import FitWarning
from scalelab.units import format_count

N_SPREAD = 2048
"""Points spread over the simplex before the search narrows."""
FAR = 0.15
"""Share of tokens that changes source between the best and the nearest trained mixture, from which
the fit warns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BestWeights:
    """Result of `best_weights`.

    Attributes
    ----------
    weights : Mapping[str, Interval]
        Weight of each source; the interval is that of the best weight over replicates.
    target : Interval
        The weighted target at these weights.
    losses : Mapping[str, Interval]
        Loss of each evaluation set at these weights.
    epochs : Mapping[str, float]
        Passes over each source with known unique tokens.
    n_params, n_tokens : float or None
        Scale of the prediction; None where the laws do not use it.
    nearest : str
        Name of the run with the nearest weights.
    distance : float
        Share of the training tokens that would change source from the nearest run: 0 to 1.
    best_run : str
        Name of the trained mixture with the lowest predicted target at this scale.
    best_run_weights : Mapping[str, float]
    gain : Interval
        Predicted target of that mixture minus the target: positive is better.
    binding : tuple of str
        Sources whose limit stops a larger weight.
    warnings : tuple of FitWarning
    """

    weights: Mapping[str, Interval]
    target: Interval
    losses: Mapping[str, Interval]
    epochs: Mapping[str, float]
    n_params: float | None
    n_tokens: float | None
    nearest: str
    distance: float
    best_run: str
    best_run_weights: Mapping[str, float]
    gain: Interval
    binding: tuple[str, ...] = ()
    warnings: tuple[FitWarning, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types, field by field."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def best_weights(
    fit: MixtureFit,
    target: Mapping[str, float],
    limits: MixtureLimits | None = None,
    *,
    n_params: float | None = None,
    n_tokens: float | None = None,
    level: float | None = None,
    seed: int = 0,
) -> BestWeights:
    """Return the weights that minimise a weighted mean of the losses on evaluation sets.

    Parameters
    ----------
    fit : MixtureFit
    target : Mapping[str, float]
        Weight of each evaluation set, above 0; they are divided by their sum.
    limits : MixtureLimits, optional
    n_params, n_tokens : float, optional
        Scale at which to predict; default: the largest of the runs.
    level : float, optional
        Level of the intervals; default: that of the fit.
    seed : int
        Seed of the search.

    Raises
    ------
    UsageError
        For an unknown set or source, or limits that no mixture meets.
    """
    level = fit.level if level is None else level
    check_level(level)
    limits = limits or MixtureLimits()
    goal = Goal.of(fit, target, limits, n_params, n_tokens)
    rng = np.random.default_rng(seed)
    low, high = goal.bounds()
    spread = within(_spread(rng, fit), low, high)
    h = goal.search(spread, low, high, rng, is_replicates=False)[0]
    drawn = goal.search(spread, low, high, rng, is_replicates=True)
    sources = fit.runs.sources
    weights = {}
    for j, name in enumerate(sources):
        ends = percentile_limits(drawn[:, j], level, float(h[j]))
        if len(drawn) and np.ptp(drawn[:, j]) < 1e-9:
            ends = (float(h[j]), float(h[j]))  # a limit holds it in every replicate
        weights[name] = Interval(value=float(h[j]), low=ends[0], high=ends[1])
    trained = fit.runs.weights
    at_runs = goal.value(trained)[0]
    best = int(np.argmin(at_runs))
    distances = 0.5 * np.abs(trained - h).sum(axis=1)
    nearest = int(np.argmin(distances))
    names = fit.runs.names or tuple(f"row {i + 1}" for i in range(fit.runs.n))
    return BestWeights(
        weights=weights,
        target=goal.interval(h, level),
        losses={name: goal.interval(h, level, only=name) for name in fit.laws},
        epochs=goal.epochs(h),
        n_params=goal.n_params,
        n_tokens=goal.n_tokens,
        nearest=names[nearest],
        distance=float(distances[nearest]),
        best_run=names[best],
        best_run_weights={n: float(v) for n, v in zip(sources, trained[best], strict=True)},
        gain=goal.gain(trained[best], h, level),
        binding=tuple(n for j, n in enumerate(sources) if high[j] < 1 and h[j] > high[j] - 1e-3),
        warnings=tuple(_warnings(fit, goal, h, float(distances[nearest]))),
    )


def _spread(rng: np.random.Generator, fit: MixtureFit) -> FloatArray:
    """Return points over the whole simplex: corners, centre, runs, and random ones."""
    m = len(fit.runs.sources)
    return np.concatenate(
        [
            np.eye(m),
            np.full((1, m), 1 / m),
            np.unique(np.round(fit.runs.weights, 9), axis=0),
            rng.dirichlet(np.ones(m), size=N_SPREAD // 2),
            rng.dirichlet(np.full(m, 0.4), size=N_SPREAD // 2),
        ]
    )


def _warnings(fit: MixtureFit, goal: Goal, h: FloatArray, distance: float) -> list[FitWarning]:
    from scipy.optimize import nnls

    out = []
    runs = fit.runs
    distinct = np.unique(np.round(runs.weights, 9), axis=0)
    system = np.vstack([distinct.T, np.full(len(distinct), 10.0)])
    if nnls(system, np.append(h, 10.0))[1] > 0.01:
        beyond = [
            f"{name} {h[j]:.3g} (trained {runs.weights[:, j].min():.3g} to "
            f"{runs.weights[:, j].max():.3g})"
            for j, name in enumerate(runs.sources)
            if not runs.weights[:, j].min() - 5e-3 <= h[j] <= runs.weights[:, j].max() + 5e-3
        ]
        where = f": {', '.join(beyond)}" if beyond else ""
        out.append(
            FitWarning(
                code="outside_mixtures",
                message=(
                    f"The best weights are outside the mixtures that were trained{where}. The laws "
                    "extrapolate there. Train a run at these weights before you rely on them."
                ),
            )
        )
    if distance > FAR:
        out.append(
            FitWarning(
                code="far_from_runs",
                message=(
                    f"{100 * distance:.0f} % of the training tokens come from other sources than "
                    "in the nearest run. Train a run at these weights to check the prediction."
                ),
            )
        )
    for name, given in (("n_params", goal.n_params), ("n_tokens", goal.n_tokens)):
        column = getattr(runs, name)
        if given is None or column is None:
            continue
        if name not in runs.scale and abs(given / column.max() - 1) > 0.01:
            out.append(
                FitWarning(
                    code="one_scale",
                    message=(
                        f"All runs have {name} = {format_count(float(column.max()))}, so the "
                        f"prediction is for that, not for {format_count(given)}."
                    ),
                )
            )
        elif name in runs.scale and given > 1.01 * column.max():
            out.append(
                FitWarning(
                    code="extrapolation",
                    message=(
                        f"Extrapolation: {name} is {given / column.max():.3g}x that of the largest "
                        "run. The best weights may change with scale."
                    ),
                )
            )
    if goal.limits.unique_tokens and "n_tokens" not in runs.scale:
        out.append(
            FitWarning(
                code="repeats_without_tokens",
                message=(
                    "The runs do not differ in training tokens. Repeats lower the weight that a "
                    "source counts with, but not the total data."
                ),
            )
        )
    return out

"""Scores of registered forecasts: error, coverage and CRPS on the runs at their points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from scalelab.forecast.registered import (
    LEVELS,
    FrozenForecast,
    Registration,
    is_at,
    is_fitted,
)
from scalelab.records.metric import parse_metric
from scalelab.records.types import KnownRun

BEFORE, UNKNOWN, AFTER = "before the run", "start unknown", "after the fact"
TIMINGS = (BEFORE, UNKNOWN, AFTER)
"""When a forecast was frozen: before its run began, unknown (imports), or after it began."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunScore:
    """How well a registered forecast predicted one run.

    Attributes
    ----------
    name, asked : str
        The registration, and the question in it.
    run : str
        The run, or the import and line.
    source : str
        Its sweep or import.
    timing : str
        One of `TIMINGS`.
    metric : str
        Which loss, as after ``--metric``.
    unit : str
        Its unit.
    predicted, observed : float
        Losses in that unit.
    relative_error : float
        predicted / observed - 1.
    is_covered : bool
        Whether the run lies in its prediction interval.
    level : float
        Level of that interval.
    crps : float
        Continuous ranked probability score of the log loss: that of a forecast without spread is
        its absolute error.
    """

    name: str
    asked: str
    run: str
    source: str
    timing: str
    metric: str
    unit: str
    predicted: float
    observed: float
    relative_error: float
    is_covered: bool
    level: float
    crps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Means over forecasts of one timing; each forecast counts once, for any number of runs."""

    n_forecasts: int
    n_runs: int
    mean_relative_error: float
    coverage: float
    crps: float


def score_runs(registration: Registration, runs: Iterable[KnownRun]) -> tuple[RunScore, ...]:
    """Return a score for each forecast and each run at its point that was not fitted.

    If fitted rows are runs of the results folder, other runs must share their evaluation set.
    """
    fitted = frozenset(registration.row_hashes)
    new, evaluations = [], set()
    for run in runs:
        if not np.isfinite(run.loss_nats):
            continue  # the run does not have the metric
        if not is_fitted(run, fitted):
            new.append(run)
        elif run.eval_fingerprint is not None:
            evaluations.add(run.eval_fingerprint)
    return tuple(
        _score(registration, forecast, run)
        for forecast in registration.forecasts
        for run in new
        if is_at(registration, forecast, run)
        and (not evaluations or run.eval_fingerprint in (None, *evaluations))
    )


def summarise(scores: Sequence[RunScore]) -> Summary:
    """Return the means of scores of one timing."""
    groups: dict[tuple[str, str], list[RunScore]] = {}
    for each in scores:
        groups.setdefault((each.name, each.asked), []).append(each)
    means = np.array(
        [
            np.mean([(abs(s.relative_error), s.is_covered, s.crps) for s in group], axis=0)
            for group in groups.values()
        ]
    ).mean(axis=0)
    return Summary(
        n_forecasts=len(groups),
        n_runs=len(scores),
        mean_relative_error=float(means[0]),
        coverage=float(means[1]),
        crps=float(means[2]),
    )


def crps(log_quantiles: Sequence[float], log_loss: float) -> float:
    """Return the CRPS from quantiles at `LEVELS`: the integral of twice the pinball loss.

    Source: Gneiting and Raftery 2007, "Strictly proper scoring rules", section 4.2. The loss is 0
    at the levels 0 and 1, so the sum over `LEVELS` is the trapezoidal rule.
    """
    levels = np.array(LEVELS)
    gap = log_loss - np.array(log_quantiles)
    return float(2 * np.maximum(levels * gap, (levels - 1) * gap).sum() / (len(LEVELS) + 1))


def _score(registration: Registration, forecast: FrozenForecast, run: KnownRun) -> RunScore:
    if run.run_id in forecast.begun or run.known_s < registration.registered_s:
        timing = AFTER
    else:
        timing = BEFORE if run.is_start_known else UNKNOWN
    return RunScore(
        name=registration.name,
        asked=forecast.asked,
        run=run.run_id,
        source=run.source,
        timing=timing,
        metric=registration.metric,
        unit=parse_metric(registration.metric).unit,
        predicted=forecast.loss_nats,
        observed=run.loss_nats,
        relative_error=forecast.loss_nats / run.loss_nats - 1,
        is_covered=forecast.pred_low <= run.loss_nats <= forecast.pred_high,
        level=forecast.level,
        crps=crps(forecast.log_quantiles, float(np.log(run.loss_nats))),
    )

"""From scale to the accuracy of a task: task loss from N and D, accuracy from task loss.

The first step is a fit of the task loss with its forecaster (`scalelab.forecast.fit_report`), the
second a sigmoid (`scalelab.fit.task_accuracy`). Intervals go through both: each draw of the task
loss has a replicate of the sigmoid and the error that the sigmoid had for models that were left
out. The direct law of log accuracy in compute is beside it.

Source: Bhagia et al. 2024, arXiv:2412.04403 (two steps); arXiv:2512.08894 (direct law).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import ScalelabError
from scalelab.fit.intervals import Interval
from scalelab.fit.outcome import FitWarning
from scalelab.fit.task_accuracy import BEST_RUNS, AccuracyLink, DirectLaw
from scalelab.forecast.allocate import Forecast, Refusal, Request
from scalelab.forecast.fit_report import FitReport

ChainStatus = Literal["ok", "at_chance", "not_identified"]
LEVELS = (0.2, 0.4, 0.6, 0.8, 0.9, 0.96, 0.99)
"""Levels of the intervals that give the distribution of the task loss."""
N_DRAWS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskForecast:
    """The prediction of one requested run.

    Attributes
    ----------
    loss : Forecast
        Size, tokens, compute and task loss, bits per byte of the right answer.
    accuracy : Interval
        Accuracy by the chain; the interval includes both steps.
    direct : Interval or None
        Accuracy by the direct law of compute.
    """

    loss: Forecast
    accuracy: Interval
    direct: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON types."""
        found = self.loss.to_dict()
        renamed = {("task_loss" if k == "loss_nats" else k): v for k, v in found.items()}
        return {**renamed, "accuracy": self.accuracy, "direct_accuracy": self.direct}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TaskChain:
    """Both steps for one task.

    Attributes
    ----------
    task : str
    report : FitReport
        Fit of the task loss.
    link : AccuracyLink
        Accuracy from task loss.
    direct : DirectLaw or None
        Accuracy from compute; None with fewer than 4 runs above chance.
    level : float
    forecasts : tuple of TaskForecast
    refusals : tuple of Refusal
        Requests without an answer.
    warnings : tuple of FitWarning
    """

    task: str
    report: FitReport
    link: AccuracyLink
    direct: DirectLaw | None
    level: float
    forecasts: tuple[TaskForecast, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    warnings: tuple[FitWarning, ...] = ()

    @property
    def status(self) -> ChainStatus:
        """``at_chance``: small models say nothing about the accuracy, and there is no number."""
        if self.link.is_at_chance:
            return "at_chance"
        return "not_identified" if self.refusals and not self.forecasts else "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return the chain as JSON types."""
        link, direct = self.link, self.direct
        return {
            "task": self.task,
            "status": self.status,
            "n_runs": len(self.report.observations),
            "task_loss": {
                "unit": self.report.unit,
                "forecaster": self.report.forecaster.name,
                "form": self.report.fit.form,
                "params": self.report.params,
            },
            "link": {
                "chance": link.chance,
                "is_chance_known": link.is_chance_known,
                "k": link.fit.params["k"],
                "L_0": link.fit.params["L_0"],
                "noise": link.noise,
                "misfit_logits": link.misfit,
                "signal": link.signal,
                "n_rows": link.n_rows,
            },
            "direct": direct and {"log_A": direct.intercept, "alpha": direct.alpha},
            "predictions": [each.to_dict() for each in self.forecasts],
            "refused": list(self.refusals),
            "warnings": list(self.warnings),
        }


def chain_of(
    task: str,
    report: FitReport,
    link: AccuracyLink,
    direct: DirectLaw | None,
    requests: Sequence[Request],
    *,
    level: float,
    seed: int = 0,
) -> TaskChain:
    """Return the chain of a task with its predictions; none if the task is at chance."""
    forecasts, refusals = [], []
    for request in () if link.is_at_chance else requests:
        try:
            forecasts.append(_forecast(report, link, direct, request, level, seed))
        except ScalelabError as error:
            refusals.append(
                Refusal(asked=request.text, given=error.given, allowed=error.allowed, do=error.do)
            )
    return TaskChain(
        task=task,
        report=report,
        link=link,
        direct=direct,
        level=level,
        forecasts=tuple(forecasts),
        refusals=tuple(refusals),
        warnings=tuple(_warnings(task, link)),
    )


def _forecast(
    report: FitReport,
    link: AccuracyLink,
    direct: DirectLaw | None,
    request: Request,
    level: float,
    seed: int,
) -> TaskForecast:
    loss = report.forecaster_at(level).forecast(request)
    rng = np.random.default_rng(seed)
    drawn = link.draws(_loss_draws(report, loss, rng), rng)
    value = float(link.accuracy(np.array([loss.loss_nats]))[0])
    beside = None
    if direct is not None and loss.flops is not None:
        beside = _interval(direct.accuracy(loss.flops), direct.draws(loss.flops, rng), level)
    return TaskForecast(loss=loss, accuracy=_interval(value, drawn, level), direct=beside)


def _loss_draws(report: FitReport, loss: Forecast, rng: np.random.Generator) -> FloatArray:
    """Return draws of the task loss from the limits of its intervals at several levels."""
    sizes = {"n_params": loss.n_params, "n_tokens": loss.n_tokens}
    at = {name: np.array([size.value]) for name, size in sizes.items() if size is not None}
    places, logs = [0.5], [float(np.log(loss.loss_nats))]
    for level in LEVELS:
        found = report.forecaster.predict(at, level)
        low, high = float(found.low[0]), float(found.high[0])
        if np.isfinite(low) and np.isfinite(high):
            places += [(1 - level) / 2, (1 + level) / 2]
            logs += [float(np.log(low)), float(np.log(high))]
    order = np.argsort(places)
    levels = (np.arange(N_DRAWS) + 0.5) / N_DRAWS
    steps = np.interp(levels, np.array(places)[order], np.maximum.accumulate(np.array(logs)[order]))
    return np.asarray(np.exp(rng.permutation(steps)))


def _interval(value: float, drawn: FloatArray, level: float) -> Interval:
    if not len(drawn):
        return Interval(value=value, low=float("nan"), high=float("nan"))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


def _warnings(task: str, link: AccuracyLink) -> list[FitWarning]:
    out = []
    if link.is_at_chance:
        out.append(
            FitWarning(
                code="at_chance",
                message=(
                    f"The best runs have an accuracy of {_best(link):.3f} on {task}, not clearly "
                    f"above guessing ({link.chance:.3g}). They say nothing yet about the accuracy "
                    "of larger models, so there is no prediction. Train larger models."
                ),
            )
        )
    elif not link.is_chance_known:
        out.append(
            FitWarning(
                code="chance_assumed",
                message=(
                    f"The accuracy of guessing on {task} is not known; {link.chance:.3g} fits "
                    "best. Predictions depend on it. Give it with --chance."
                ),
            )
        )
    return out


def _best(link: AccuracyLink) -> float:
    order = np.argsort(link.task_loss)[:BEST_RUNS]
    return float(link.measured[order].mean())

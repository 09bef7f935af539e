"""The headline of a fit: what to train with ten times the compute, how sound it is, what is next.

The command line, the report and the page show the same one.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalelab.errors import NotIdentifiedError, UsageError
from scalelab.fit.outcome import FitWarning
from scalelab.forecast.allocate import parse_request
from scalelab.forecast.averaged_forecaster import SHOWN_WEIGHT
from scalelab.forecast.extrapolation import fitted_range
from scalelab.forecast.leave_out import outliers_to_exclude, refit_words
from scalelab.forecast.more_runs import AddedBudget, budgets_to_add, of_sweep, plans
from scalelab.forecast.verdict import NOT_IDENTIFIED, verdict_on
from scalelab.units import (
    format_flops,
    format_money,
    format_quantity,
    format_times,
    round_significant,
)

if TYPE_CHECKING:
    from scalelab.fit.intervals import Interval
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.averaged import AveragedFit
    from scalelab.forecast.decision import Candidate
    from scalelab.forecast.fit_report import FitReport
    from scalelab.records.types import Observations

FACTOR = 10.0
"""The headline is about this many times the largest compute."""
TARGET_DIGITS = 2
NOT_STATED = "Whether N includes embeddings is not stated, and the answer depends on it."


@dataclass(frozen=True, kw_only=True, slots=True)
class NextCommand:
    """How the next command selects the same runs and law.

    Attributes
    ----------
    runs : tuple of str
        Options with their values.
    can_decide : bool
        Whether `scalelab decide` has all of them; else the command is `scalelab fit`.
    stored : callable
        The options of a stored sweep by name; None if they are not known.
    """

    runs: tuple[str, ...] = ()
    can_decide: bool = True
    stored: Callable[[str], tuple[str, ...] | None] = lambda name: None


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """What a fit says first.

    Attributes
    ----------
    sentence : str
        N, D and loss at `FACTOR` times the largest compute, or why there is no such answer.
    basis : str
        What the limits in the sentence are, and what predicts; empty without limits.
    verdict : str
        Label of `scalelab.forecast.verdict.verdict_on`.
    warnings : tuple of FitWarning
        What the verdict is based on, most serious first.
    command : tuple of str
        Words of the next command.
    purpose : str
        What that command does.
    flops : float
        The compute that the sentence is about.
    forecast : Forecast or None
    to_add : tuple of AddedBudget
        Runs to add: the sizes that budgets lack, then those that would narrow the forecast.
    outliers : tuple of str
        Runs, or lines of a table, that a warning names and that can be left out.
    refit : tuple of str
        Words of the command that fits without them; none without outliers.
    """

    sentence: str
    basis: str
    verdict: str
    warnings: tuple[FitWarning, ...]
    command: tuple[str, ...]
    purpose: str
    flops: float
    forecast: Forecast | None
    to_add: tuple[AddedBudget, ...] = ()
    outliers: tuple[str, ...] = ()
    refit: tuple[str, ...] = ()

    @property
    def is_apart(self) -> bool:
        """True if the next command is none of those that plan the runs to add."""
        planned = plans(self.to_add) if self.to_add else ()
        return all(self.command != each.command for _, rows in planned for each in rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the headline as in the JSON of ``scalelab fit``."""
        return {
            "sentence": self.sentence,
            "verdict": self.verdict,
            "warnings": [each.code for each in self.warnings],
            "next": shlex.join(self.command),
            "without_outliers": shlex.join(self.refit) or None,
            "prediction": self.forecast and self.forecast.to_dict(),
            "runs_to_add": [each.to_dict() for each in self.to_add],
        }


def next_compute(rows: Observations) -> float:
    """Return `FACTOR` times the largest compute, in FLOPs of two significant digits."""
    return round_significant(FACTOR * fitted_range(rows).flops, TARGET_DIGITS)


def distance(rows: Observations, flops: float) -> str:
    """Return how far a compute is from the runs, such as ``10x your largest budget``."""
    span = fitted_range(rows)
    if flops > span.flops:
        return f"{format_times(flops / span.flops)} your largest {span.largest}"
    if flops < span.least_flops:
        return f"{format_times(span.least_flops / flops)} below your smallest run"
    return "within the compute of your runs"


def sentence_of(rows: Observations, forecast: Forecast) -> str:
    """Return a forecast as a sentence: compute, distance, N, D and loss, with their intervals."""
    n, d = forecast.n_params, forecast.n_tokens
    parts = []
    if n is not None:
        parts.append(f"{size_words(n)} parameters")
    if d is not None:
        parts.append(f"{size_words(d)} tokens")
    what = " on ".join(parts)
    if forecast.flops is None:
        start = forecast.asked
    else:
        start = f"{format_flops(forecast.flops)} FLOP ({distance(rows, forecast.flops)})"
    loss = loss_words(forecast.loss_nats, forecast.pred_low, forecast.pred_high)
    metric = rows.metric
    return f"With {start}: {what}{', ' if what else ''}{metric.label} {loss} {metric.unit}."


def decision_sentence(
    best: Candidate,
    rows: Observations | None,
    label: str,
    unit: str,
    optimum: Forecast | None = None,
) -> str:
    """Return the best candidate of a decision as a sentence, with the interval of a new run.

    Parameters
    ----------
    best : Candidate
    rows : Observations or None
        The fitted rows; None if they are not known.
    label, unit : str
        Name and unit of the loss.
    optimum : Forecast, optional
        Compute-optimal N and D at the compute of the best, if it has these.
    """
    where = "" if rows is None else f" ({distance(rows, best.flops)})"
    is_mixture = best.n_stored > best.n_params
    size = f" active of {format_quantity(best.n_stored)}" if is_mixture else ""
    n, d = (None, None) if optimum is None else (optimum.n_params, optimum.n_tokens)
    loss = loss_words(best.loss_nats, best.pred_low, best.pred_high)
    return (
        f"With {format_flops(best.flops)} FLOP{where}: {format_quantity(best.n_params)}{size}"
        f"{limits_words(n)} parameters on {format_quantity(best.n_tokens)}{limits_words(d)} "
        f"tokens, {label} {loss} {unit}, "
        f"{format_money(best.costs['usd'] or 0.0)}."
    )


def size_words(size: Interval) -> str:
    """Return N or D with its limits in brackets, if it has any."""
    return f"{format_quantity(size.value)}{limits_words(size)}"


def limits_words(size: Interval | None) -> str:
    """Return the limits of N or D in brackets after a space; empty if there are none."""
    if size is None or not math.isfinite(size.low + size.high) or size.low == size.high:
        return ""
    return f" [{format_quantity(size.low)}, {format_quantity(size.high)}]"


def loss_words(loss: float, low: float | None, high: float | None) -> str:
    """Return a loss with its limits in brackets, in digits that show their distance."""
    if low is None or high is None or not math.isfinite(low + high):
        return f"{loss:.3f}"
    width = high - low
    digits = 3 if not 0 < width < 0.02 else min(6, 1 - math.floor(math.log10(width)))
    return f"{loss:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def headline(
    report: FitReport, command: NextCommand | None = None, forecast: Forecast | None = None
) -> Headline:
    """Return the headline of a fit.

    Parameters
    ----------
    report : FitReport
    command : NextCommand, optional
        How the next command selects the same runs and law.
    forecast : Forecast, optional
        Answer to the user's question; default: the first that was asked of the fit, or else the
        one at `next_compute`.
    """
    rows = report.observations
    flops = next_compute(rows)
    forecast = forecast or next(iter(report.forecasts), None)
    # Rows without N, D or C have no compute, and their law no compute-optimal N and D.
    has_split, why = math.isfinite(flops), ""
    if forecast is not None and forecast.flops is not None:
        flops = forecast.flops
    if not report.has_answer:
        why = "No answer: these rows do not determine the law."
    elif forecast is None and has_split:
        try:
            forecast = report.forecaster.forecast(parse_request(f"C={format_flops(flops)}"))
        except NotIdentifiedError as error:
            # The message begins with the question, in the words of the command line.
            reason = error.given.partition(": ")[2] or error.given
            why = f"No answer at {format_flops(flops)} FLOP: {reason}. {error.do}"
        except UsageError:
            has_split = False
    verdict = verdict_on(report.warnings, forecast=forecast, has_answer=not why)
    if not has_split:
        form = report.fit.form
        why = f"The {form} law has no compute-optimal N and D: --predict asks for a model."
    needs_runs = verdict.label == NOT_IDENTIFIED or verdict.has("wide_optimum")
    command = command or NextCommand()
    found = runs_to_add(report, forecast) if has_split else ()
    added = of_sweep(found, command.runs, command.stored)
    if needs_runs and math.isfinite(flops):
        repairs = [each for each in added if each.is_repair]
        words = repairs[0].command if repairs else more_runs(next_compute(rows))
        purpose = "plans runs that would determine the optimum"
    elif not has_split:
        words, purpose = ("scalelab", "fit", *command.runs, "-v"), "prints the parameters too"
    else:
        words, purpose = _next(command, flops)
    outliers = outliers_to_exclude(verdict.warnings, len(rows))
    return Headline(
        sentence=why if forecast is None else answer_sentence(report, forecast),
        basis="" if forecast is None else answer_basis(report, forecast),
        verdict=verdict.label,
        warnings=verdict.warnings,
        command=words,
        purpose=purpose,
        flops=flops,
        forecast=forecast,
        to_add=added,
        outliers=outliers,
        refit=refit_words(command.runs, outliers),
    )


def runs_to_add(report: FitReport, forecast: Forecast | None) -> tuple[AddedBudget, ...]:
    """Return the sizes that budgets lack, then budgets that would narrow a forecast.

    Without a frontier there are no larger budgets: the runs show no optimum for their sizes.
    """
    averaged = report.averaged if report.frontier else None
    return budgets_to_add(averaged, report.observations, report.isoflop, forecast)


def basis_words(by: str, level: float | None, forecast: Forecast | None = None) -> str:
    """Return what the limits of a sentence are, and what predicts, such as ``by the average``.

    The limits of the loss are those of a new run: that is the loss which somebody will see. Those
    of N and D, if the forecast has any, are of the compute-optimal choice.
    """
    if level is None:
        return f"{by[0].upper()}{by[1:]}, without intervals."
    sizes = () if forecast is None else (forecast.n_params, forecast.n_tokens)
    names = [name for name, size in zip("ND", sizes, strict=False) if limits_words(size)]
    more = f"{100 * level:g} % confidence intervals of {' and '.join(names)}, " if names else ""
    return f"In brackets: {more}{100 * level:g} % prediction interval of a new run, {by}."


def laws_words(averaged: AveragedFit) -> str:
    """Return the laws of an average with their weights, such as ``chinchilla 0.81, tied 0.19``."""
    shown = (f"{name} {w:.2f}" for name, w in averaged.weights.items() if w >= SHOWN_WEIGHT)
    return ", ".join(shown)


def laws_sentence(averaged: AveragedFit | None) -> str:
    """Return which laws the average is made of, with their weights; empty without an average."""
    return "" if averaged is None else f"Laws of the average: {laws_words(averaged)}."


def answer_sentence(report: FitReport, forecast: Forecast) -> str:
    """Return the sentence of an answer, and how N grows with compute."""
    return sentence_of(report.observations, forecast) + _growth(report)


def answer_basis(report: FitReport, forecast: Forecast) -> str:
    """Return what the limits of an answer are, and what predicts."""
    has_limits = math.isfinite(forecast.pred_low + forecast.pred_high)
    level = forecast.level if has_limits else None
    found = basis_words(f"by the {report.forecaster.label}", level, forecast)
    is_unstated = any(each.code == "unstated_count" for each in report.warnings)
    return f"{found} {NOT_STATED}" if is_unstated else found


def exponents(report: FitReport) -> tuple[Interval, Interval] | None:
    """Return a and b of what answers: local at the largest compute for the average."""
    if report.frontier:
        return report.frontier[0].a, report.frontier[0].b
    a, b = report.derived.get("a"), report.derived.get("b")
    if report.averaged is not None or a is None or b is None or not math.isfinite(a.value):
        return None
    return a, b


def _growth(report: FitReport) -> str:
    found = exponents(report)
    if found is None:
        return ""
    factor = FACTOR ** found[0].value
    return f" Every {FACTOR:g}x compute wants {format_quantity(factor, 2)}x N."


def more_runs(flops: float) -> tuple[str, ...]:
    """Return the command that plans a decade of budgets up to a third of this compute."""
    low, high = (format_flops(round_significant(flops / by, 1)) for by in (30, 3))
    return "scalelab", "sweep", "isoflop", "--budgets", f"{low}..{high}", "--dry-run"


def _next(given: NextCommand, flops: float) -> tuple[tuple[str, ...], str]:
    """Return the words of the next command and what it does."""
    if given.can_decide:
        words = ("scalelab", "decide", *given.runs, "--flops", format_flops(flops))
        return words, "compare models for this compute, with their costs"
    words = ("scalelab", "fit", *given.runs, "--predict", f"C={format_flops(FACTOR * flops)}")
    return words, "predict a larger run"

"""The page that ``scalelab fit`` prints: first the answer, then its basis, then warnings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.cli.fit_tables import (
    DIM_STYLE,
    approaches,
    candidates,
    forecasts,
    frontier,
    is_identified,
    level_text,
    parameters,
)
from scalelab.cli.interval_text import (
    exponent_text,
    limits,
    loss_text,
    span_text,
    target_text,
)
from scalelab.cli.layout import Fitting
from scalelab.cli.output import runnable
from scalelab.units import format_flops, format_quantity, plural

if TYPE_CHECKING:
    from rich.console import Console

    from scalelab.fit.outcome import FitWarning
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.averaged import AveragedFit
    from scalelab.forecast.fit_report import FitReport

ANSWER_STYLE = "bold"
WARNING_STYLE = "yellow"
PREDICT = "--predict"
NEW_RUN = "prediction interval of a new run"
LEFT_OUT = ("rejected_rows", "unfinished_runs")
IN_FIRST_LINE = (*LEFT_OUT, "not_identified", "no_interval", "extrapolation")
NOT_GRAVE = (*IN_FIRST_LINE, "approach_", "derived_", "edge_minimum", "off_centre", "drifting")
"""Codes that the first line already includes, or that concern approaches 1 and 2 only."""


def print_page(report: FitReport, out: Console, plot: Path | None) -> None:
    """Print the whole page.

    Parameters
    ----------
    report : FitReport
    out : Console
    plot : Path or None
        The figure that was written.
    """
    # A terminal wraps at words; a pipe gets each sentence on one line.
    is_piped = not out.is_terminal
    first = print_headline(report, out)
    out.print()
    out.print(_ground(report), style=DIM_STYLE, soft_wrap=is_piped)
    out.print()
    out.print(Fitting(parameters(report)))
    out.print(Fitting(approaches(report)))
    if report.frontier:
        out.print(Fitting(frontier(report)))
    if len(report.forecasts) > 1 or any(f.n_params and f.n_tokens for f in report.forecasts):
        out.print(Fitting(forecasts(report)))
    for line in _scores(report):
        out.print(line, soft_wrap=is_piped)
    if report.comparison is not None:
        out.print(Fitting(candidates(report)))
        out.print(report.comparison.verdict, soft_wrap=is_piped)
    print_warnings([w for w in report.warnings if w is not first], out)
    if plot is not None:
        out.print()
        out.print(f"figure: {plot}", style=DIM_STYLE, soft_wrap=is_piped)


def print_headline(report: FitReport, out: Console) -> FitWarning | None:
    """Print the number of rows used, the answer and the gravest warning; return that warning."""
    held = report.holdout.n_rows if report.holdout is not None else 0
    used = rows_used(report.fit.n_rows + held, report.warnings) + without_intervals(
        report.answer_warnings
    )
    if report.forecasts or report.refusals:
        lead = " ".join([*_saving(report), ""]).lstrip()
        print_answers(report, used + lead, out)
    else:
        for line in _headline(report):
            out.print(used + line, style=ANSWER_STYLE, soft_wrap=not out.is_terminal)
            used = ""
    return print_gravest(report.warnings, out)


def print_answers(report: FitReport, used: str, out: Console) -> None:
    """Print the answer to each question with that of the law beside it, then the refusals.

    ``used`` begins the first line.
    """
    is_piped = not out.is_terminal
    label = report.forecaster.label
    for i, forecast in enumerate(report.forecasts):
        line = answer(forecast, report.fit.law.target, label)
        out.print(used + line, style=ANSWER_STYLE, soft_wrap=is_piped)
        used = ""
        if report.law_forecasts:
            line = _beside(report, forecast, report.law_forecasts[i])
            out.print(line, style=DIM_STYLE, soft_wrap=is_piped)
    for refusal in report.refusals:
        given = refusal.given.replace(f"{PREDICT} ", "", 1)
        line = f"No answer to {given}. {refusal.do}"
        if report.averaged is None:
            line = f"Not identified: {_reason(report)}".rstrip()
        out.print(used + line, style=ANSWER_STYLE, soft_wrap=is_piped)
        used = ""
        if report.averaged is None:
            break


def _beside(report: FitReport, forecast: Forecast, law: Forecast | None) -> str:
    """Return the answer of the law in one line."""
    name = f"The {report.fit.form} law alone"
    if law is None:
        why = "it is not identified" if not is_identified(report) else "no finite value"
        return f"{name}: no answer ({why})."
    difference = 100 * (law.loss_nats / forecast.loss_nats - 1)
    span = limits(law.pred_low, law.pred_high, f"{100 * law.level:g} % {NEW_RUN}")
    return f"{name}: loss {loss_text(law.loss_nats)}{span} ({difference:+.2f} %)."


def forms_text(averaged: AveragedFit) -> str:
    """Return the forms of an average with their weights."""
    from scalelab.forecast.forecaster import SHOWN_WEIGHT

    shown = (f"{name} {w:.2f}" for name, w in averaged.weights.items() if w >= SHOWN_WEIGHT)
    return ", ".join(shown)


def rows_used(n_used: int, warnings: Sequence[FitWarning]) -> str:
    """Return ``15 of 20 rows used. ``, or nothing when every row is used."""
    left_out = 0
    for warning in warnings:
        # These messages begin with the number of rows or runs that were left out.
        if warning.code in LEFT_OUT and (found := re.match(r"[\d,]+", warning.message)):
            left_out += int(found[0].replace(",", ""))
    return f"{n_used:,} of {n_used + left_out:,} rows used. " if left_out else ""


def without_intervals(warnings: Sequence[FitWarning]) -> str:
    """Return ``No intervals: `` and the reason, or nothing when there are intervals."""
    for warning in warnings:
        if warning.code == "no_interval":
            reason = warning.message.split(". ")[0]
            return f"No intervals: {reason[0].lower()}{reason[1:]}. "
    return ""


def print_gravest(warnings: Sequence[FitWarning], out: Console) -> FitWarning | None:
    """Print and return the gravest warning that the first line does not already include."""
    first = next((w for w in warnings if not w.code.startswith(NOT_GRAVE)), None)
    if first is not None:
        _print_warning(first, out)
    return first


def print_warnings(warnings: Sequence[FitWarning], out: Console) -> None:
    """Print each warning as a paragraph, its code first."""
    for warning in warnings:
        # The first line gives the one; the table of approaches shows the others.
        if warning.code == "not_identified" or warning.code.startswith("approach_"):
            continue
        out.print()
        _print_warning(warning, out)


def _print_warning(warning: FitWarning, out: Console) -> None:
    from rich.text import Text

    code = Text(f"{warning.code.replace('_', ' ')}: ", style=WARNING_STYLE)
    out.print(code + Text(runnable(warning.message)), soft_wrap=not out.is_terminal)


def answer(forecast: Forecast, target: str, label: str) -> str:
    """Return one forecast as a sentence that names its forecaster; far extrapolation first."""
    distance = ""
    if forecast.extrapolation is not None:
        times = format_quantity(forecast.extrapolation)
        if forecast.outside_range:
            distance = f"Extrapolation: {', '.join(forecast.outside_range)}. "
        elif forecast.extrapolation > 1:
            distance = f" This is {times} times the FLOPs of the largest run."
        else:
            distance = " This is within the FLOPs of the runs."
    level = f"{100 * forecast.level:g} %"
    loss = (
        f"{target_text(target)} {loss_text(forecast.loss_nats)}"
        f"{limits(forecast.low, forecast.high, f'{level} confidence interval')}"
        f"{limits(forecast.pred_low, forecast.pred_high, f'{level} {NEW_RUN}')}"
    )
    sentence = f"By the {label}, {_describe(forecast)}: {loss}."
    return distance + sentence if forecast.outside_range else sentence + distance


def _headline(report: FitReport) -> Iterator[str]:
    if not is_identified(report):
        yield f"Not identified: {_reason(report)}".rstrip()
        return
    if report.speedup is not None:
        yield from _saving(report)
        return
    level = f" ({level_text(report)}s)"
    a, b = report.derived.get("a"), report.derived.get("b")
    if report.frontier:
        near = report.frontier[0]
        yield (
            f"By the {report.forecaster.label}, compute-optimal N grows as "
            f"C^{exponent_text(near.a)}, D as C^{exponent_text(near.b)} around "
            f"C = {format_flops(near.flops)}{level}."
        )
        if a is not None and math.isfinite(a.value):
            yield f"The {report.fit.form} law alone: N as C^{exponent_text(a)}."
        return
    if a is None or b is None:
        yield f"The form {report.fit.form} is fitted to {plural(report.fit.n_rows, 'run')}."
        return
    yield (
        f"Compute-optimal N grows as C^{exponent_text(a)}, D as C^{exponent_text(b)}"
        f"{level if math.isfinite(a.low) else ''}."
    )


def _reason(report: FitReport) -> str:
    """Return why the law is not identified."""
    reason = next((w.message for w in report.warnings if w.code == "not_identified"), "")
    return f"these rows do not determine the law. {reason}".rstrip()


def _ground(report: FitReport) -> str:
    fit, rows = report.fit, report.observations
    objective = fit.objective
    delta = (
        f"(delta = {objective.threshold:g})" if objective.loss in ("huber", "likelihood") else ""
    )
    if fit.bootstrap.refits == "posterior":
        replicates = plural(fit.bootstrap.k, "posterior draw")
    elif fit.bootstrap.k:
        replicates = (
            f"{plural(fit.bootstrap.k, f'{fit.bootstrap.method} bootstrap replicate')}"
            f"{' with efficient refits' if fit.bootstrap.refits == 'efficient' else ''}, "
            f"{fit.bootstrap.failed} failed"
        )
    else:
        replicates = "none"
    clusters = (
        f" of {plural(fit.bootstrap.n_clusters, 'cluster')}"
        if fit.bootstrap.n_clusters is not None and fit.bootstrap.k
        else ""
    )
    intervals = f"Intervals: {replicates}{clusters}, seed {fit.bootstrap.seed}."
    if not is_identified(report):
        intervals = "No intervals: the rows do not determine these values."
    averaged = ""
    if report.averaged is not None:
        averaged = f"Forecasts: average of {forms_text(report.averaged)}. "
    return (
        f"{plural(fit.n_rows, 'run')} from {rows.source}. Law: {fit.form}. Objective: "
        f"{objective.loss}{delta} on {objective.residual} loss, minimum {fit.value:.8g}. "
        f"{intervals} Law status: {fit.status}. {averaged}"
        f"Counting: N {rows.param_convention}, FLOPs {rows.flop_convention}; forecasts use "
        "C = 6 N D."
    )


def _scores(report: FitReport) -> Iterator[str]:
    held = report.holdout
    if held is not None:
        yield (
            f"Held out: {plural(held.n_rows, 'row')}, mean error "
            f"{100 * held.mean_relative_error:.2f} %, largest error "
            f"{100 * held.max_relative_error:.2f} %. {held.covered} of {held.n_rows} are inside "
            f"their {100 * held.level:g} % prediction interval (mean width {held.mean_width:.3g})."
        )


def _saving(report: FitReport) -> Iterator[str]:
    speed = report.speedup
    if speed is None:
        return
    factor = speed.factor
    if factor.value >= 1:
        words = f"reaches the loss of recipe A with 1/{factor.value:.3g} of the compute"
    else:
        words = f"needs {1 / factor.value:.3g} times the compute of recipe A for the same loss"
    yield (
        f"Recipe B {words} (speed-up {factor.value:.3g}{span_text(factor, 3)}"
        f"{f', {level_text(report)}' if math.isfinite(factor.low) else ''}): its reducible "
        "loss is "
        f"{speed.reducible_ratio.value:.4g} times that of A. {plural(speed.n_rows_a, 'run')} of A, "
        f"{speed.n_rows_b:,} of B."
    )


def _describe(forecast: Forecast) -> str:
    n, d = forecast.n_params, forecast.n_tokens
    if n is None or d is None:
        return forecast.asked
    sizes = f"N {format_quantity(n.value)} on D {format_quantity(d.value)}"
    return f"{sizes} ({forecast.allocation})"

"""The page that ``scalelab fit`` prints: first the answer, then its basis, then warnings."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.cli.fit_tables import (
    DIM_STYLE,
    approaches,
    candidates,
    disagreement_text,
    forecasts,
    frontier,
    is_identified,
    level_text,
    parameters,
    runs_to_add,
)
from scalelab.cli.interval_text import (
    exponent_text,
    limits,
    loss_text,
    span_text,
)
from scalelab.cli.layout import Fitting
from scalelab.cli.options import given_options
from scalelab.cli.output import WARNING_STYLE, runnable, say, verbatim
from scalelab.fit.apart import apart_words
from scalelab.forecast.headline import (
    NextCommand,
    exponents,
    laws_words,
)
from scalelab.forecast.leave_out import refit_sentence
from scalelab.forecast.more_runs import plans
from scalelab.forecast.verdict import NOT_IDENTIFIED, SOUND, WITH_WARNINGS, Verdict
from scalelab.units import format_flops, format_quantity, plural

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from scalelab.fit.outcome import FitWarning
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.fit_report import FitReport
    from scalelab.forecast.headline import Headline
    from scalelab.forecast.more_runs import AddedBudget

ANSWER_STYLE = "bold"
VERDICT_STYLES = {SOUND: "green", WITH_WARNINGS: WARNING_STYLE, NOT_IDENTIFIED: "bold red"}
PREDICT = "--predict"
NEW_RUN = "prediction interval of a new run"
DECIDES = (
    *("from_file", "sweep", "holdout", "form", "level", "forecaster", "results", "mapping"),
    *("metric", "exclude"),
)
"""Options of the runs and of the law that `scalelab decide` has too."""
SELECTS = (
    *("where", "format", "loss_unit", "include_unfinished", "best_of", "mean_of", "last_of"),
    *("residual", "loss", "delta", "overprediction", "weight", "param_convention", "cluster"),
)
"""Further options that change the answer."""
LEFT_OUT = ("rejected_rows", "unfinished_runs", "no_metric")
"""Codes that the first line already includes."""


def next_command(context: typer.Context) -> NextCommand:
    """Return the command that asks about larger runs from the same runs and law."""
    given = given_options(context)
    words = []
    for name, flag in given.items():
        value = context.params[name]
        if name not in (*DECIDES, *SELECTS):
            continue
        for each in value if isinstance(value, (list, tuple)) else (value,):
            words += [flag] if each is True else [flag, str(each)]
    return NextCommand(
        runs=tuple(words),
        can_decide=not set(given) & set(SELECTS),
        stored=partial(_stored_words, context.params["results"]),
    )


def _stored_words(results: Path, sweep: str) -> tuple[str, ...] | None:
    from scalelab.records.sweep_words import sweep_words  # only the runs of a sweep need it

    return sweep_words(results, sweep)


def print_page(
    report: FitReport, head: Headline, out: Console, plot: Path | None = None, *, details: bool
) -> None:
    """Print the whole page.

    Parameters
    ----------
    report : FitReport
    head : Headline
    out : Console
    plot : Path or None
        The figure that was written.
    details : bool
        Whether to print the methods and the parameters too.
    """
    # A terminal wraps at words; a pipe gets each sentence on one line.
    print_headline(report, head, out)
    lines = list(_exponents(report))
    if lines:
        out.print()
    for line in lines:
        say(line, out)
    out.print(Fitting(approaches(report)))
    if words := disagreement_text(report):
        say(words, out)
    for words in apart_words(report.warnings):
        say(words, out)
    if report.frontier:
        out.print(Fitting(frontier(report)))
    if len(report.forecasts) > 1 or any(f.n_params and f.n_tokens for f in report.forecasts):
        out.print(Fitting(forecasts(report)))
    for line in _scores(report):
        say(line, out)
    if report.comparison is not None:
        out.print(Fitting(candidates(report)))
        say(report.comparison.verdict, out)
    if details:
        out.print()
        say(_ground(report), out)
        out.print(Fitting(parameters(report)))
    if head.to_add:
        print_runs_to_add(head.to_add, report.level, out)
    out.print()
    if plot is not None:
        say(f"Figure: {plot}", out)
    if head.is_apart:
        print_next(head, out)
    if not details:
        laws = "the laws of the average, " if report.averaged is not None else ""
        say(
            f"The same command with -v prints {laws}parameters and methods too.",
            out,
            style=DIM_STYLE,
        )


def print_headline(report: FitReport, head: Headline, out: Console) -> None:
    """Print the rows used, the answer, and the verdict with its warnings."""
    held = report.holdout.n_rows if report.holdout is not None else 0
    used = rows_used(report.fit.n_rows + held, report.warnings) + without_intervals(
        report.answer_warnings
    )
    lead, basis = " ".join([*_saving(report), ""]).lstrip(), ""
    if report.forecasts or report.refusals:
        print_answers(report, used + lead, out)
    else:
        say(used + lead + head.sentence, out, style=ANSWER_STYLE)
        basis = f" {head.basis}".rstrip()
    runs = f"{plural(report.fit.n_rows, 'run')} from {report.observations.source}."
    say(f"{runs}{basis}", out, style=DIM_STYLE)
    print_verdict(Verdict(label=head.verdict, warnings=head.warnings), out)
    if head.refit:
        say(refit_sentence(head.outliers), out)
        verbatim(f"  {runnable(shlex.join(head.refit))}", out)


def print_verdict(verdict: Verdict, out: Console) -> None:
    """Print a verdict and the warnings that it is based on, most serious first."""
    out.print()
    say(f"Verdict: {verdict.label}.", out, style=VERDICT_STYLES[verdict.label])
    for warning in verdict.warnings:
        _print_warning(warning, out)


def print_runs_to_add(added: tuple[AddedBudget, ...], level: float, out: Console) -> None:
    """Print the runs to add, of at least one budget, and how to plan those that come first."""
    out.print(Fitting(runs_to_add(added, level)))
    for words, rows in plans(added):
        say(words, out)
        for each in rows:
            verbatim(f"  {runnable(shlex.join(each.command))}", out)


def print_next(head: Headline, out: Console) -> None:
    """Print the next command, with what it does as a comment."""
    command, comment = runnable(f"Next: {shlex.join(head.command)}"), f"# {head.purpose}"
    if out.is_terminal and len(command) + 2 + len(comment) > out.width:
        verbatim(command, out)
        verbatim(f"      {comment}", out, style=DIM_STYLE)
    else:
        verbatim(f"{command}  {comment}", out)


def print_answers(report: FitReport, used: str, out: Console) -> None:
    """Print the answer to each question with that of the law beside it, then the refusals.

    ``used`` begins the first line.
    """
    label = report.forecaster.label
    for i, forecast in enumerate(report.forecasts):
        line = answer(forecast, label, report.label, report.unit)
        say(used + line, out, style=ANSWER_STYLE)
        used = ""
        if report.law_forecasts:
            line = _beside(report, forecast, report.law_forecasts[i])
            say(line, out, style=DIM_STYLE)
    for refusal in report.refusals:
        given = refusal.given.replace(f"{PREDICT} ", "", 1)
        line = f"No answer to {given}. {refusal.do}"
        if report.averaged is None:
            line = "No answer: these rows do not determine the law."
        say(used + line, out, style=ANSWER_STYLE)
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
    value = loss_text(law.loss_nats, report.unit)
    return f"{name}: {report.label} {value}{span} ({difference:+.2f} %)."


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


def _print_warning(warning: FitWarning, out: Console) -> None:
    from rich.text import Text

    code = Text(f"{warning.code.replace('_', ' ')}: ", style=WARNING_STYLE)
    say(code + Text(runnable(warning.message)), out, indent=2)


def answer(forecast: Forecast, by: str, target: str, unit: str) -> str:
    """Return one forecast as a sentence; far extrapolation first.

    Parameters
    ----------
    forecast : Forecast
    by : str
        Name of the forecaster.
    target, unit : str
        Name and unit of what is predicted.
    """
    distance = f" {forecast.distance}".rstrip()
    if forecast.outside_range:
        distance = f"Extrapolation: {', '.join(forecast.outside_range)}. "
    level = f"{100 * forecast.level:g} %"
    loss = (
        f"{target} {loss_text(forecast.loss_nats, unit)}"
        f"{limits(forecast.low, forecast.high, f'{level} confidence interval')}"
        f"{limits(forecast.pred_low, forecast.pred_high, f'{level} {NEW_RUN}')}"
    )
    sentence = f"By the {by}, {_describe(forecast)}: {loss}."
    return distance + sentence if forecast.outside_range else sentence + distance


def _exponents(report: FitReport) -> Iterator[str]:
    """Yield the exponents of what answers, then those of the law."""
    found, law = exponents(report), report.derived.get("a")
    level = f" ({level_text(report)}s)"
    if report.frontier:
        near = report.frontier[0]
        yield (
            f"By the {report.forecaster.label}, compute-optimal N grows as "
            f"C^{exponent_text(near.a)}, D as C^{exponent_text(near.b)} around "
            f"C = {format_flops(near.flops)}{level}."
        )
        if law is not None and math.isfinite(law.value) and is_identified(report):
            yield f"The {report.fit.form} law alone: N as C^{exponent_text(law)}."
    elif found is not None and is_identified(report):
        a, b = found
        yield (
            f"Compute-optimal N grows as C^{exponent_text(a)}, D as C^{exponent_text(b)}"
            f"{level if math.isfinite(a.low) else ''}."
        )
    elif is_identified(report):
        yield f"The form {report.fit.form} is fitted to {plural(report.fit.n_rows, 'run')}."


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
        averaged = f"Forecasts: average of {laws_words(report.averaged)}. "
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
        inside = (
            f"{held.covered} of {held.n_intervals} are inside their {100 * held.level:g} % "
            f"prediction interval (mean width {held.mean_width:.3g})."
        )
        yield (
            f"Held out: {plural(held.n_rows, 'row')}, mean error "
            f"{100 * held.mean_relative_error:.2f} %, largest error "
            f"{100 * held.max_relative_error:.2f} %. "
            f"{inside if held.n_intervals else 'They have no prediction intervals.'}"
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

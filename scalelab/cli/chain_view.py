"""Output of ``scalelab fit --metric task:NAME --chain``."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.cli.fit_tables import DIM_STYLE
from scalelab.cli.interval_text import loss_text
from scalelab.cli.layout import Fitting, number_table
from scalelab.cli.output import console, emit_json, say, warn_here
from scalelab.errors import EXIT_OK, NotIdentifiedError, UsageError
from scalelab.units import format_flops, format_quantity, plural

if TYPE_CHECKING:
    from rich.console import Console

    from scalelab.api.chains import ChainReport
    from scalelab.fit.intervals import Interval
    from scalelab.forecast.chain import TaskForecast

REFUSED = ("holdout", "compare", "speedup", "as_tex")
"""Options of ``fit`` that have no meaning for a chain."""
EXAMPLE = "Write for example --metric task:hellaswag --chain, or --metric task:all --chain."


def run_chain(
    given: Mapping[str, str],
    from_file: Path | None,
    *,
    metric: str | None,
    chance: float | None,
    predict: Sequence[str],
    plot: Path | None,
    details: bool,
    as_json: bool,
    as_csv: bool,
    options: dict[str, Any],
) -> int:
    """Fit the chains, print them as a page, JSON or CSV, and return the exit code."""
    from scalelab.api.chains import fit_chain

    tasks = _tasks(given, metric)
    report = fit_chain(
        from_file,
        tasks=tasks,
        chance=chance,
        predict=list(predict),
        **{**options, "reading": replace(options["reading"], metric=None)},
    )
    if plot is not None:
        from scalelab.report.chain_plot import chain_figure
        from scalelab.report.plots import write_figure

        write_figure(lambda: chain_figure(report.chains), plot)
    if as_json:
        emit_json(report.to_dict())
    elif as_csv:
        sys.stdout.write(_csv(report))
    else:
        _print_page(report, console(), plot, details=details)
    is_answered = any(each.status == "ok" for each in report.chains)
    return EXIT_OK if is_answered or not predict else NotIdentifiedError.exit_code


def _tasks(given: Mapping[str, str], metric: str | None) -> list[str]:
    from scalelab.records.metric import TASK, parse_metric

    if "chain" not in given:
        raise UsageError("--chance without --chain", "--chain with it", "Add --chain.")
    if wrong := [given[name] for name in REFUSED if name in given]:
        raise UsageError(
            f"--chain with {', '.join(wrong)}",
            "options of the runs, the task loss, predictions and output",
            f"Remove {', '.join(wrong)}.",
        )
    if metric is None:
        raise UsageError("--chain without a task", "--metric task:NAME", EXAMPLE)
    terms = parse_metric(metric).terms
    if not terms or any(term.kind != TASK for term in terms):
        raise UsageError(f"--chain with --metric {metric}", "--metric task:NAME", EXAMPLE)
    return [term.name for term in terms]


def _print_page(report: ChainReport, out: Console, plot: Path | None, *, details: bool) -> None:
    level = report.chains[0].level
    asked = [each for chain in report.chains for each in (*chain.forecasts, *chain.refusals)]
    say(
        f"Task loss and accuracy of {plural(len(report.chains), 'task')} in {report.source}. "
        f"In brackets: {100 * level:g} % intervals through both steps.",
        out,
    )
    out.print()
    if any(chain.forecasts or chain.status == "at_chance" for chain in report.chains):
        table = number_table(
            *("task", "run", "N", "D", "FLOPs", "task loss, bits/byte", "accuracy"),
            "direct law of compute",
            texts=("task", "run"),
        )
        for chain in report.chains:
            for forecast in chain.forecasts:
                table.add_row(chain.task, *_cells(forecast))
            if chain.status == "at_chance":
                table.add_row(chain.task, "all", "", "", "", "", "at chance: no prediction", "")
        out.print(Fitting(table))
        out.print()
    table = number_table(
        *("task", "runs", "rows of accuracy", "guessing", "k, per bit/byte", "L_0, bits/byte"),
        *("noise", "error if the largest are left out"),
        texts=("task",),
        title="Accuracy = guessing + (1 - guessing) / (1 + exp(k (task loss - L_0)))",
    )
    for chain in report.chains:
        link = chain.link
        table.add_row(
            chain.task,
            f"{len(chain.report.observations):,}",
            f"{link.n_rows:,}",
            f"{link.chance:.3g}",
            f"{link.fit.params['k']:.4g}",
            f"{link.fit.params['L_0']:.4g}",
            f"{link.noise:.4f}",
            "-" if math.isnan(link.misfit) else f"{link.misfit:.2f} logits",
        )
    out.print(Fitting(table))
    if details:
        out.print()
        table = number_table(
            "task", "parameter of the task loss", "value", texts=("task", "parameter of the task "
            "loss"), title="Law of the task loss (predictions average several forms)",
        )  # fmt: skip
        for chain in report.chains:
            for name, value in chain.report.fit.params.items():
                table.add_row(chain.task, name, f"{value:.6g}")
        out.print(Fitting(table))
    _print_notes(report, out)
    if plot is not None:
        say(f"Figure: {plot}", out)
    if not asked and any(chain.status == "ok" for chain in report.chains):
        say("Next: predict a run, for example with --predict N=7e9,D=2e12", out)


def _print_notes(report: ChainReport, out: Console) -> None:
    for chain in report.chains:
        for warning in chain.warnings:
            warn_here(warning.message, out)
        for refusal in chain.refusals:
            warn_here(f"No prediction of {chain.task} for {refusal.given}. {refusal.do}", out)
    far = max(
        (f.loss.extrapolation or 1.0 for chain in report.chains for f in chain.forecasts),
        default=1.0,
    )
    if far > 1:
        say(f"The largest request is {far:.3g} times the compute of the largest run.", out,
            style=DIM_STYLE)  # fmt: skip
    for task, error in report.failed.items():
        warn_here(f"{task} was not fitted: {error.given}. {error.do}", out)


def _cells(forecast: TaskForecast) -> tuple[str, ...]:
    loss = forecast.loss
    sizes = (loss.n_params, loss.n_tokens)
    return (
        loss.asked,
        *("-" if size is None else format_quantity(size.value) for size in sizes),
        "-" if loss.flops is None else format_flops(loss.flops),
        f"{loss_text(loss.loss_nats)} [{loss_text(loss.low)}, {loss_text(loss.high)}]",
        _share(forecast.accuracy),
        "-" if forecast.direct is None else _share(forecast.direct),
    )


def _share(interval: Interval) -> str:
    if math.isnan(interval.low):
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _csv(report: ChainReport) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("accuracy", "accuracy_low", "accuracy_high", "direct", "direct_low", "direct_high")
    writer.writerow(
        ["task", "status", "asked", "n_params", "n_tokens", "flops", "task_loss", "task_loss_low",
         "task_loss_high", *names, "level"]
    )  # fmt: skip
    for chain in report.chains:
        for row in chain.forecasts:
            writer.writerow([chain.task, chain.status, *_numbers(row), chain.level])
        if not chain.forecasts:
            writer.writerow([chain.task, chain.status, *[""] * 13, chain.level])
    return out.getvalue()


def _numbers(row: TaskForecast) -> list[str]:
    loss = row.loss
    numbers: list[float | None] = [
        *(None if s is None else s.value for s in (loss.n_params, loss.n_tokens)),
        *(loss.flops, loss.loss_nats, loss.low, loss.high),
    ]
    for interval in (row.accuracy, row.direct):
        ends = (None,) * 3 if interval is None else (interval.value, interval.low, interval.high)
        numbers += ends
    return [loss.asked, *("" if v is None or math.isnan(v) else repr(float(v)) for v in numbers)]

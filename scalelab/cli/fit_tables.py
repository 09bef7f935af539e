"""The tables of the page that ``scalelab fit`` prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalelab.cli.interval_text import (
    bounds_text,
    exponent_text,
    interval_text,
    loss_text,
    ratio_span,
    size_text,
    span_text,
)
from scalelab.forecast.more_runs import HEADS, caption_of
from scalelab.units import format_flops, format_quantity, plural

if TYPE_CHECKING:
    from rich.table import Table

    from scalelab.forecast.fit_report import FitReport
    from scalelab.forecast.more_runs import AddedBudget

DIM_STYLE = "dim"


def parameters(report: FitReport) -> Table:
    """Return the table of the constants."""
    if not is_identified(report):
        table = _table("", "value")
        for name, interval in report.params.items():
            table.add_row(name, f"{interval.value:.3g}")
        return table
    table = _table("", "value", level_text(report), "meaning")
    for name, interval in report.params.items():
        table.add_row(name, f"{interval.value:.7g}", span_text(interval, 5).strip(), "")
    notes = {"a": "N_opt = G (C/6)^a", "b": "D_opt = (C/6)^b / G"}
    for name, interval in report.derived.items():
        if not math.isfinite(interval.value):
            continue
        span = span_text(interval, 5).strip()
        table.add_row(name, f"{interval.value:.6g}", span, notes.get(name, ""))
    return table


def approaches(report: FitReport) -> Table:
    """Return the table of the exponents by approach."""
    table = _table("approach", "a (N_opt)", "b (D_opt)", "based on", texts=("approach", "based on"))
    if is_identified(report):
        a, b = report.derived.get("a"), report.derived.get("b")
        runs = plural(report.fit.n_rows, "run")
        table.add_row("3, parametric", interval_text(a), interval_text(b), runs)
        if report.fit.bootstrap.k:
            table.caption = f"In brackets: {level_text(report)}s."
    else:
        table.add_row("3, parametric", "-", "-", "not identified")
    isoflop, envelope = report.isoflop, report.envelope
    curves = f"{len(isoflop.interior)} of {plural(len(isoflop.curves), 'curve')}"
    late = f"{plural(envelope.n_curves, 'curve')} during training"
    rows = [("2, parabolas", (isoflop.n_law, isoflop.d_law), isoflop.reason or curves)]
    if any(report.local):
        rows.append(("2, local minima", report.local, "interpolation"))
    rows.append(("1, envelope", (envelope.n_law, envelope.d_law), envelope.reason or late))
    for name, laws, words in rows:
        exponents = (interval_text(None if law is None else law.interval) for law in laws)
        table.add_row(name, *exponents, words)
    return table


def disagreement_text(report: FitReport) -> str:
    """Return how approaches 2 and 3 differ in D_opt, empty if one of them has no result."""
    against = report.disagreement
    if against is None:
        return ""
    return (
        f"At {format_flops(against.flops)} FLOPs, D_opt of approach 2 differs from that of "
        f"approach 3 by {100 * (against.ratio.value - 1):+.1f} %{ratio_span(against.ratio)}."
    )


def frontier(report: FitReport) -> Table:
    """Return the table of the averaged frontier."""
    table = _table("C", "N_opt", "D_opt", "D/N", "a", texts=("N_opt", "D_opt"))
    brackets = f"In brackets: {level_text(report)}s."
    table.caption = f"By the average. a: local exponent of N_opt, b = 1 - a. {brackets}"
    for point in report.frontier:
        table.add_row(
            format_flops(point.flops),
            size_text(point.n_params),
            size_text(point.n_tokens),
            f"{point.n_tokens.value / point.n_params.value:.3g}",
            exponent_text(point.a),
        )
    return table


def runs_to_add(budgets: tuple[AddedBudget, ...], level: float) -> Table:
    """Return the table of runs that would narrow the answer, of one budget or more."""
    table = _table(*HEADS, texts=HEADS[-1:])
    table.caption = caption_of(budgets, level)
    for each in budgets:
        table.add_row(*each.cells())
    return table


def forecasts(report: FitReport) -> Table:
    """Return the table of the forecasts."""
    name, unit = report.label, f" ({report.unit})" if report.unit else ""
    columns = ("asked", "N", "D", "D/N", "FLOPs", f"{name}{unit}", "x largest run")
    table = _table(*columns, texts=("asked", "N", "D", f"{name}{unit}", "x largest run"))
    if report.fit.bootstrap.k or report.averaged is not None:
        table.caption = (
            f"In brackets: {level_text(report)}s of N and D; {100 * report.level:g} % "
            f"prediction interval of the {name} of a new run."
        )
    for f in report.forecasts:
        ratio = f"{f.n_tokens.value / f.n_params.value:.3g}" if f.n_params and f.n_tokens else ""
        table.add_row(
            f.asked,
            size_text(f.n_params),
            size_text(f.n_tokens),
            ratio,
            format_flops(f.flops) if f.flops is not None else "",
            f"{loss_text(f.loss_nats)}{bounds_text(f.pred_low, f.pred_high)}",
            format_quantity(f.extrapolation) if f.extrapolation is not None else "",
        )
    return table


def candidates(report: FitReport) -> Table:
    """Return the table of the compared forms."""
    columns = ("form and objective", "next budget", "worst", "inside", "width", "AICc", "")
    table = _table(*columns, texts=("form and objective", ""))
    comparison = report.comparison
    assert comparison is not None
    for candidate in comparison.candidates:
        lost = candidate.unidentified_folds
        table.add_row(
            candidate.label,
            f"{100 * candidate.mean_relative_error:.2f} %",
            f"{100 * candidate.max_relative_error:.2f} %",
            f"{100 * candidate.covered:.0f} %",
            f"{100 * candidate.mean_width:.2f} %",
            f"{candidate.aicc:.1f}",
            f"not identified in {lost} of {len(comparison.folds)}" if lost else "",
        )
    return table


def _table(*names: str, texts: Sequence[str] = ()) -> Table:
    """Return a table with these columns; those of ``texts`` may be folded."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, header_style=DIM_STYLE, caption_justify="left")
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name not in texts)
    return table


def level_text(report: FitReport) -> str:
    """Return the name of the intervals of a report."""
    return f"{100 * report.level:g} % confidence interval"


def is_identified(report: FitReport) -> bool:
    """Return whether the rows determine the law."""
    return report.fit.status != "not_identified"

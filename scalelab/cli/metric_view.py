"""The page that ``scalelab fit --metric all`` prints: one line for each metric."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.cli.fit_page import ANSWER_STYLE
from scalelab.cli.fit_tables import DIM_STYLE
from scalelab.cli.layout import Fitting, number_table
from scalelab.cli.output import runnable, say
from scalelab.forecast.headline import laws_words
from scalelab.forecast.metric_comparison import with_limits
from scalelab.units import format_flops, plural

if TYPE_CHECKING:
    from rich.console import Console

    from scalelab.fit.intervals import Interval
    from scalelab.forecast.metric_comparison import MetricComparison

MOST_PAIRS = 8
NAMES = {"a": "a (N_opt)", "tokens_per_param": "D/N"}


def print_metrics(found: MetricComparison, out: Console, plot: Path | None = None) -> None:
    """Print where metrics disagree, the table, and what the columns are."""
    pairs = found.disagreements
    say(found.sentence, out, style=ANSWER_STYLE)
    if pairs:
        say(found.agreement, out)
    for pair in pairs[:MOST_PAIRS]:
        say(pair.sentence, out, indent=2)
    if len(pairs) > MOST_PAIRS:
        say(
            f".. and {plural(len(pairs) - MOST_PAIRS, 'more pair')} (--json has all).",
            out,
            indent=2,
        )
    columns = found.columns
    table = number_table(
        *("metric", "unit", "runs", *(NAMES.get(name, name) for name in columns)),
        texts=("metric", "unit", *(NAMES.get(name, name) for name in columns)),
    )
    for row in found.rows:
        report = row.report
        table.add_row(
            row.metric.text,
            row.metric.unit,
            "-" if report is None else f"{report.fit.n_rows:,}",
            *(_cell(row.interval(name)) for name in columns),
        )
    out.print(Fitting(table))
    for line in _notes(found):
        say(line, out, style=DIM_STYLE)
    if plot is not None:
        say(f"Figure: {plot}", out)
    named = next((row for row in found.rows if not row.metric.is_default), None)
    if named is not None:
        say(runnable(f"Next: one metric alone, for example --metric {named.metric.text}"), out)


def _cell(interval: Interval | None) -> str:
    return "-" if interval is None else with_limits(interval)


def _notes(found: MetricComparison) -> Iterator[str]:
    yield (
        f"{found.source}. E, alpha, beta, a: {found.form} law of each metric, E in its unit. D/N: "
        f"by its forecaster, at C = 6 N D = {format_flops(found.flops)}. In brackets: "
        f"{100 * found.level:g} % confidence intervals. The runs are the same, so their noise is "
        "shared."
    )
    for row in found.rows:
        if row.reason:
            yield f"{row.metric.text}: {row.reason}."
        elif row.report is not None and not row.is_identified:
            yield f"{row.metric.text}: the runs do not determine the {found.form} law."
        if row.report is not None and row.report.averaged is not None and row.tokens_per_param:
            yield f"{row.metric.text}: D/N by {laws_words(row.report.averaged)}."
        counted = [] if row.report is None else row.report.warnings
        yield from (
            f"{row.metric.text}: {each.message}" for each in counted if each.code == "no_metric"
        )

"""The section of the HTML report that compares evaluation sets, and figures as HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from scalelab.forecast.metric_comparison import RATIO, with_limits
from scalelab.report import figures_metrics
from scalelab.report.draw import HEIGHT
from scalelab.report.look import LIGHT
from scalelab.report.packed import figure_script
from scalelab.report.stamp import stamp
from scalelab.units import format_flops

if TYPE_CHECKING:
    from scalelab.forecast.metric_comparison import MetricComparison, MetricRow

_NAMES = {"a": "a of N_opt", RATIO: "D/N"}


def figure_div(figure: Any, name: str, line: str) -> str:
    """Return a figure with its source line, as a labelled div, its caption and its script."""
    said = str(figure.layout.meta["alt"])
    stamp(figure, name, line, LIGHT)
    alt = html.escape(str(figure.layout.meta["alt"]), quote=True)
    data = json.loads(figure.to_json())
    height = int(figure.layout.height or HEIGHT)
    return (
        f'<figure><div id="{name}" role="img" aria-label="{alt}" style="min-height:{height}px">'
        f"</div><figcaption>{html.escape(said)}</figcaption></figure>"
        + figure_script(name, {"data": data["data"], "layout": data["layout"]})
    )


def metrics_section(found: MetricComparison, line: str) -> Iterator[str]:
    """Yield what the metrics disagree on, a valley of each, and the table of their laws."""
    yield "<h2>Evaluation sets</h2>"
    yield f"<p>{html.escape(found.sentence)}</p>"
    if found.disagreements:
        yield f'<p class="faint">{html.escape(found.agreement)}</p><ul>'
        yield from (f"<li>{html.escape(pair.sentence)}</li>" for pair in found.disagreements)
        yield "</ul>"
    yield figure_div(figures_metrics.valleys(found), "valleys", line)
    yield (
        f"<table><caption class='faint'>E, alpha, beta, a: {html.escape(found.form)} law of each "
        "set, E in its unit. D/N: by its forecaster at C = 6 N D = "
        f"{format_flops(found.flops)}. In brackets: {100 * found.level:g} % confidence "
        "intervals.</caption>"
    )
    names = ("metric", "unit", "runs", *(_NAMES.get(name, name) for name in found.columns))
    yield "<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"
    yield from (_row(row, found.columns) for row in found.rows)
    yield "</table>"
    yield figure_div(figures_metrics.ratios(found), "ratios", line)


def _row(row: MetricRow, columns: tuple[str, ...]) -> str:
    count = "–" if row.report is None else f"{row.report.fit.n_rows:,}"
    found = [row.interval(name) for name in columns]
    cells = [row.metric.text, row.metric.unit, count]
    cells += ["–" if each is None else with_limits(each) for each in found]
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"

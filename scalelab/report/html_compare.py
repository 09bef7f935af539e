"""The section of the report that compares its runs with other sweeps, tables and laws."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from scalelab.report import figures_compare
from scalelab.report.html_metrics import figure_div
from scalelab.units import format_flops, format_quantity

if TYPE_CHECKING:
    from scalelab.fit.intervals import Interval
    from scalelab.forecast.comparing import Compared, SourceComparison


def comparison_section(found: SourceComparison, line: str) -> Iterator[str]:
    """Yield the heading, what the comparison says, its figures and its table."""
    yield "<h2>Compared with others</h2>"
    for answer, details in zip(found.answers, found.details, strict=True):
        yield f"<p><b>{html.escape(answer)}</b></p>"
        yield f"<p>{html.escape(' '.join(details))}</p>"
    if any(part.gap is not None for part in found.parts):
        yield figure_div(figures_compare.losses(found), "compare_l", line)
    if found.has_speedup:
        yield figure_div(figures_compare.speedups(found), "compare_s", line)
    yield figure_div(figures_compare.frontiers(found, "n_params"), "compare_n", line)
    yield figure_div(figures_compare.frontiers(found, "n_tokens"), "compare_d", line)
    yield figure_div(figures_compare.exponent_forest(found), "compare_a", line)
    at = html.escape(format_flops(found.flops))
    heads: tuple[str, ...] = ("source", "runs", "verdict", "a", f"N at {at} FLOP", "D", "speed-up")
    heads = heads if found.has_speedup else heads[:-1]
    yield "<table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"
    for part in found.parts:
        cells = _cells(part, is_first=part is found.parts[0])[: len(heads)]
        yield "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table>"


def _cells(part: Compared, *, is_first: bool) -> tuple[str, ...]:
    source, forecast = part.source, part.forecast
    a = None if source.exponents is None else source.exponents[0]
    sizes = (None, None) if forecast is None else (forecast.n_params, forecast.n_tokens)
    return (
        source.name,
        "law" if source.rows is None else f"{len(source.rows):,}",
        source.verdict or "-",
        _limits(a, "{:.3f}".format),
        *(_limits(size, format_quantity) for size in sizes),
        "reference" if is_first else _limits(part.speedup, "{:.2f}".format),
    )


def _limits(interval: Interval | None, form: Callable[[float], str]) -> str:
    if interval is None:
        return "-"
    if not math.isfinite(interval.low + interval.high) or interval.low == interval.high:
        return form(interval.value)
    return f"{form(interval.value)} [{form(interval.low)}, {form(interval.high)}]"

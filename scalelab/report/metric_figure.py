"""Matplotlib figure of a comparison of metrics: constants, exponents and D/N with intervals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from scalelab.forecast.metric_comparison import CONSTANTS, EXPONENT, RATIO, MetricComparison
from scalelab.report.plots import FAINT, FRONTIER, INK, STYLE
from scalelab.units import format_flops

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scalelab.fit.intervals import Interval

TITLES = {
    "E": "E, irreducible loss",
    "alpha": "alpha, exponent of N",
    "beta": "beta, exponent of D",
    EXPONENT: "a, exponent of N_opt",
    RATIO: "compute-optimal D/N",
}
PANEL_WIDTH, ROW_HEIGHT, MARGIN_HEIGHT = 2.4, 0.32, 1.5
WIDE = 30.0
"""Ratio of the limits of a D/N beyond which its line is cut at the axis."""


def metric_figure(comparison: MetricComparison) -> Figure:
    """Return one panel for each number and one line for each metric."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = [name for name in (*CONSTANTS, EXPONENT, RATIO) if name in comparison.columns]
    count = len(comparison.rows)
    with rc_context(STYLE):
        width = 1.6 + PANEL_WIDTH * max(len(names), 1)
        figure = Figure(figsize=(width, MARGIN_HEIGHT + ROW_HEIGHT * count), layout="constrained")
        panels: Any = figure.subplots(1, max(len(names), 1), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=False):
            _panel(axes, comparison, name)
        labels = [f"{row.metric.text}\n({row.metric.unit})" for row in comparison.rows]
        panels[0].set_yticks(range(count), labels, fontsize=8)
        panels[0].set_ylim(count - 0.5, -0.5)
        figure.suptitle(
            f"{comparison.source}: {comparison.form} law by metric, "
            f"{100 * comparison.level:g} % intervals",
            fontsize=10,
        )
    return figure


def _panel(axes: Axes, comparison: MetricComparison, name: str) -> None:
    apart = {text for pair in comparison.disagreements for text in (pair.low, pair.high)}
    found = [(row, row.interval(name)) for row in comparison.rows]
    known = [interval for _, interval in found if interval is not None]
    for y, (row, interval) in enumerate(found):
        if interval is None:
            axes.annotate(
                "not identified",
                (0.02, y),
                xycoords=("axes fraction", "data"),
                fontsize=7,
                color=FAINT,
                va="center",
            )
            continue
        colour = FRONTIER if name == RATIO and row.metric.text in apart else INK
        axes.plot(interval.value, y, "o", ms=5, color=colour)
        if math.isfinite(interval.low + interval.high):
            axes.hlines(y, interval.low, interval.high, color=colour, lw=1.4)
    if name == RATIO and known:
        axes.set_xscale("log")
        axes.set_xlim(*_span(known))
        axes.set_xlabel(f"at C = {format_flops(comparison.flops)} FLOP", fontsize=8)
    axes.set_title(TITLES[name], fontsize=9)
    axes.tick_params(axis="x", labelsize=8)


def _span(known: list[Interval]) -> tuple[float, float]:
    """Return the limits of the axis of D/N; wide intervals do not set them."""
    ends = [interval.value for interval in known]
    for interval in known:
        if math.isfinite(interval.low + interval.high) and interval.high < WIDE * interval.low:
            ends += [interval.low, interval.high]
    return min(ends) / 1.6, max(ends) * 1.6

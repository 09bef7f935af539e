"""Small multiples of the loss on each evaluation set, and D/N of each with its interval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.forecast.bands import bands_between
from scalelab.forecast.metric_comparison import with_limits
from scalelab.report import draw
from scalelab.report.look import FLOPS, LIGHT, PARAMS, Look
from scalelab.units import format_flops, plural

if TYPE_CHECKING:
    from scalelab.forecast.fit_report import FitReport
    from scalelab.forecast.metric_comparison import MetricComparison

CURVE_POINTS = 40
MAX_CURVES = 10
MAX_POINTS = 300
FEW = 4
"""Up to this many panels, two stand in a row; more stand in threes."""
PANEL_HEIGHT = 300
WIDE = 30.0
"""Ratio of the limits of a D/N beyond which its line is cut at the axis."""


def valleys(found: MetricComparison, look: Look = LIGHT) -> Any:
    """Return one panel per metric: isoFLOP curves with minima, or loss against compute."""
    from plotly.subplots import make_subplots

    reports = [(row.metric, row.report) for row in found.rows if row.report is not None]
    if not reports:
        return draw.empty(look, "No metric has a fit.")
    n_columns = min(len(reports), 2 if len(reports) <= FEW else 3)
    n_rows = -(-len(reports) // n_columns)
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        subplot_titles=[draw.plain(metric.axis) for metric, _ in reports],
        horizontal_spacing=0.07,
        vertical_spacing=0.24 / n_rows,
    )
    by_size = any(report.isoflop.curves for _, report in reports)
    seen = []
    for i, (_, report) in enumerate(reports):
        place: dict[str, Any] = {"row": i // n_columns + 1, "col": i % n_columns + 1}
        seen.append(_valley(figure, report, look, place, by_size=by_size))
    name = "parameters" if by_size else "compute"
    draw.finish(
        figure,
        look,
        alt=f"Loss against {name} for {plural(len(reports), 'metric')}: "
        + ", ".join(metric.text for metric, _ in reports)
        + ".",
        height=60 + PANEL_HEIGHT * n_rows,
    )
    figure.update_xaxes(**draw.log_axis(seen, sizes=by_size))
    for column in range(1, n_columns + 1):
        last = n_rows if (n_rows - 1) * n_columns + column <= len(reports) else n_rows - 1
        figure.update_xaxes(title_text=PARAMS if by_size else FLOPS, row=last, col=column)
    figure.update_annotations(font={"size": 13, "color": look.ink})
    return figure


def _valley(
    figure: Any, report: FitReport, look: Look, place: dict[str, Any], *, by_size: bool
) -> FloatArray:
    """Draw the runs of one metric; return the drawn sizes or computes."""
    rows = report.observations
    some = rows.take(draw.thinned(len(rows), MAX_POINTS))
    bands = bands_between(report, float(rows.flops.min()), float(rows.flops.max()), CURVE_POINTS)
    if not by_size:
        hover = "%{customdata}<br>loss %{y:.4f}"
        style = {"color": look.second, "size": 4, "opacity": 0.6}
        words = [f"C {format_flops(float(each))} FLOP" for each in some.flops]
        at, losses = some.flops, some.loss_nats
        draw.add_curve(figure, at, losses, style, "run", hover, customdata=words, **place)
        if bands is not None:
            style = {"color": look.accent, "width": 2}
            draw.add_curve(figure, bands.flops, bands.loss, style, **place)
        return at
    low, high = float(rows.loss_nats.min()), float(np.quantile(rows.loss_nats, 0.97))
    every = [curve for curve in report.isoflop.curves if curve.is_interior] or list(
        report.isoflop.curves
    )
    kept = np.unique(np.linspace(0, max(len(every) - 1, 0), MAX_CURVES).round()).astype(int)
    curves = [every[i] for i in kept if i < len(every)]
    for curve, colour in zip(curves, look.shades(max(len(curves), 1)), strict=False):
        name = f"{format_flops(curve.budget)} FLOP"
        mine = rows.take(curve.rows[draw.thinned(len(curve.rows), MAX_POINTS // len(curves))])
        style = {"color": colour, "size": 4, "opacity": 0.6}
        hover = f"{name}<br>N %{{customdata}}<br>loss %{{y:.4f}}"
        words = draw.sizes(mine.n_params)
        x, y = mine.n_params, mine.loss_nats
        draw.add_curve(figure, x, y, style, name, hover, customdata=words, **place)
        span = np.geomspace(x.min(), x.max(), CURVE_POINTS)
        line = {"color": colour, "width": 1.5}
        draw.add_curve(figure, span, curve.n_params.curve(span), line, name, **place)
        if curve.is_interior:
            at, loss = np.array([curve.n_params.value]), np.array([curve.n_params.loss])
            border = {"color": look.ink, "width": 1.4}
            style = {"symbol": "diamond", "size": 8, "color": look.paper, "line": border}
            draw.add_curve(figure, at, loss, style, name, **place)
    if bands is not None:
        inside = (bands.loss >= low - 0.1 * (high - low)) & (bands.loss <= high)
        style = {"color": look.accent, "width": 2, "dash": "dash"}
        draw.add_curve(figure, bands.n_params[inside], bands.loss[inside], style, **place)
    margin = 0.08 * (high - low)
    figure.update_yaxes(range=[low - margin, high + margin], **place)
    return rows.n_params


def ratios(found: MetricComparison, look: Look = LIGHT) -> Any:
    """Return the compute-optimal D/N of each metric; those that disagree are marked."""
    import plotly.graph_objects as go

    known = [(row.metric.text, row.tokens_per_param) for row in found.rows]
    drawn = [(name, each) for name, each in known if each is not None]
    if not drawn:
        return draw.empty(look, "No metric has a compute-optimal D/N.", height=200)
    apart = {text for pair in found.disagreements for text in (pair.low, pair.high)}
    names = [draw.plain(name) for name, _ in drawn]
    colours = [look.accent if name in apart else look.second for name, _ in drawn]
    value, low, high = (
        np.array([getattr(interval, end) for _, interval in drawn])
        for end in ("value", "low", "high")
    )
    near = high < WIDE * low
    inside = [*value, *low[near], *high[near]]
    left, right = min(inside) / 1.6, max(inside) * 1.6
    figure = go.Figure()
    for i, name in enumerate(names):
        if math.isfinite(low[i] + high[i]):
            shown = [max(low[i], left), min(high[i], right)]
            line = {"color": colours[i], "width": 2}
            figure.add_trace(
                go.Scatter(x=shown, y=[name] * 2, mode="lines", line=line, hoverinfo="skip")
            )
    figure.add_trace(
        go.Scatter(
            x=value,
            y=names,
            mode="markers+text",
            marker={"size": 10, "color": colours},
            text=[f"{each:.3g}" for each in value],
            textposition="top center",
            customdata=[with_limits(interval) for _, interval in drawn],
            hovertemplate="%{y}<br>D/N %{customdata}<extra></extra>",
        )
    )
    draw.finish(
        figure,
        look,
        alt="Compute-optimal D/N by metric with intervals: "
        + "; ".join(f"{name} {with_limits(interval)}" for name, interval in drawn)
        + ".",
        x=f"D/N at C = {format_flops(found.flops)} FLOP",
        height=110 + 54 * len(names),
    )
    figure.update_xaxes(
        **draw.log_axis(np.array([left, right]), sizes=True),
        range=[math.log10(left), math.log10(right)],
    )
    figure.update_yaxes(range=[len(names) - 0.5, -0.8], showgrid=False)
    if (low < left).any() or (high > right).any():
        draw.note_corner(figure, "Intervals beyond the axis are cut.", look)
    return figure

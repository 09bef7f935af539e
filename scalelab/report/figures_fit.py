"""Checks of a fit: exponents by method, residuals, bootstrap, leave-one-budget-out, forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from scalelab.arrays import FloatArray
from scalelab.report import draw
from scalelab.report.look import FLOPS, LIGHT, PARAMS, TOKENS, Look
from scalelab.units import format_flops, plural

if TYPE_CHECKING:
    from scalelab.fit.intervals import Interval
    from scalelab.fit.select import Comparison
    from scalelab.forecast.fit_report import FitReport

SAME = 1e-9
"""Relative spread below which the replicates of a parameter count as equal."""
PAIR_POINTS = 300
BINS = 30
CLOUD = 1500


def forest(exponents: Sequence[tuple[str, Interval]], look: Look = LIGHT) -> Any:
    """Return the exponent a of each method with its interval, one row per method.

    Parameters
    ----------
    exponents : sequence of (str, Interval)
        Method and exponent, from top to bottom; NaN limits are not drawn.
    look : Look
    """
    import plotly.graph_objects as go

    if not exponents:
        return draw.empty(look, "No method has an exponent yet.", height=200)
    names = [draw.plain(name) for name, _ in exponents]
    value = np.array([interval.value for _, interval in exponents])
    low = np.array([interval.low for _, interval in exponents])
    high = np.array([interval.high for _, interval in exponents])
    figure = go.Figure(
        go.Scatter(
            x=value,
            y=names,
            mode="markers",
            marker={"size": 10, "color": look.accent},
            error_x=draw.error_bars(value, low, high, look.accent, 5, 1.6),
            customdata=np.stack([low, high], axis=1),
            hovertemplate="%{y}<br>a = %{x:.4f} (%{customdata[0]:.4f} to %{customdata[1]:.4f})"
            "<extra></extra>",
        )
    )
    figure.add_vline(x=0.5, line={"color": look.faint, "dash": "dot", "width": 1})
    for name, at, end in zip(names, value, np.fmax(high, value), strict=True):
        draw.add_value(figure, end, name, at, look)
    said = "; ".join(f"{name} {interval.value:.3f}" for name, interval in exponents)
    draw.finish(
        figure,
        look,
        alt=f"Exponent a of N_opt by method with intervals: {said}.",
        x="exponent a of N<sub>opt</sub> ∝ C<sup>a</sup> (dotted: 0.5)",
        height=110 + 62 * len(names),
    )
    figure.update_yaxes(range=[len(names) - 0.5, -0.7], showgrid=False)
    return figure


def residuals(report: FitReport, look: Look = LIGHT) -> Any:
    """Return residuals against N, D and C with their middle 90 %, and a normal QQ plot."""
    from plotly.subplots import make_subplots

    shown, unit = _shown(report)
    rows = report.observations
    some = draw.thinned(len(shown), CLOUD)
    # the panels of a row share their y axis: no labels between them that could collide
    figure = make_subplots(
        rows=2, cols=2, vertical_spacing=0.16, horizontal_spacing=0.05, shared_yaxes=True
    )
    places = (
        (1, 1, rows.n_params, PARAMS),
        (1, 2, rows.n_tokens, TOKENS),
        (2, 1, rows.flops, FLOPS),
    )
    y_limit = 1.5 * max(float(np.quantile(np.abs(shown), 0.98)), 1e-9)
    low, high = np.quantile(shown, [0.05, 0.95])
    points, clipped = (
        {"color": look.second, "size": 4, "opacity": 0.6},
        shown.clip(-y_limit, y_limit),
    )
    for row, col, values, name in places:
        at: dict[str, Any] = {"row": row, "col": col}
        words = (
            [format_flops(v) for v in values[some]] if name == FLOPS else draw.sizes(values[some])
        )
        hover = f"{name} %{{customdata}}<br>residual %{{y:.3f}} {unit}"
        draw.add_curve(
            figure, values[some], clipped[some], points, hover=hover, customdata=words, **at
        )
        figure.add_hline(y=0, line={"color": look.ink, "width": 1}, **at)
        figure.add_hrect(y0=low, y1=high, fillcolor=look.accent, opacity=0.1, line_width=0, **at)
        figure.update_xaxes(**draw.log_axis(values, sizes=name != FLOPS), title_text=name, **at)
        figure.update_yaxes(range=[-1.05 * y_limit, 1.05 * y_limit], **at)
    _quantiles(figure, shown, look)
    beyond = int((np.abs(shown) > y_limit).sum())
    draw.finish(
        figure,
        look,
        alt=(
            f"Residuals of {plural(len(shown), 'run')} against parameters, tokens and compute, and "
            f"against normal quantiles; 90 % are between {low:.3g} and {high:.3g} {unit}; {beyond} "
            "outside the plotted range are at its edge."
        ),
        height=640,
    )
    for row in (1, 2):
        figure.update_yaxes(title_text=f"residual, {unit}", row=row, col=1)
    figure.update_xaxes(title_text="normal quantile", row=2, col=2)
    draw.note_thinned(figure, len(some), len(shown), look)
    return figure


def pairs(report: FitReport, look: Look = LIGHT) -> Any:
    """Return bootstrap distributions of the parameters on the diagonal, and pairs below it."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    fit = report.fit
    if len(fit.samples) < 2:
        return draw.empty(look, "No bootstrap replicates: fit with --bootstrap above 0.")
    moving = [
        j
        for j, name in enumerate(fit.names)
        if name not in fit.fixed and _differ(fit.samples[:, j])
    ]
    if not moving:
        return draw.empty(look, "No parameter differs among the bootstrap replicates.")
    columns = [_in_logs(fit.samples[:, j]) for j in moving]
    names = [
        f"log10 {fit.names[j]}" if is_log else fit.names[j]
        for j, (_, is_log) in zip(moving, columns, strict=True)
    ]
    p = len(moving)
    figure = make_subplots(
        rows=p, cols=p, shared_xaxes=True, horizontal_spacing=0.03, vertical_spacing=0.03
    )
    some = draw.thinned(len(fit.samples), PAIR_POINTS)
    for i in range(p):
        draws, is_log = columns[i]
        diagonal: dict[str, Any] = {"row": i + 1, "col": i + 1}
        counts, edges = np.histogram(draws[np.isfinite(draws)], bins=BINS)
        figure.add_trace(
            go.Bar(
                x=draw.short((edges[1:] + edges[:-1]) / 2),
                y=counts,
                marker={"color": look.with_alpha(look.second, 0.75), "line": {"width": 0}},
                hovertemplate="%{x:.4g}: %{y}<extra></extra>",
            ),
            **diagonal,
        )
        best = fit.params[fit.names[moving[i]]]
        best = math.log10(best) if is_log else best
        figure.add_vline(x=best, line={"color": look.accent, "width": 1.6}, **diagonal)
        figure.update_yaxes(showticklabels=False, **diagonal)
        for j in range(i):
            place: dict[str, Any] = {"row": i + 1, "col": j + 1}
            style = {"size": 3, "color": look.second, "opacity": 0.45}
            draw.add_curve(figure, columns[j][0][some], draws[some], style, **place)
            if j:
                figure.update_yaxes(showticklabels=False, **place)
    draw.finish(
        figure,
        look,
        alt=(
            f"Bootstrap distributions of {', '.join(names)} over {len(fit.samples)} replicates, "
            "and each pair of them; vertical lines mark the fitted values."
        ),
        height=120 * p + 60,
    )
    for i, name in enumerate(names):
        figure.update_xaxes(title_text=name, row=p, col=i + 1)
        if i:
            figure.update_yaxes(title_text=name, row=i + 1, col=1)
    figure.update_layout(bargap=0)
    return figure


def left_out(table: Sequence[dict[str, float]], look: Look = LIGHT) -> Any:
    """Return, for each omitted budget, the exponent without it and the error on its runs.

    Parameters
    ----------
    table : sequence of dict
        ``budget`` (FLOP), ``a``, ``mean_relative_error``, one for each omitted budget.
    look : Look
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if not table:
        return draw.empty(look, "Leave-one-budget-out needs at least three budgets.", height=240)
    budgets = np.array([row["budget"] for row in table])
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, key, scale, name, unit in (
        (1, "a", 1.0, "a without it", ""),
        (2, "mean_relative_error", 100.0, "mean error on it, %", " %"),
    ):
        figure.add_trace(
            go.Scatter(
                x=budgets,
                y=[scale * each[key] for each in table],
                mode="lines+markers",
                line={"color": look.faint, "width": 1},
                marker={"color": look.accent, "size": 9},
                customdata=[format_flops(budget) for budget in budgets],
                hovertemplate=f"without %{{customdata}} FLOP<br>{name.split(' ')[0]} %{{y:.3f}}"
                f"{unit}<extra></extra>",
            ),
            row=row,
            col=1,
        )
        figure.update_yaxes(title_text=name, row=row, col=1)
    draw.finish(
        figure,
        look,
        alt=(
            f"Leaving out each of {len(table)} budgets in turn: a runs from "
            f"{min(row['a'] for row in table):.3f} to {max(row['a'] for row in table):.3f}."
        ),
        height=440,
    )
    figure.update_xaxes(**draw.log_axis(budgets))
    figure.update_xaxes(title_text="omitted budget, FLOP", row=2, col=1)
    figure.update_yaxes(rangemode="tozero", row=2, col=1)
    return figure


def forms(comparison: Comparison, look: Look = LIGHT) -> Any:
    """Return the mean error of each form on the next budget, relative to the best form.

    Parameters
    ----------
    comparison : Comparison
        Candidates, best first.
    look : Look
    """
    import plotly.graph_objects as go

    names = [draw.plain(each.label) for each in comparison.candidates]
    error = 100 * np.array([each.mean_relative_error for each in comparison.candidates])
    gap = 100 * np.array([each.gap for each in comparison.candidates])
    best = float(error[0])
    figure = go.Figure(
        go.Scatter(
            x=error,
            y=names,
            mode="markers",
            marker={
                "size": 9,
                "color": [
                    look.accent if i == 0 else look.second if each.is_tied else look.faint
                    for i, each in enumerate(comparison.candidates)
                ],
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": np.maximum(best + gap[:, 1] - error, 0),
                "arrayminus": np.maximum(error - best - gap[:, 0], 0),
                "color": look.faint,
                "thickness": 1.4,
                "width": 4,
            },
            hovertemplate="%{y}<br>mean error %{x:.3f} %<extra></extra>",
        )
    )
    figure.add_vline(x=best, line={"color": look.faint, "dash": "dot", "width": 1})
    draw.finish(
        figure,
        look,
        alt=(
            f"Mean error on the next budget of {len(names)} forms and objectives, from "
            f"{error[0]:.2f} % ({names[0]}) to {error[-1]:.2f} % ({names[-1]})."
        ),
        x="mean error on the next budget, %",
        height=90 + 26 * len(names),
    )
    figure.update_yaxes(range=[len(names) - 0.5, -0.5], showgrid=False)
    return figure


def _quantiles(figure: Any, shown: FloatArray, look: Look) -> None:
    ordered = np.sort(shown)
    normal = special.ndtri((np.arange(len(ordered)) + 0.5) / len(ordered))
    some = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), 600)).round().astype(int))
    # The line is fitted to the middle half, so that tails do not affect it.
    low, high = np.quantile(ordered, [0.25, 0.75])
    slope = (high - low) / (2 * special.ndtri(0.75))
    ends = np.array([normal[0], normal[-1]])
    place: dict[str, Any] = {"row": 2, "col": 2}
    line, points = {"color": look.accent, "width": 1.4}, {"color": look.second, "size": 4}
    draw.add_curve(figure, ends, (low + high) / 2 + slope * ends, line, **place)
    hover = "normal %{x:.2f}<br>residual %{y:.3f}"
    draw.add_curve(figure, normal[some], ordered[some], points, hover=hover, **place)


def _shown(report: FitReport) -> tuple[FloatArray, str]:
    if report.fit.objective.residual == "log":
        return 100 * report.fit.residuals, "%"
    return report.fit.residuals, report.unit


def _differ(draws: FloatArray) -> bool:
    """Whether the finite replicates differ by more than rounding errors."""
    finite = draws[np.isfinite(draws)]
    return len(finite) > 1 and float(np.ptp(finite)) > SAME * float(np.abs(finite).max())


def _in_logs(draws: FloatArray) -> tuple[FloatArray, bool]:
    """Return log10 of the replicates if they span a factor of three or more."""
    if 0 < 3 * draws.min() < draws.max():
        return np.log10(draws), True
    return draws, False

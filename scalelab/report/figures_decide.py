"""Candidates of a decision: loss against cost, and against size at one compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.report import draw
from scalelab.report.look import LIGHT, PARAMS, Look
from scalelab.theory.accounting import tokens_at_6nd
from scalelab.units import format_flops, format_quantity

SAME_COMPUTE = 0.05
"""Relative difference up to which candidates have the compute of the best one."""
CURVE_POINTS = 80
MIN_SPAN = 3.0
"""Least factor on both sides of the best size."""


def at_compute(
    points: Sequence[dict[str, Any]],
    losses: Callable[[FloatArray, FloatArray], FloatArray | None] | None,
    axis: str,
    look: Look = LIGHT,
) -> Any:
    """Return loss against N at the compute of the best candidate: curve, candidates and best.

    Parameters
    ----------
    points : sequence of dict
        ``label``, ``n_params``, ``flops``, ``loss_nats``, ``low``, ``high``, ``is_in_valley`` and
        ``is_best``.
    losses : callable, optional
        Returns the predicted losses of arrays of N and D; None without a best candidate.
    axis : str
        Name of the loss with its unit.
    look : Look
    """
    import plotly.graph_objects as go

    best = next((point for point in points if point["is_best"]), None)
    if best is None or losses is None:
        return draw.empty(look, "No candidate is within the limits.")
    flops = float(best["flops"])
    # The line is level beyond the valley of the runs, so it does not go through points there.
    same = [
        p
        for p in points
        if abs(p["flops"] / flops - 1) <= SAME_COMPUTE and (p["is_in_valley"] or p["is_best"])
    ]
    sizes = np.array([p["n_params"] for p in same], float)
    size = float(best["n_params"])
    ends = min(sizes.min(), size / MIN_SPAN) / 1.2, max(sizes.max(), size * MIN_SPAN) * 1.2
    span: FloatArray = np.geomspace(*ends, CURVE_POINTS)
    figure = go.Figure()
    tokens: FloatArray = tokens_at_6nd(np.full(CURVE_POINTS, flops), span)
    curve = losses(span, tokens)
    if curve is not None:
        words = zip(draw.sizes(span), draw.sizes(tokens), strict=True)
        draw.add_curve(
            figure,
            span,
            curve,
            {"color": look.second, "width": 2.2},
            "predicted loss",
            "N %{customdata[0]}, D %{customdata[1]}<br>loss %{y:.4f}",
            customdata=list(words),
        )
    for name, colour, symbol, width, chosen in (
        ("candidates", look.second, "circle", 9, [p for p in same if not p["is_best"]]),
        ("best", look.accent, "star", 16, [best]),
    ):
        if chosen:
            middle, low, high = _limits(chosen)
            draw.add_curve(
                figure,
                np.array([p["n_params"] for p in chosen], float),
                middle,
                {"color": colour, "symbol": symbol, "size": width},
                name,
                f"{name}: %{{customdata[0]}}<br>loss %{{customdata[1]}}",
                error_y=draw.error_bars(middle, low, high, colour, 4, 1.3),
                customdata=[[draw.plain(p["label"]), _span_words(p)] for p in chosen],
            )
    draw.label_end(
        figure, size, float(best["loss_nats"]), draw.plain(best["label"]), look.ink, gap=10,
        yanchor="top", yshift=-8,
    )  # fmt: skip
    draw.finish(
        figure,
        look,
        alt=(
            f"Predicted loss against parameters at {format_flops(flops)} FLOP, with "
            f"{len(same)} candidates; the best is {best['label']}."
        ),
        x=f"{PARAMS}, at {format_flops(flops)} FLOP",
        y=axis,
        height=480,
    )
    every = np.concatenate([np.concatenate(_limits(same)), np.empty(0) if curve is None else curve])
    bottom, top = float(np.nanmin(every)), float(np.nanmax(every))
    figure.update_xaxes(**draw.log_axis(span, sizes=True))
    figure.update_yaxes(range=[bottom - 0.06 * (top - bottom), top + 0.06 * (top - bottom)])
    return figure


def _limits(points: Sequence[dict[str, Any]]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return loss, lower and upper limit; the loss itself where there is no interval."""
    middle = np.array([p["loss_nats"] for p in points], float)
    low = np.array([_or(p["low"], p["loss_nats"]) for p in points])
    high = np.array([_or(p["high"], p["loss_nats"]) for p in points])
    return middle, low, high


def pareto(
    points: Sequence[dict[str, Any]], cost: str, unit: str, axis: str, look: Look = LIGHT
) -> Any:
    """Return loss against cost: candidates within and outside the limits, Pareto front, best.

    Parameters
    ----------
    points : sequence of dict
        ``label``, ``loss_nats``, ``low``, ``high``, ``is_feasible``, ``is_in_valley``,
        ``is_front``, ``is_best`` and the cost.
    cost : str
        Key of the cost.
    unit : str
        Its name with unit, for the axis.
    axis : str
        Name of the loss with its unit.
    look : Look
    """
    import plotly.graph_objects as go

    points = [point for point in points if point.get(cost)]
    if not points:
        return draw.empty(look, "No candidate to draw.")
    figure = go.Figure()
    outside = [p for p in points if not p["is_feasible"]]
    others = [p for p in points if p["is_feasible"] and not p["is_best"]]
    within = [p for p in others if p["is_in_valley"]]
    beyond = [p for p in others if not p["is_in_valley"]]
    groups = (
        ("outside the limits", look.faint, "x", outside),
        ("outside the valley of the runs", look.faint, "circle-open", beyond),
        ("within the limits", look.second, "circle", within),
        ("best", look.accent, "star", [p for p in points if p["is_best"]]),
    )
    front = sorted((p for p in points if p["is_front"]), key=lambda p: p[cost])
    if len(front) > 1:
        at = np.array([p[cost] for p in front])
        loss = np.array([p["loss_nats"] for p in front])
        draw.add_curve(figure, at, loss, {"color": look.third, "width": 2}, "Pareto front")
    for name, colour, symbol, chosen in groups:
        if not chosen:
            continue
        middle, low, high = _limits(chosen)
        draw.add_curve(
            figure,
            np.array([p[cost] for p in chosen]),
            middle,
            {"color": colour, "symbol": symbol, "size": 16 if name == "best" else 8},
            name,
            f"%{{customdata[0]}}<br>{unit} %{{customdata[1]}}<br>loss %{{customdata[2]}}",
            error_y=draw.error_bars(middle, low, high, colour, 3, 1),
            customdata=[
                [draw.plain(p["label"]), format_quantity(p[cost]), _span_words(p)] for p in chosen
            ],
        )
    best = next((p for p in points if p["is_best"]), None)
    if best is not None:
        draw.label_end(
            figure, best[cost], best["loss_nats"], draw.plain(best["label"]), look.ink, gap=14
        )
    draw.finish(
        figure,
        look,
        alt=(
            f"Predicted loss against {unit} for {len(points)} candidates"
            + (f"; the best within the limits is {best['label']}." if best is not None else ".")
        ),
        x=unit,
        y=axis,
        legend=True,
        height=480,
    )
    values = np.array([p[cost] for p in points])
    left, right = float(np.log10(values.min())), float(np.log10(values.max()))
    margin = 0.15 * (right - left) + 0.1
    figure.update_xaxes(**draw.log_axis(values), range=[left - margin, right + 2 * margin])
    return figure


def _span_words(point: dict[str, Any]) -> str:
    loss = f"{point['loss_nats']:.4f}"
    if point["low"] is None or not np.isfinite(point["low"] + point["high"]):
        return loss
    return f"{loss} ({point['low']:.4f} to {point['high']:.4f})"


def _or(value: float | None, other: float) -> float:
    return other if value is None or not np.isfinite(value) else float(value)

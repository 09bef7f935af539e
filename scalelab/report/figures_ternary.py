"""Figure of a mixture of three sources: the target over the triangle of their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.report import draw
from scalelab.report.figures_mixture import limits_words, mixture_words, run_names
from scalelab.report.look import LIGHT, Look
from scalelab.report.mixture_answer import GRID, TERNARY
from scalelab.units import plural

if TYPE_CHECKING:
    from scalelab.report.mixture_answer import MixtureAnswer

HIGH = math.sqrt(3) / 2
"""Height of a triangle with edges of 1."""
TICKS = (0.2, 0.4, 0.6, 0.8)


def ternary(answer: MixtureAnswer, look: Look = LIGHT) -> Any:
    """Return the predicted target over the weights of three sources.

    Each corner is one source alone. Dots are the trained mixtures. The star is the best mixture;
    the outline around it has the weights that are inside all intervals.
    """
    import plotly.graph_objects as go

    if len(answer.sources) != TERNARY:
        return draw.empty(look, "A triangle needs three sources.")
    figure = go.Figure()
    _surface(figure, answer, look)
    _frame(figure, answer.sources, look)
    runs = answer.runs
    x, y = _place(runs.weights)
    draw.add_curve(
        figure,
        x,
        y,
        {"size": 8, "color": look.paper, "line": {"color": look.ink, "width": 1.4}},
        "trained mixture",
        "%{customdata[0]}<br>%{customdata[1]}<br>measured %{customdata[2]}, predicted "
        "%{customdata[3]}",
        customdata=[
            (name, mixture_words(answer.sources, row), f"{seen:.4f}", f"{said:.4f}")
            for name, row, seen, said in zip(
                run_names(answer),
                runs.weights,
                answer.observed,
                answer.at_runs,
                strict=True,
            )
        ],
    )
    _optimum(figure, answer, look)
    best = ", ".join(f"{n} {w.value:.2f}" for n, w in answer.best.weights.items())
    draw.finish(
        figure,
        look,
        alt=(
            f"Triangle of the weights of {', '.join(answer.sources)}: predicted "
            f"{answer.target_words}, lowest at {best}; {plural(runs.n, 'run')} drawn."
        ),
        height=600,
    )
    figure.update_xaxes(visible=False, range=[-0.2, 1.2], constrain="domain")
    figure.update_yaxes(visible=False, range=[-0.13, HIGH + 0.1], scaleanchor="x")
    figure.update_layout(margin={"l": 8, "r": 8, "t": 30, "b": 70})
    return figure


def _place(weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the place of weights (n, 3) in the plane: the first source at the lower left."""
    return weights[:, 1] + weights[:, 2] / 2, weights[:, 2] * HIGH


def _surface(figure: Any, answer: MixtureAnswer, look: Look) -> None:
    """Draw the predicted target as coloured small triangles' corners, with contour lines."""
    import plotly.graph_objects as go

    # A rectangular grid over the triangle, from the values on the oblique one.
    rows, columns = GRID + 1, 2 * GRID + 1
    z = np.full((rows, columns), np.nan)
    for i in range(rows):
        line = answer.surface[i, : GRID + 1 - i]
        # Row i begins at i half steps and has a value at every second half step.
        at = np.arange(i, 2 * GRID - i + 1)
        z[i, at] = np.interp(at, i + 2 * np.arange(len(line)), line)
    figure.add_trace(
        go.Contour(
            x=np.arange(columns) / (2 * GRID),
            y=np.arange(rows) / GRID * HIGH,
            z=z,
            colorscale=look.scale(),
            reversescale=True,
            ncontours=14,
            line={"width": 0.8, "color": look.with_alpha(look.ink, 0.5)},
            opacity=0.75,
            connectgaps=False,
            hoverinfo="skip",
            colorbar={
                "title": {
                    "text": f"predicted target, {answer.runs.unit}",
                    "font": {"size": 12, "color": look.ink},
                    "side": "bottom",
                },
                "orientation": "h",
                "thickness": 12,
                "len": 0.7,
                "y": -0.02,
                "yanchor": "top",
                "outlinewidth": 0,
                "tickfont": {"color": look.ink},
            },
        )
    )


def _frame(figure: Any, sources: Sequence[str], look: Look) -> None:
    """Draw the edges, their ticks and the names of the corners."""
    corners = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    draw.add_curve(figure, *_place(corners), {"color": look.ink, "width": 1.6})
    # The ticks of a source are on the edge that ends in its corner, counter-clockwise.
    for index, dx in enumerate((-0.05, 0.0, 0.05)):
        before = (index + 2) % 3
        for tick in TICKS:
            row = np.zeros((1, 3))
            row[0, index], row[0, before] = tick, 1 - tick
            x, y = _place(row)
            figure.add_annotation(
                x=float(x[0]) + (0.03 if index == 2 else -0.035 if index == 0 else 0.0),
                y=float(y[0]) + (-0.03 if index == 1 else 0.0),
                text=f"{100 * tick:.0f}",
                showarrow=False,
                font={"size": 11, "color": look.faint},
            )
        middle = np.zeros((1, 3))
        middle[0, [index, before]] = 0.5
        x, y = _place(middle)
        figure.add_annotation(
            x=float(x[0]) + (-0.09, 0.0, 0.09)[index],
            y=float(y[0]) + (0.05, -0.075, 0.05)[index],
            text=f"{draw.plain(sources[index])}, %",
            textangle=(-60, 0, 60)[index],
            showarrow=False,
            font={"size": 12, "color": look.faint},
        )
        x, y = _place(corners[index : index + 1])
        figure.add_annotation(
            x=float(x[0]) + dx,
            y=float(y[0]) + (0.05 if index == 2 else -0.07),
            text=f"<b>{draw.plain(sources[index])}</b> 100 %",
            showarrow=False,
            xanchor=("left", "right", "center")[index],
            font={"size": 14, "color": look.ink},
        )


def _optimum(figure: Any, answer: MixtureAnswer, look: Look) -> None:
    best = answer.best.weights
    outline = _outline([(each.low, each.high) for each in best.values()])
    if len(outline) > 2:
        import plotly.graph_objects as go

        x, y = _place(np.array([*outline, outline[0]]))
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                mode="lines",
                fill="toself",
                fillcolor=look.with_alpha(look.accent, 0.25),
                line={"color": LIGHT.ink, "width": 2},
                hoverinfo="skip",
                name="interval",
            )
        )
    value = np.array([[each.value for each in best.values()]])
    x, y = _place(value)
    draw.add_curve(
        figure,
        x,
        y,
        {
            "symbol": "star",
            "size": 19,
            "color": look.accent,
            "line": {"color": LIGHT.ink, "width": 1.2},
        },
        "best mixture",
        "best: %{customdata}",
        customdata=[
            "<br>".join(
                f"{draw.plain(name)} {limits_words(each.value, each.low, each.high)}"
                for name, each in best.items()
            )
        ],
    )


def _outline(limits: Sequence[tuple[float, float]]) -> list[FloatArray]:
    """Return the corners of the weights (3,) that are inside all limits, in order."""
    if not all(math.isfinite(low + high) for low, high in limits):
        return []
    found = []
    for index in range(3):
        for side in (0, 1):
            first = limits[index][side]
            for other in range(3):
                if other == index:
                    continue
                for end in (0, 1):
                    row = np.zeros(3)
                    row[index], row[other] = first, limits[other][end]
                    third = 3 - index - other
                    row[third] = 1 - first - row[other]
                    low, high = limits[third]
                    if low - 1e-9 <= row[third] <= high + 1e-9:
                        found.append(row)
    if not found:
        return []
    corners = np.unique(np.round(found, 6), axis=0)
    x, y = _place(corners)
    angle = np.arctan2(y - y.mean(), x - x.mean())
    return [corners[i] for i in np.argsort(angle)]

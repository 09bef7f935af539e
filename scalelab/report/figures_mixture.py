"""Figures of mixtures: the best weights, predictions, effects of the sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.report import draw
from scalelab.report.look import LIGHT, Look
from scalelab.units import plural

if TYPE_CHECKING:
    from scalelab.report.mixture_answer import MixtureAnswer

MAX_BARS = 24
"""Most sources drawn; of more, those with the largest weights."""


def weights(answer: MixtureAnswer, look: Look = LIGHT) -> Any:
    """Return the best weight of each source with its interval, and those of the best run."""
    import plotly.graph_objects as go

    best = answer.best
    names = list(best.weights)
    if len(names) > MAX_BARS:
        names = sorted(names, key=lambda name: -best.weights[name].value)[:MAX_BARS]
    # Plotly draws the first category at the bottom.
    names = names[::-1]
    labels = [draw.plain(name) for name in names]
    value = np.array([best.weights[name].value for name in names])
    low = np.array([best.weights[name].low for name in names])
    high = np.array([best.weights[name].high for name in names])
    figure = go.Figure()
    figure.add_trace(
        go.Bar(
            y=labels,
            x=value,
            orientation="h",
            marker={"color": look.with_alpha(look.accent, 0.75)},
            error_x=draw.error_bars(value, low, high, look.ink, 5, 1.6),
            name="best weights, with interval",
            customdata=[_bar_words(answer, name) for name in names],
            hovertemplate="%{y}: %{customdata}<extra></extra>",
        )
    )
    figure.add_trace(
        go.Scatter(
            y=labels,
            x=[best.best_run_weights[name] for name in names],
            mode="markers",
            marker={
                "symbol": "diamond-open",
                "size": 11,
                "color": look.second,
                "line": {"width": 2},
            },
            name=f"best trained mixture, {draw.plain(best.best_run)}",
            hovertemplate="%{y}: %{x:.3f} in the best trained mixture<extra></extra>",
        )
    )
    limits = [_limit(answer, name) for name in names]
    if any(limit is not None for limit in limits):
        figure.add_trace(
            go.Scatter(
                y=[label for label, limit in zip(labels, limits, strict=True) if limit is not None],
                x=[limit for limit in limits if limit is not None],
                mode="markers",
                marker={
                    "symbol": "line-ns",
                    "size": 22,
                    "line": {"width": 2.5, "color": look.faint},
                },
                name="limit of its unique tokens",
                hovertemplate="%{y}: at most %{x:.3f}<extra></extra>",
            )
        )
    left_out = len(best.weights) - len(names)
    shown = ", ".join(f"{n} {best.weights[n].value:.2f}" for n in names[::-1])
    draw.finish(
        figure,
        look,
        alt=f"Best weights for {answer.target_words}: {shown}.",
        x="share of the training tokens",
        height=150 + 44 * len(names),
        legend=True,
    )
    figure.update_xaxes(range=[0, 1], tickformat=".0%")
    figure.update_yaxes(ticklabelstandoff=6)
    figure.update_layout(legend={"y": -90 / (60 + 44 * len(names)), "x": 0}, margin={"r": 34})
    if left_out:
        draw.note_corner(figure, f"{plural(left_out, 'source')} with less weight left out.", look)
    return figure


def agreement(answer: MixtureAnswer, look: Look = LIGHT) -> Any:
    """Return measured against predicted loss, one panel for each evaluation set."""
    from plotly.subplots import make_subplots

    runs, laws = answer.runs, answer.laws
    columns = min(3, len(laws))
    n_rows = -(-len(laws) // columns)
    figure = make_subplots(
        rows=n_rows,
        cols=columns,
        subplot_titles=[f"{draw.plain(law.name)}, R² {law.r2:.3f}" for law in laws],
        horizontal_spacing=0.1,
        vertical_spacing=0.28 / n_rows,
    )
    sizes = np.unique(runs.n_params) if runs.n_params is not None else np.array([])
    shades = dict(zip(sizes.tolist(), look.shades(len(sizes)), strict=False))
    some = draw.thinned(runs.n, draw.MAX_POINTS // len(laws))
    colours = [
        look.second if runs.n_params is None else shades[float(runs.n_params[i])] for i in some
    ]
    words = [f"{name}: {mixture_words(runs.sources, runs.weights[i])}"
             for i, name in enumerate(run_names(answer))]  # fmt: skip
    for index, law in enumerate(laws):
        row, col = index // columns + 1, index % columns + 1
        measured = runs.losses[law.name]
        both = np.concatenate([measured, law.predicted])
        ends = np.array([both.min(), both.max()])
        line = {"color": look.faint, "width": 1, "dash": "4px,3px"}
        draw.add_curve(figure, ends, ends, line, row=row, col=col)
        draw.add_curve(
            figure,
            law.predicted[some],
            measured[some],
            {"size": 6, "color": colours, "opacity": 0.85},
            "",
            "%{customdata}<br>predicted %{x:.4f}, measured %{y:.4f}",
            customdata=[words[i] for i in some],
            row=row,
            col=col,
        )
    draw.finish(
        figure,
        look,
        alt=f"Measured against predicted loss of {plural(len(laws), 'evaluation set')}; points on "
        "the dashed line are predicted exactly.",
        height=60 + 270 * n_rows,
    )
    figure.update_annotations(font={"size": 13, "color": look.ink})
    figure.update_xaxes(nticks=5)
    figure.update_yaxes(nticks=6)
    for column in range(1, columns + 1):
        row = n_rows if column <= (len(laws) - 1) % columns + 1 else max(1, n_rows - 1)
        figure.update_xaxes(title_text="predicted", row=row, col=column)
    for row in range(1, n_rows + 1):
        figure.update_yaxes(title_text="measured", row=row, col=1)
    figure.update_layout(margin={"t": 44, "b": 40})
    return figure


def effects(answer: MixtureAnswer, look: Look = LIGHT) -> Any:
    """Return how each set's loss changes if 10 % more of the tokens come from a source."""
    import plotly.graph_objects as go

    laws, sources = answer.laws, list(answer.sources)
    values = np.array([[law.effects[source].value for source in sources] for law in laws])
    most = float(np.abs(values).max()) or 1.0
    text = [[f"{value:+.3f}" for value in row] for row in values]
    hover = [
        [_effect_words(law.name, source, law.effects[source], answer.level) for source in sources]
        for law in laws
    ]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[draw.plain(source) for source in sources],
            y=[draw.plain(law.name) for law in laws],
            zmin=-most,
            zmax=most,
            colorscale=[
                [0.0, look.with_alpha(look.third, 0.6)],
                [0.5, look.with_alpha(look.paper, 0.6)],
                [1.0, look.with_alpha(look.accent, 0.6)],
            ],
            text=text,
            texttemplate="%{text}",
            textfont={"color": look.ink},
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            showscale=False,
            xgap=2,
            ygap=2,
        )
    )
    rows = "; ".join(f"{law.name}: {', '.join(t)}" for law, t in zip(laws, text, strict=True))
    draw.finish(
        figure,
        look,
        alt="Change of the loss of each evaluation set if 10 % more of the tokens come from a "
        f"source: {rows}.",
        x="10 % more of the tokens from",
        height=130 + 40 * len(laws),
    )
    figure.update_yaxes(autorange="reversed", ticks="", title_text="change of the loss on")
    figure.update_xaxes(ticks="", showgrid=False)
    return figure


def run_names(answer: MixtureAnswer) -> list[str]:
    """Return the name of each trained mixture."""
    names = answer.runs.names or [f"run {i + 1}" for i in range(answer.runs.n)]
    return [draw.plain(name) for name in names]


def _limit(answer: MixtureAnswer, name: str) -> float | None:
    """Return the largest weight that the unique tokens of a source allow; None if 1."""
    from scalelab.fit.mixing_goal import MixtureLimits

    unique, n_tokens = answer.unique_tokens.get(name), answer.best.n_tokens
    if unique is None or not n_tokens:
        return None
    most = MixtureLimits().max_epochs * unique / n_tokens
    return most if most < 1 else None


def _bar_words(answer: MixtureAnswer, name: str) -> str:
    weight = answer.best.weights[name]
    epochs = answer.best.epochs.get(name)
    words = limits_words(weight.value, weight.low, weight.high)
    return words if epochs is None else f"{words}<br>{epochs:.2g} epochs"


def limits_words(value: float, low: float, high: float) -> str:
    """Return a weight with its interval, if there is one."""
    span = f" ({low:.3f} to {high:.3f})" if math.isfinite(low + high) else ""
    return f"{value:.3f}{span}"


def mixture_words(sources: Sequence[str], row: FloatArray) -> str:
    """Return a mixture in words, such as ``code 70 %, web 30 %``."""
    found = [
        f"{draw.plain(name)} {100 * weight:.0f} %"
        for name, weight in zip(sources, row, strict=True)
        if weight > 0
    ]
    return ", ".join(found)


def _effect_words(name: str, source: str, change: Any, level: float) -> str:
    span = (
        f"<br>{change.low:+.4f} to {change.high:+.4f} ({100 * level:g} %)"
        if math.isfinite(change.low)
        else ""
    )
    return f"{draw.plain(name)} {change.value:+.4f} with 10 % more of {draw.plain(source)}{span}"

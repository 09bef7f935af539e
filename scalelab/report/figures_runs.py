"""Training curves and costs of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.report import draw
from scalelab.report.look import FLOPS, LIGHT, Look
from scalelab.units import format_flops, plural

if TYPE_CHECKING:
    import pandas as pd

PANELS = (
    ("loss_nats", "training loss, nats per token"),
    ("lr", "learning rate"),
    ("grad_norm", "gradient norm"),
    ("tflops_per_s", "TFLOP/s"),
    ("mfu", "share of peak (MFU)"),
)
FIRST_PANEL = 1.7
"""Height of the loss panel relative to the others."""
PANEL_HEIGHT = 185
FIRST_SHARE = 0.01
LABEL_PIXELS = 64
"""Margin on the right for a run's label, which is as long on a narrow page."""


def losses(table: pd.DataFrame, look: Look = LIGHT) -> Any:
    """Return the training losses of runs against tokens, without their first steps; see `curves`.

    The first `FIRST_SHARE` of the tokens would take most of both axes.
    """
    late = table[table["tokens"] >= FIRST_SHARE * table["tokens"].max()] if len(table) else table
    return curves(late.assign(**{key: None for key, _ in PANELS[1:]}), look=look)


def curves(table: pd.DataFrame, by: str = "tokens", look: Look = LIGHT) -> Any:
    """Return loss, learning rate, gradient norm and speed of runs, with labels at their ends.

    Parameters
    ----------
    table : DataFrame
        ``run_id``, ``label``, ``tokens``, ``flops`` and the columns of `PANELS`, as
        `scalelab_dashboard.data.curves`.
    by : {"tokens", "flops"}
        The x axis.
    look : Look
    """
    from plotly.subplots import make_subplots

    panels = [(key, name) for key, name in PANELS if len(table) and table[key].notna().any()]
    if not panels:
        return draw.empty(look, "These runs have no training curve yet.", height=220)
    n_cols, places = _places(len(panels))
    n_rows = places[-1][0]
    figure = make_subplots(
        rows=n_rows,
        cols=n_cols,
        specs=[
            [{"colspan": n_cols}, *([None] * (n_cols - 1))],
            *([[{} for _ in range(n_cols)]] * (n_rows - 1)),
        ],
        row_heights=[FIRST_PANEL, *([1.0] * (n_rows - 1))],
        vertical_spacing=0.28 / n_rows,
        horizontal_spacing=0.14,
    )
    groups = list(table.groupby("run_id", sort=False))
    colours = look.shades(len(groups))
    for (row, col), (key, name) in zip(places, panels, strict=True):
        for (_, curve), colour in zip(groups, colours, strict=True):
            good = curve[curve[key].notna() & (curve[by] > 0)]
            if not len(good):
                continue
            label = draw.plain(good["label"].iloc[0])
            x, y, style = good[by].to_numpy(), good[key].to_numpy(), {"color": colour, "width": 1.6}
            hover = f"{label}<br>{by} %{{x:.3g}}<br>{name} %{{y:.4g}}"
            draw.add_curve(figure, x, y, style, label, hover, row=row, col=col)
        values = table[key].dropna().to_numpy(float)
        if np.ptp(values) <= 1e-6 * np.abs(values).max():
            # do not magnify the rounding errors of a constant
            figure.update_yaxes(range=[0, 1.25 * float(values.max()) or 1.0], row=row, col=col)
        if row == 1:
            figure.update_yaxes(title_text=name, row=row, col=col)
        else:
            _head(figure, name, row, col)
    draw.finish(
        figure,
        look,
        alt=f"Training curves of {plural(len(groups), 'run')}: "
        f"{', '.join(name for _, name in panels)}.",
        height=PANEL_HEIGHT * (n_rows + 1),
    )
    figure.update_layout(margin_r=LABEL_PIXELS)
    values = table[by].to_numpy(float)
    values = values[values > 0]
    low, high = np.log10(values.min()), np.log10(values.max())
    figure.update_xaxes(**draw.log_axis(values, sizes=by == "tokens"), matches="x")
    figure.update_xaxes(range=[low - 0.03, high + 0.03], row=1, col=1)
    title = "training tokens" if by == "tokens" else FLOPS
    for row, col in places:
        if row == n_rows or n_rows == 1:
            figure.update_xaxes(title_text=title, row=row, col=col)
    _label_ends(figure, groups, colours, panels[0][0], by, look)
    return figure


def _places(count: int) -> tuple[int, list[tuple[int, int]]]:
    """Return the number of columns, and row and column of each panel; the first spans a row."""
    n_cols = 2  # more would collide on a narrow page
    return n_cols, [(1, 1), *((2 + i // n_cols, 1 + i % n_cols) for i in range(count - 1))]


def _head(figure: Any, name: str, row: int, col: int) -> None:
    """Write the name of a small panel above it: beside it, the name is on the panel before."""
    at = figure.get_subplot(row, col)
    figure.add_annotation(
        text=name,
        x=0,
        y=1,
        xref=f"{at.xaxis.plotly_name.replace('axis', '')} domain",
        yref=f"{at.yaxis.plotly_name.replace('axis', '')} domain",
        xanchor="left",
        yanchor="bottom",
        showarrow=False,
    )


def _label_ends(
    figure: Any, groups: list[Any], colours: list[str], key: str, by: str, look: Look
) -> None:
    """Write the name of each curve at its end in the first panel, without overlap."""
    ends = []
    for (_, curve), colour in zip(groups, colours, strict=True):
        good = curve[curve[key].notna() & (curve[by] > 0)]
        if len(good):
            ends.append((float(good[key].iloc[-1]), float(good[by].iloc[-1]), good, colour))
    ends.sort(key=lambda end: end[0])
    for rank, (y, x, good, colour) in enumerate(ends):
        figure.add_annotation(
            x=float(np.log10(x)),
            y=y,
            text=draw.plain(good["label"].iloc[0]),
            showarrow=False,
            xanchor="left",
            xshift=4,
            yshift=15 * (rank - (len(ends) - 1) / 2) + 12,
            font={"color": colour, "size": 11},
            bgcolor=look.with_alpha(look.paper, 0.75),
            borderpad=0,
            row=1,
            col=1,
        )


def costs(table: pd.DataFrame, column: str, unit: str, look: Look = LIGHT) -> Any:
    """Return spent, wasted and planned cost by budget, as stacked bars.

    Parameters
    ----------
    table : DataFrame
        ``budget`` and ``spent_X``, ``wasted_X``, ``planned_X`` for X = ``column``, as
        `scalelab_dashboard.data.costs`.
    column : str
        The cost.
    unit : str
        Its name with unit.
    look : Look
    """
    import plotly.graph_objects as go

    if not len(table):
        return draw.empty(look, "No costs yet.", height=240)
    names = [
        "none" if not np.isfinite(budget) else format_flops(budget) for budget in table["budget"]
    ]
    figure = go.Figure()
    parts = (
        ("spent", "spent on results", look.third, ""),
        ("wasted", "wasted (no result)", look.accent, "x"),
        ("planned", "planned", look.faint, "/"),
    )
    for key, name, colour, pattern in parts:
        values = table[f"{key}_{column}"].to_numpy(float)
        figure.add_trace(
            go.Bar(
                x=names,
                y=values,
                name=name,
                marker={"color": colour, "pattern": {"shape": pattern}},
                hovertemplate=f"budget %{{x}}<br>{name}: %{{y:.4g}} {unit}<extra></extra>",
            )
        )
    total = {key: float(np.nansum(table[f"{key}_{column}"])) for key, *_ in parts}
    draw.finish(
        figure,
        look,
        alt=(
            f"Cost by budget in {unit}: {total['spent']:.3g} spent on results, "
            f"{total['wasted']:.3g} wasted, {total['planned']:.3g} planned."
        ),
        x="isoFLOP budget, FLOP",
        y=unit,
        legend=True,
        height=360,
    )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(type="category")
    figure.update_yaxes(exponentformat="power", rangemode="tozero")
    return figure

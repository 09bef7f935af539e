"""The isoFLOP valleys: runs, one parabola a budget, minima with intervals, and the frontier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.report.look import (
    LIGHT,
    LOSS,
    MAX_POINTS,
    PARAMS,
    Look,
    empty,
    finish,
    label_end,
    log_axis,
    note_corner,
    short,
    thinned,
)
from scalelab.units import format_flops, format_quantity

if TYPE_CHECKING:
    from scalelab.fit.isoflop import IsoflopCurve, IsoflopFit
    from scalelab.forecast.bands import Bands
    from scalelab.records.types import Observations

CURVE_POINTS = 60
MAX_VALLEYS = 24
"""Most parabolas drawn one by one; of more, evenly spaced ones are drawn and the figure says so."""
MAX_LABELS = 10


def valleys(
    rows: Observations, isoflop: IsoflopFit, bands: Bands | None = None, look: Look = LIGHT
) -> Any:
    """Return the isoFLOP valleys: runs, parabolas, minima with intervals, and the frontier.

    Parameters
    ----------
    rows : Observations
        The runs.
    isoflop : IsoflopFit
        Approach 2 on them.
    bands : Bands, optional
        The compute-optimal frontier of approach 3, where it is known already.
    look : Look
    """
    import plotly.graph_objects as go

    if not isoflop.curves:
        return empty(look, "No budget has three sizes yet: no valley to draw.")
    figure = go.Figure()
    drawn = _some(isoflop.curves, MAX_VALLEYS)
    colours = look.shades(len(drawn))
    named = set(range(0, len(drawn), max(1, -(-len(drawn) // MAX_LABELS)))) | {len(drawn) - 1}
    share = max(30, MAX_POINTS // len(drawn))
    losses = np.concatenate([rows.loss_nats[valley.rows] for valley in drawn])
    low, high = float(losses.min()), float(np.quantile(losses, 0.97))
    top = high + 0.08 * (high - low)
    for i, (valley, colour) in enumerate(zip(drawn, colours, strict=True)):
        _valley(figure, rows, valley, colour, share, top if i in named else None)
    _minima(figure, drawn, look)
    if bands is not None:
        inside = (bands.loss >= low - 0.1 * (high - low)) & (bands.loss <= high)
        if inside.sum() > 1:
            figure.add_trace(
                go.Scatter(
                    x=short(bands.n_params[inside]),
                    y=short(bands.loss[inside]),
                    mode="lines",
                    line={"color": look.accent, "width": 2, "dash": "dash"},
                    name="frontier, approach 3",
                    hovertemplate="frontier<br>N %{x}<br>loss %{y:.4f}<extra></extra>",
                )
            )
    sizes = np.concatenate([rows.n_params[valley.rows] for valley in drawn])
    left_out = len(isoflop.curves) - len(drawn)
    above = int((losses > top).sum())
    note = f" {left_out} of {len(isoflop.curves)} budgets are not drawn." if left_out else ""
    if above:
        note += f" {above} run{'s lie' if above > 1 else ' lies'} above the frame."
    shown = sum(min(len(valley.rows), share) for valley in drawn)
    if shown < len(losses):
        note += f" {shown:,} of {len(losses):,} runs are drawn."
    found = sum(valley.is_interior for valley in isoflop.curves)
    finish(
        figure,
        look,
        alt=(
            f"Loss against parameters in {len(isoflop.curves)} isoFLOP valleys from "
            f"{format_flops(isoflop.curves[0].budget)} to "
            f"{format_flops(isoflop.curves[-1].budget)} FLOP; {found} have their minimum "
            f"inside the grid.{note}"
        ),
        x=PARAMS,
        y=LOSS,
        height=620,
    )
    figure.update_xaxes(**log_axis(sizes, sizes=True))
    figure.update_yaxes(range=[low - 0.08 * (high - low), top])
    if note:
        note_corner(figure, note.strip(), look)
    figure.update_layout(margin={"r": 76})
    return figure


def _valley(
    figure: Any,
    rows: Observations,
    valley: IsoflopCurve,
    colour: str,
    share: int,
    top: float | None,
) -> None:
    """Draw runs and parabola of one budget, named where the curve ends or leaves the frame."""
    import plotly.graph_objects as go

    name = f"{format_flops(valley.budget)} FLOP"
    some = valley.rows[thinned(len(valley.rows), share)]
    figure.add_trace(
        go.Scatter(
            x=short(rows.n_params[some]),
            y=short(rows.loss_nats[some]),
            mode="markers",
            marker={"color": colour, "size": 6 if len(some) < 200 else 3.5, "opacity": 0.75},
            name=name,
            hovertemplate=f"{name}<br>N %{{x}}<br>loss %{{y:.4f}}<extra></extra>",
        )
    )
    sizes = rows.n_params[valley.rows]
    span = np.geomspace(sizes.min(), sizes.max(), CURVE_POINTS)
    curve = valley.n_params.curve(span)
    figure.add_trace(
        go.Scatter(
            x=short(span),
            y=short(curve),
            mode="lines",
            line={"color": colour, "width": 1.6},
            hoverinfo="skip",
            name=name,
        )
    )
    if top is not None:
        end = int(np.flatnonzero(curve <= top)[-1]) if (curve <= top).any() else -1
        label_end(figure, float(span[end]), float(curve[end]), format_flops(valley.budget), colour)


def _minima(figure: Any, drawn: tuple[IsoflopCurve, ...], look: Look) -> None:
    """Mark every interior minimum with its interval, where it has one."""
    import plotly.graph_objects as go

    found = [valley.n_params for valley in drawn if valley.is_interior]
    if not found:
        return
    value = np.array([bottom.value for bottom in found])
    low = np.array([bottom.low or bottom.value for bottom in found])
    high = np.array([bottom.high or bottom.value for bottom in found])
    figure.add_trace(
        go.Scatter(
            x=value,
            y=[bottom.loss for bottom in found],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": high - value,
                "arrayminus": value - low,
                "color": look.ink,
                "thickness": 1.3,
                "width": 4,
            },
            mode="markers",
            marker={
                "symbol": "diamond",
                "size": 9,
                "color": look.paper,
                "line": {"color": look.ink, "width": 1.6},
            },
            name="minimum with its interval",
            customdata=[
                [format_quantity(float(end)) for end in ends]
                for ends in zip(low, high, strict=True)
            ],
            hovertemplate="minimum<br>N %{x} (%{customdata[0]} to %{customdata[1]})"
            "<br>loss %{y:.4f}<extra></extra>",
        )
    )


def _some(found: tuple[IsoflopCurve, ...], limit: int) -> tuple[IsoflopCurve, ...]:
    """Return at most ``limit`` of the valleys, evenly spaced, both ends kept."""
    if len(found) <= limit:
        return found
    return tuple(
        found[i] for i in np.unique(np.linspace(0, len(found) - 1, limit).round()).astype(int)
    )

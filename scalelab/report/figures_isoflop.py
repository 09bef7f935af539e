"""IsoFLOP curves: runs, one parabola per budget, minima with intervals, and the frontier."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.fit.isoflop import misfits
from scalelab.report import draw
from scalelab.report.look import LIGHT, PARAMS, Look
from scalelab.units import format_flops, plural

if TYPE_CHECKING:
    from scalelab.fit.isoflop import IsoflopCurve, IsoflopFit
    from scalelab.forecast.bands import Bands
    from scalelab.records.types import Observations

CURVE_POINTS = 60
MAX_CURVES = 24
"""Most parabolas drawn. Of more, evenly spaced ones are drawn, and the figure says so."""
MAX_LABELS = 10
PLOT_PX = 530
"""Height of the plot without its axes, pixels."""
NOTE_CHARACTERS = 46
"""Characters of a line of the notes: it fits a window of 420 pixels."""
NOTE_SHARE = 0.04
"""Room for a line of the notes below the runs, as a share of the range of the losses."""


def isoflop_curves(
    rows: Observations, isoflop: IsoflopFit, bands: Bands | None = None, look: Look = LIGHT
) -> Any:
    """Return the isoFLOP curves: runs, parabolas, minima with intervals, and the frontier.

    Parameters
    ----------
    rows : Observations
        The runs.
    isoflop : IsoflopFit
        Approach 2, fitted to them.
    bands : Bands, optional
        Compute-optimal frontier, if it is known already.
    look : Look
    """
    import plotly.graph_objects as go

    if not isoflop.curves:
        return draw.empty(look, "No isoFLOP curve: no budget has three sizes yet.")
    figure = go.Figure()
    drawn = _some(isoflop.curves, MAX_CURVES)
    is_missed = misfits(rows, drawn)
    colours = look.shades(len(drawn))
    named = set(range(0, len(drawn), max(1, -(-len(drawn) // MAX_LABELS)))) | {len(drawn) - 1}
    share = max(30, draw.MAX_POINTS // len(drawn))
    losses = np.concatenate([rows.loss_nats[iso.every_row] for iso in drawn])
    low, high = float(losses.min()), float(np.quantile(losses, 0.97))
    top = high + 0.08 * (high - low)
    for i, (iso, colour) in enumerate(zip(drawn, colours, strict=True)):
        is_sound = iso.is_interior and not is_missed[i]
        _curve(figure, rows, iso, colour, share, top if i in named else None, is_sound=is_sound)
    _minima(figure, drawn, look)
    if bands is not None:
        inside = (bands.loss >= low - 0.1 * (high - low)) & (bands.loss <= high)
        if inside.sum() > 1:
            n_params, loss = bands.n_params[inside], bands.loss[inside]
            style = {"color": look.accent, "width": 2, "dash": "dash"}
            hover = "frontier<br>N %{customdata}<br>loss %{y:.4f}"
            name, words = "compute-optimal frontier", draw.sizes(n_params)
            draw.add_curve(figure, n_params, loss, style, name, hover, customdata=words)
    sizes = np.concatenate([rows.n_params[iso.rows] for iso in drawn])
    left_out = len(isoflop.curves) - len(drawn)
    above = int((losses > top).sum())
    notes = [f"{left_out} of {len(isoflop.curves)} budgets not drawn."] if left_out else []
    if above:
        notes.append(f"{plural(above, 'run')} above the plotted range.")
    shown = sum(min(len(iso.rows), share) + len(iso.outliers) for iso in drawn)
    if shown < len(losses):
        notes.append(f"{shown:,} of {len(losses):,} runs drawn.")
    n_outliers = sum(len(iso.outliers) for iso in drawn)
    if n_outliers:
        notes.append(
            f"Hollow: {plural(n_outliers, 'outlier')} of a parabola, left out of it. The warnings "
            "count those of the law."
        )
    if any(not iso.is_interior for iso in drawn):
        notes.append("Dashed: no minimum inside the grid.")
    if any(is_missed):
        missed = ", ".join(
            format_flops(iso.budget) for iso, is_bad in zip(drawn, is_missed, strict=True) if is_bad
        )
        notes.append(f"Dashed, {missed} FLOP: the parabola misses its runs.")
    found = sum(iso.is_interior for iso in isoflop.curves)
    draw.finish(
        figure,
        look,
        alt=(
            f"Loss against parameters: {plural(len(isoflop.curves), 'isoFLOP curve')} from "
            f"{format_flops(isoflop.curves[0].budget)} to "
            f"{format_flops(isoflop.curves[-1].budget)} FLOP; {found} with a minimum "
            f"inside the grid. {' '.join(notes)}"
        ),
        x=PARAMS,
        y=rows.metric.axis,
        height=PLOT_PX + 90,
    )
    figure.update_xaxes(**draw.log_axis(sizes, sizes=True))
    lines = [line for note in notes for line in textwrap.wrap(note, NOTE_CHARACTERS)]
    margin = 0.08 + NOTE_SHARE * len(lines)
    bottom = low - margin * (high - low)
    figure.update_yaxes(range=[bottom, top])
    draw.part_labels(figure, top - bottom, PLOT_PX)
    if lines:
        draw.note_corner(figure, "<br>".join(lines), look)
    figure.update_layout(margin={"r": 76})
    return figure


def _curve(
    figure: Any,
    rows: Observations,
    iso: IsoflopCurve,
    colour: str,
    share: int,
    top: float | None,
    *,
    is_sound: bool,
) -> None:
    """Draw runs and parabola of one budget; its label is where it ends or leaves the plot."""
    name = f"{format_flops(iso.budget)} FLOP"
    some = rows.take(iso.rows[draw.thinned(len(iso.rows), share)])
    size = 6 if len(some) < 200 else 4.5
    style = {"color": colour, "size": size, "opacity": 0.75}
    _runs(figure, some, style, name, "")
    if len(iso.outliers):
        hollow = {**style, "size": size + 1, "symbol": "circle-open", "line": {"width": 1.6}}
        _runs(figure, rows.take(iso.outliers), hollow, name, "<br>outlier: not in the parabola")
    sizes = rows.n_params[iso.rows]
    span = np.geomspace(sizes.min(), sizes.max(), CURVE_POINTS)
    curve = iso.n_params.curve(span)
    line = {"color": colour, "width": 1.6, "dash": "solid" if is_sound else "4px,3px"}
    draw.add_curve(figure, span, curve, line, name)
    if top is not None:
        end = int(np.flatnonzero(curve <= top)[-1]) if (curve <= top).any() else -1
        draw.label_end(
            figure, float(span[end]), float(curve[end]), format_flops(iso.budget), colour
        )


def _runs(figure: Any, rows: Observations, style: dict[str, Any], name: str, note: str) -> None:
    draw.add_curve(
        figure,
        rows.n_params,
        rows.loss_nats,
        style,
        name,
        f"{name}<br>N %{{customdata[0]}}, D %{{customdata[1]}}<br>loss %{{y:.4f}}{note}"
        + ("" if rows.names is None else "<br>%{customdata[2]}"),
        customdata=draw.of_runs(rows),
    )


def _minima(figure: Any, drawn: tuple[IsoflopCurve, ...], look: Look) -> None:
    """Draw every interior minimum, with its interval if it has one."""
    found = [iso.n_params for iso in drawn if iso.is_interior]
    if not found:
        return
    value = np.array([minimum.value for minimum in found])
    low = np.array([minimum.low or minimum.value for minimum in found])
    high = np.array([minimum.high or minimum.value for minimum in found])
    line = {"color": look.ink, "width": 1.6}
    draw.add_curve(
        figure,
        value,
        np.array([minimum.loss for minimum in found]),
        {"symbol": "diamond", "size": 9, "color": look.paper, "line": line},
        "minimum with its interval",
        "minimum<br>N %{customdata[0]}, %{customdata[1]}<br>loss %{y:.4f}",
        error_x=draw.error_bars(value, low, high, look.ink, 4, 1.3),
        customdata=list(
            zip(
                draw.sizes(value),
                [draw.interval(minimum.low, minimum.high) for minimum in found],
                strict=True,
            )
        ),
    )


def _some(found: tuple[IsoflopCurve, ...], limit: int) -> tuple[IsoflopCurve, ...]:
    """Return at most ``limit`` curves, evenly spaced, with both ends."""
    if len(found) <= limit:
        return found
    return tuple(
        found[i] for i in np.unique(np.linspace(0, len(found) - 1, limit).round()).astype(int)
    )

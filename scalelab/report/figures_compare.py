"""Sweeps, tables and laws over one another: frontiers, losses, speed-ups and exponents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.report import draw
from scalelab.report.look import FLOPS, LIGHT, PARAMS, TOKENS, Look, compared_colours
from scalelab.units import format_flops

if TYPE_CHECKING:
    from scalelab.forecast.bands import Bands
    from scalelab.forecast.comparing import Compared, SourceComparison

CLIP = 3.0
"""Factor beyond the lines at which their bands are clipped."""


def frontiers(
    found: SourceComparison, axis: Literal["n_params", "n_tokens"], look: Look = LIGHT
) -> Any:
    """Return N_opt or D_opt of every source against compute, with bands and its runs' range.

    Parameters
    ----------
    found : SourceComparison
    axis : {"n_params", "n_tokens"}
    look : Look
    """
    drawn = [(part, part.bands) for part in found.parts if part.bands is not None]
    if not drawn:
        return draw.empty(look, "None of these has a compute-optimal frontier.")
    every = np.concatenate([getattr(bands, axis) for _, bands in drawn])
    bottom, top = float(every.min()) / CLIP, float(every.max()) * CLIP
    letter = "N" if axis == "n_params" else "D"
    curves = []
    for part, bands in drawn:
        low, high = getattr(bands, f"{axis}_low"), getattr(bands, f"{axis}_high")
        # A limit that is not bounded would hide the lines of the others.
        limits = np.maximum(low, bottom / 1.1), np.minimum(high, top * 1.1)
        rows = zip(draw.sizes(getattr(bands, axis)), low, high, strict=True)
        hover = [f"{letter} {n}, {draw.interval(a, b, 'no interval')}" for n, a, b in rows]
        curves.append((part, bands.flops, getattr(bands, axis), *limits, hover))
    figure = _lines(
        found,
        curves,
        look,
        alt=f"Compute-optimal {letter} against compute of {_names(drawn)}.",
        y=PARAMS if axis == "n_params" else TOKENS,
    )
    figure.update_yaxes(
        **draw.log_axis(every, sizes=True), range=[math.log10(bottom), math.log10(top)]
    )
    return figure


def losses(found: SourceComparison, look: Look = LIGHT) -> Any:
    """Return the loss at the optimum of every source that compares, against compute, with bands."""
    parts = (found.parts[0], *(part for part in found.parts if part.gap is not None))
    drawn = [(part, part.bands) for part in parts if part.bands is not None]
    curves = []
    for part, at in drawn:
        rows = zip(at.loss, at.low, at.high, strict=True)
        hover = [f"loss {loss:.4g}, {_span(low, high, '.4g')}" for loss, low, high in rows]
        curves.append((part, at.flops, at.loss, at.low, at.high, hover))
    metric = None if found.parts[0].source.rows is None else found.parts[0].source.rows.metric
    return _lines(
        found,
        curves,
        look,
        alt=f"Loss at the compute-optimal N and D against compute of {_names(drawn)}.",
        y="loss" if metric is None else metric.axis,
    )


def speedups(found: SourceComparison, look: Look = LIGHT) -> Any:
    """Return the speed-up of every source over the reference against compute; 1 is no difference.

    A source whose runs do not determine its own law has one factor for every compute.
    """
    curves = []
    for part in found.parts[1:]:
        gaps = [gap for gap in part.gaps if gap.is_reached]
        flops = np.array([gap.flops for gap in gaps])
        factors = [gap.speedup for gap in gaps]
        if not factors and part.one_factor is not None:
            flops = np.array(part.source.span)
            factors = [part.one_factor.factor] * 2
        if not factors:
            continue
        value, low, high = np.array([(each.value, each.low, each.high) for each in factors]).T
        hover = [
            f"speed-up {each.value:.3g}, {_span(each.low, each.high, '.3g')}" for each in factors
        ]
        curves.append((part, flops, value, low, high, hover))
    if not curves:
        return draw.empty(look, "None of these has a speed-up that can be compared.", height=200)
    at = "; ".join(
        f"{part.source.name} {part.speedup.value:.3f}" for part, *_ in curves if part.speedup
    )
    figure = _lines(
        found,
        curves,
        look,
        alt=f"Speed-up over {found.parts[0].source.name} against compute; at "
        f"{format_flops(found.flops)} FLOP: {at}.",
        y=f"speed-up over {draw.plain(found.parts[0].source.name)}",
    )
    figure.add_hline(y=1, line={"color": look.faint, "width": 1})
    return figure


Curve = tuple["Compared", FloatArray, FloatArray, FloatArray, FloatArray, list[str]]
"""A source with its compute, values, both limits and hover texts."""


def _lines(
    found: SourceComparison, curves: Sequence[Curve], look: Look, *, alt: str, y: str
) -> Any:
    """Return curves with bands against compute, each in the colour of its source."""
    import plotly.graph_objects as go

    figure = go.Figure()
    colours = dict(
        zip(
            (part.source.name for part in found.parts),
            compared_colours(look, len(found.parts)),
            strict=True,
        )
    )
    for part, flops, value, low, high, hover in curves:
        colour = colours[part.source.name]
        draw.add_band(figure, flops, low, high, look.with_alpha(colour, 0.16))
        name = draw.plain(part.source.name)
        draw.add_curve(
            figure,
            flops,
            value,
            {
                "color": colour,
                "width": 2.2,
                "dash": "dash" if part.source.kind == "law" else "solid",
            },
            name,
            f"{name}<br>C %{{customdata[0]}} FLOP<br>%{{customdata[1]}}",
            customdata=list(zip(map(format_flops, flops), hover, strict=True)),
            showlegend=True,
        )
    figure.add_vline(x=found.flops, line={"color": look.faint, "width": 1})
    draw.finish(figure, look, alt=alt, x=FLOPS, y=y, legend=True, height=430)
    figure.update_xaxes(**draw.log_axis([curve[1] for curve in curves]))
    return figure


def _names(drawn: Sequence[tuple[Compared, Bands]]) -> str:
    return ", ".join(part.source.name for part, _ in drawn)


def _span(low: float, high: float, form: str) -> str:
    if math.isnan(low + high):
        return "no interval"
    ends = (format(each, form) if math.isfinite(each) else "no limit" for each in (low, high))
    return " to ".join(ends)


def exponent_forest(found: SourceComparison, look: Look = LIGHT) -> Any:
    """Return the exponent a of every source with its interval, in the source's colour."""
    import plotly.graph_objects as go

    colours = compared_colours(look, len(found.parts))
    shown = [
        (draw.plain(part.source.name), part.source.exponents[0], colour)
        for part, colour in zip(found.parts, colours, strict=True)
        if part.source.exponents is not None and math.isfinite(part.source.exponents[0].value)
    ]
    if not shown:
        return draw.empty(look, "None of these has an exponent a.", height=200)
    figure = go.Figure()
    for name, a, colour in shown:
        is_known = math.isfinite(a.low + a.high)
        figure.add_trace(
            go.Scatter(
                x=[a.value],
                y=[name],
                mode="markers",
                marker={"size": 10, "color": colour},
                error_x=draw.error_bars([a.value], [a.low], [a.high], colour, 5, 1.6),
                hovertemplate=f"{name}<br>a {a.value:.3f}, {_span(a.low, a.high, '.3f')}"
                "<extra></extra>",
            )
        )
        draw.add_value(figure, a.high if is_known else a.value, name, a.value, look)
    figure.add_vline(x=0.5, line={"color": look.faint, "width": 1})
    said = "; ".join(f"{name} {a.value:.3f}" for name, a, _ in shown)
    x = "exponent a of N<sub>opt</sub> ∝ C<sup>a</sup>"
    draw.finish(figure, look, alt=f"a: {said}.", x=x, height=110 + 46 * len(shown))
    figure.update_yaxes(range=[len(shown) - 0.5, -0.7], showgrid=False)
    return figure

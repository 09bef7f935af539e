"""Sweeps, tables and laws over one another: frontiers, exponents and speed-ups."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scalelab.report import draw
from scalelab.report.look import FLOPS, LIGHT, PARAMS, TOKENS, Look, compared_colours
from scalelab.units import format_flops

if TYPE_CHECKING:
    from scalelab.forecast.comparing import SourceComparison

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
    import plotly.graph_objects as go

    drawn = [part for part in found.parts if part.bands is not None]
    if not drawn:
        return draw.empty(look, "None of these has a compute-optimal frontier.")
    figure = go.Figure()
    colours = dict(
        zip(
            (part.source.name for part in found.parts),
            compared_colours(look, len(found.parts)),
            strict=True,
        )
    )
    every = np.concatenate([getattr(part.bands, axis) for part in drawn])
    bottom, top = float(every.min()) / CLIP, float(every.max()) * CLIP
    letter = "N" if axis == "n_params" else "D"
    for part in drawn:
        bands, colour = part.bands, colours[part.source.name]
        assert bands is not None
        value = getattr(bands, axis)
        low, high = getattr(bands, f"{axis}_low"), getattr(bands, f"{axis}_high")
        draw.add_band(
            figure,
            bands.flops,
            np.maximum(low, bottom / 1.1),
            np.minimum(high, top * 1.1),
            look.with_alpha(colour, 0.16),
        )
        name = draw.plain(part.source.name)
        limits = [
            draw.interval(float(a), float(b), "no interval") for a, b in zip(low, high, strict=True)
        ]
        words = zip(map(format_flops, bands.flops), draw.sizes(value), limits, strict=True)
        dash = "dash" if part.source.kind == "law" else "solid"
        hover = f"C %{{customdata[0]}} FLOP<br>{letter} %{{customdata[1]}}, %{{customdata[2]}}"
        draw.add_curve(
            figure,
            bands.flops,
            value,
            {"color": colour, "width": 2.2, "dash": dash},
            name,
            f"{name}<br>{hover}",
            customdata=list(words),
            showlegend=True,
        )
    figure.add_vline(x=found.flops, line={"color": look.faint, "dash": "dot", "width": 1})
    names = ", ".join(part.source.name for part in drawn)
    draw.finish(
        figure,
        look,
        alt=f"Compute-optimal {letter} against compute of {names}.",
        x=FLOPS,
        y=PARAMS if axis == "n_params" else TOKENS,
        legend=True,
        height=430,
    )
    figure.update_xaxes(**draw.log_axis([part.bands.flops for part in drawn if part.bands]))
    figure.update_yaxes(
        **draw.log_axis(every, sizes=True), range=[math.log10(bottom), math.log10(top)]
    )
    return figure


def exponent_forest(found: SourceComparison, look: Look = LIGHT) -> Any:
    """Return the exponent a of every source with its interval, in the source's colour."""
    return _forest(
        found,
        [part.source.exponents and part.source.exponents[0] for part in found.parts],
        "exponent a of N<sub>opt</sub> ∝ C<sup>a</sup>",
        "a",
        0.5,
        look,
    )


def speedup_forest(found: SourceComparison, look: Look = LIGHT) -> Any:
    """Return the speed-up of every source of runs over the reference; 1 means no difference."""
    return _forest(
        found,
        [part.speedup and part.speedup.factor for part in found.parts],
        f"speed-up over {draw.plain(found.parts[0].source.name)} (dotted: equal)",
        "speed-up",
        1.0,
        look,
    )


def _forest(
    found: SourceComparison, values: list[Any], axis: str, word: str, mark: float, look: Look
) -> Any:
    import plotly.graph_objects as go

    colours = compared_colours(look, len(found.parts))
    shown = [
        (draw.plain(part.source.name), each, colour)
        for part, each, colour in zip(found.parts, values, colours, strict=True)
        if each is not None and math.isfinite(each.value)
    ]
    if not shown:
        return draw.empty(look, f"None of these has a {word} that can be compared.", height=200)
    figure = go.Figure()
    for name, each, colour in shown:
        is_known = math.isfinite(each.low + each.high)
        limits = f" ({each.low:.3f} to {each.high:.3f})" if is_known else " (no interval)"
        figure.add_trace(
            go.Scatter(
                x=[each.value],
                y=[name],
                mode="markers",
                marker={"size": 10, "color": colour},
                error_x=draw.error_bars([each.value], [each.low], [each.high], colour, 5, 1.6),
                hovertemplate=f"{name}<br>{word} {each.value:.3f}{limits}<extra></extra>",
            )
        )
        end = each.high if is_known else each.value
        draw.add_value(figure, end, name, each.value, look)
    figure.add_vline(x=mark, line={"color": look.faint, "dash": "dot", "width": 1})
    said = "; ".join(f"{name} {each.value:.3f}" for name, each, _ in shown)
    draw.finish(figure, look, alt=f"{word}: {said}.", x=axis, height=110 + 46 * len(shown))
    figure.update_yaxes(range=[len(shown) - 0.5, -0.7], showgrid=False)
    return figure

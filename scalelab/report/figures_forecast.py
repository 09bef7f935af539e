"""Extrapolated loss, and published models compared with the law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.forecast.published import FAR
from scalelab.report import draw
from scalelab.report.look import FLOPS, LIGHT, PARAMS, TOKENS, Look
from scalelab.units import format_flops, format_quantity

if TYPE_CHECKING:
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.bands import Bands
    from scalelab.forecast.fit_report import FitReport
    from scalelab.forecast.published import PublishedModel
    from scalelab.records.types import Observations

FADED = 0.18
"""Opacity of models so far beyond the runs that their assessment is a guess."""


def extrapolation(
    report: FitReport,
    bands: Bands | None,
    asked: Sequence[Forecast] = (),
    held: Observations | None = None,
    look: Look = LIGHT,
) -> Any:
    """Return the loss along the frontier with both intervals; the fitted range is shaded.

    Parameters
    ----------
    report : FitReport
    bands : Bands or None
        The frontier from the smallest run to the target.
    asked : sequence of Forecast
        Targets to mark.
    held : Observations, optional
        Runs that were not fitted, to be drawn over it.
    look : Look
    """
    import plotly.graph_objects as go

    from scalelab.theory.accounting import train_flops_6nd

    if bands is None:
        return draw.empty(
            look,
            "No frontier: the runs do not determine compute-optimal N and D. See the Fit view.",
        )
    figure = go.Figure()
    rows = report.observations
    reached = train_flops_6nd(rows.n_params, rows.n_tokens)
    figure.add_vrect(
        x0=float(reached.min()),
        x1=float(reached.max()),
        fillcolor=look.faint,
        opacity=0.13,
        line_width=0,
    )
    flops = bands.flops
    draw.add_band(
        figure, flops, bands.pred_low, bands.pred_high, look.with_alpha(look.second, 0.16)
    )
    draw.add_band(figure, flops, bands.low, bands.high, look.with_alpha(look.accent, 0.3))
    hover = (
        "compute-optimal<br>C %{customdata[0]} FLOP: N %{customdata[1]}, D %{customdata[2]}<br>"
        "loss %{y:.4f}"
    )
    style = {"color": look.accent, "width": 2.4}
    words = zip(
        map(format_flops, flops),
        draw.sizes(bands.n_params),
        draw.sizes(bands.n_tokens),
        strict=True,
    )
    draw.add_curve(
        figure, flops, bands.loss, style, "compute-optimal", hover, customdata=list(words)
    )
    some = draw.thinned(len(rows))
    _runs(figure, reached[some], rows.take(some), "fitted runs", look.faint, 4)
    if held is not None and len(held):
        held = held.take(draw.thinned(len(held)))
        at = train_flops_6nd(held.n_params, held.n_tokens)
        _runs(figure, at, held, "held-out runs", look.third, 7)
    for each in asked:
        if each.flops is None:
            continue
        loss = np.array([each.loss_nats])
        draw.add_curve(
            figure,
            np.array([each.flops]),
            loss,
            {"symbol": "star", "size": 15, "color": look.accent},
            "target",
            "target<br>C %{customdata[0]} FLOP<br>loss %{customdata[1]}",
            error_y=draw.error_bars(loss, [each.pred_low], [each.pred_high], look.ink, 6, 2),
            customdata=[[format_flops(each.flops), _with_limits(each)]],
        )
        figure.add_annotation(
            x=float(np.log10(each.flops)),
            y=max(each.loss_nats, _or(each.pred_high, each.loss_nats)),
            text=draw.plain(each.asked),
            showarrow=False,
            yanchor="bottom",
            yshift=10,
            font={"color": look.ink, "size": 12},
        )
    share = f"{100 * bands.level:g} %"
    draw.finish(
        figure,
        look,
        alt=(
            f"Loss on the compute-optimal frontier from {format_flops(float(flops[0]))} to "
            f"{format_flops(float(flops[-1]))} FLOP with {share} confidence (inner) and "
            "prediction (outer) bands; the range of the fitted runs is shaded."
        ),
        x=FLOPS,
        y=f"{report.label} ({report.unit})" if report.unit else report.label,
        height=470,
    )
    top = float(np.quantile(rows.loss_nats, 0.97))
    targets = [each.loss_nats for each in asked if each.flops is not None]
    top = max([top, *(_or(each.pred_high, each.loss_nats) for each in asked if each.flops)])
    low = float(np.nanmin([*bands.pred_low, bands.loss.min(), *targets]))
    figure.update_xaxes(
        **draw.log_axis(flops),
        range=[float(np.log10(flops[0])) - 0.1, float(np.log10(flops[-1])) + 0.4],
    )
    figure.update_yaxes(range=[low - 0.05 * (top - low), top + 0.05 * (top - low)])
    draw.note_thinned(figure, len(some), len(rows), look)
    return figure


def published_plane(
    models: Sequence[PublishedModel],
    bands: Bands | None,
    axis: Literal["n_tokens", "flops"],
    named: Sequence[str] = (),
    look: Look = LIGHT,
    *,
    largest: float = math.inf,
) -> Any:
    """Return published models in the N-D or the N-C plane, with the frontier of this fit.

    Parameters
    ----------
    models : sequence of PublishedModel
    bands : Bands or None
        Frontier of this fit over the compute of the models.
    axis : {"n_tokens", "flops"}
        The x axis.
    named : sequence of str
        Models whose names are written.
    look : Look
    largest : float
        Compute of the largest run, FLOP; models beyond 1,000 times it are faded.
    """
    import plotly.graph_objects as go

    title = TOKENS if axis == "n_tokens" else FLOPS
    n_params = np.array([model.n_params for model in models])
    names = [model.name for model in models]
    values = np.array([getattr(model, axis) for model in models])
    places = _places(values, n_params, [name in named for name in names], names)
    figure = go.Figure()
    if bands is not None:
        _law_line(figure, bands, axis, look)
    figure.add_trace(
        go.Scatter(
            x=values,
            y=n_params,
            mode="markers+text",
            marker={
                "color": [look.ink if name in named else look.second for name in names],
                "size": [8 if name in named else 5 for name in names],
                "opacity": [
                    FADED if model.flops > FAR * largest else 1.0 if model.name in named else 0.55
                    for model in models
                ],
            },
            text=[
                draw.plain(name) if place else "" for name, place in zip(names, places, strict=True)
            ],
            textposition=[place or "top center" for place in places],
            textfont={"size": 11, "color": look.ink},
            customdata=[
                [
                    f"{draw.plain(m.name)} ({m.year})",
                    format_quantity(m.n_params),
                    format_quantity(m.n_tokens),
                    format_flops(m.flops),
                    draw.plain(m.source),
                ]
                for m in models
            ],
            hovertemplate="%{customdata[0]}<br>N %{customdata[1]}, D %{customdata[2]}, "
            "C %{customdata[3]} FLOP<br>%{customdata[4]}<extra></extra>",
        )
    )
    draw.finish(
        figure,
        look,
        alt=(
            f"{len(models)} published models by parameters against {title}"
            + (", with the frontier of this fit and its band." if bands is not None else ".")
        ),
        x=title,
        y=PARAMS,
        height=500,
    )
    span = [np.log10(values.min()) - 0.25, np.log10(values.max()) + 0.25]
    figure.update_xaxes(**draw.log_axis(values, sizes=axis == "n_tokens"), range=span)
    figure.update_yaxes(**draw.log_axis(n_params, sizes=True), range=[7.3, 12.3])
    return figure


def _runs(
    figure: Any, flops: FloatArray, rows: Observations, name: str, colour: str, size: int
) -> None:
    hover = f"{name}<br>C %{{x:.3g}} FLOP<br>loss %{{y:.4f}}"
    hover += "" if rows.names is None else "<br>%{customdata[2]}"
    style = {"color": colour, "size": size, "opacity": 0.6}
    draw.add_curve(figure, flops, rows.loss_nats, style, name, hover, customdata=draw.of_runs(rows))


def _law_line(figure: Any, bands: Bands, axis: str, look: Look) -> None:
    x, low, high = getattr(bands, axis), bands.n_params_low, bands.n_params_high
    draw.add_band(figure, x, low, high, look.with_alpha(look.accent, 0.18))
    style = {"color": look.accent, "width": 2.2}
    at = zip(
        map(format_flops, bands.flops),
        draw.sizes(bands.n_params),
        draw.sizes(bands.n_tokens),
        strict=True,
    )
    hover = "optimum at C %{customdata[0]} FLOP<br>N %{customdata[1]}, D %{customdata[2]}"
    draw.add_curve(
        figure, x, bands.n_params, style, "this fit's optimum", hover, customdata=list(at)
    )


def _with_limits(each: Forecast) -> str:
    if not np.isfinite(each.pred_low + each.pred_high):
        return f"{each.loss_nats:.4f}"
    return f"{each.loss_nats:.4f}, prediction interval {each.pred_low:.4f} to {each.pred_high:.4f}"


def _places(x: FloatArray, y: FloatArray, wanted: list[bool], names: list[str]) -> list[str]:
    """Return the position of each wanted name; empty where it would cover a name or a point.

    Boxes are in fractions of a panel of 360 by 390 pixels, the one of a page of 1,400 pixels: a
    letter is about 1.8 % wide, a line about 3.6 % high.
    """
    across = (np.log10(x) - np.log10(x.min()) + 0.25) / (float(np.ptp(np.log10(x))) + 0.5)
    up = (np.log10(y) - 7.3) / 5.0
    points = [(a - 0.007, b - 0.007, a + 0.007, b + 0.007) for a, b in zip(across, up, strict=True)]
    taken: list[tuple[float, float, float, float]] = []
    out = [""] * len(names)
    for i in np.argsort(-y):
        if not wanted[i]:
            continue
        width = 0.018 * len(names[i])
        others = [*points[:i], *points[i + 1 :], *taken]
        for place, left, low in (
            ("top center", -width / 2, 0.012),
            ("middle right", 0.015, -0.017),
            ("middle left", -width - 0.015, -0.017),
            ("bottom center", -width / 2, -0.048),
        ):
            box = (across[i] + left, up[i] + low, across[i] + left + width, up[i] + low + 0.036)
            is_inside = box[0] > 0.0 and box[2] < 1.02
            if is_inside and not any(_overlap(box, other) for other in others):
                taken.append(box)
                out[i] = place
                break
    return out


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _or(value: float | None, other: float) -> float:
    return other if value is None or not np.isfinite(value) else float(value)

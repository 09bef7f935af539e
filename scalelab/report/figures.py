"""Plotly figures of the compute-optimal frontier and the loss surface.

`figures_isoflop` has the isoFLOP curves, `figures_fit` the checks of a fit, `figures_forecast` the
extrapolations, and `figures_runs` the runs. The dashboard and the HTML report use them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.forecast.bands import surface
from scalelab.forecast.extrapolation import fitted_range
from scalelab.report import draw
from scalelab.report.look import FLOPS, LIGHT, PARAMS, TOKENS, Look
from scalelab.theory.accounting import PARAM_WORDS
from scalelab.units import format_flops, format_quantity, plural

if TYPE_CHECKING:
    from scalelab.fit.isoflop import IsoflopFit
    from scalelab.forecast.bands import Bands
    from scalelab.forecast.fit_report import FitReport
    from scalelab.records.types import Observations

CLIP = 3.0
"""Factor beyond the drawn values at which intervals are clipped."""
GRID = 60
LEVELS = 9


def optima(isoflop: IsoflopFit, bands: Bands | None, rows: Observations, look: Look = LIGHT) -> Any:
    """Return N_opt and D_opt against compute: approach 2 as points, frontier with band."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    budgets = np.array([curve.budget for curve in isoflop.interior])
    flops = [budgets, *([bands.flops] if bands is not None else []), rows.flops]
    for row, axis in ((1, "n_params"), (2, "n_tokens")):
        minima = np.array([getattr(curve, axis).value for curve in isoflop.interior])
        seen = [minima, getattr(rows if bands is None else bands, axis)]
        span = _clipped(seen)
        if bands is not None:
            _frontier(figure, bands, axis, look, row, span)
        if len(budgets):
            _points(figure, isoflop, axis, look, row, span)
        name = PARAMS if axis == "n_params" else TOKENS
        figure.update_yaxes(
            **draw.log_axis(seen, sizes=True),
            range=[float(np.log10(end)) for end in span],
            title_text=name,
            row=row,
            col=1,
        )
    frontier = ", and the compute-optimal frontier with its band."
    if bands is None:
        frontier = ". There is no frontier yet."
    draw.finish(
        figure,
        look,
        alt=(
            "Compute-optimal parameters and tokens against compute: "
            f"{len(budgets)} minima of approach 2{frontier}"
        ),
        height=620,
    )
    figure.update_xaxes(**draw.log_axis(flops))
    figure.update_xaxes(title_text=FLOPS, row=2, col=1)
    figure.update_xaxes(range=_log_range(np.concatenate(flops[:-1] if len(budgets) else flops)))
    figure.update_layout(margin={"r": 84})
    return figure


def contours(report: FitReport, bands: Bands | None, look: Look = LIGHT) -> Any:
    """Return contours of the loss over N and D, with the runs and the compute-optimal frontier."""
    import plotly.graph_objects as go

    rows = report.observations
    span_n, span_d = _widened(rows.n_params), _widened(rows.n_tokens)
    x, y = np.geomspace(*span_n, GRID), np.geomspace(*span_d, GRID)
    n_params, n_tokens = np.meshgrid(x, y)
    losses = surface(report, n_params.ravel(), n_tokens.ravel())
    if losses is None:
        return draw.empty(look, "No surface over N and D: the runs do not determine it.")
    loss = losses.reshape(GRID, -1)
    # the losses of the runs: far from them, the surface would take all levels
    top = min(float(np.quantile(loss, 0.9)), float(np.quantile(rows.loss_nats, 0.98)))
    levels = np.linspace(loss.min(), max(top, float(loss.min()) + 1e-6), LEVELS + 1)[1:]
    start, end, step = float(levels[0]), float(levels[-1]), float(levels[1] - levels[0])
    figure = go.Figure(
        go.Contour(
            x=draw.short(x),
            y=draw.short(y),
            z=draw.short(loss),
            contours={"start": start, "end": end, "size": step, "coloring": "lines"},
            colorscale=look.scale(),
            reversescale=True,
            line={"width": 1.4},
            showscale=False,
            customdata=[[[n, d] for n in draw.sizes(x)] for d in draw.sizes(y)],
            hovertemplate="N %{customdata[0]}, D %{customdata[1]}<br>loss %{z:.4f}<extra></extra>",
        )
    )
    some = draw.thinned(len(rows))
    runs = rows.take(some)
    style = {"color": look.ink, "size": 6 if len(some) < 500 else 4, "opacity": 0.5}
    at = "N %{customdata[0]}, D %{customdata[1]}"
    draw.add_curve(
        figure,
        runs.n_params,
        runs.n_tokens,
        style,
        "runs",
        f"run<br>{at}<br>loss %{{text}}" + ("" if runs.names is None else "<br>%{customdata[2]}"),
        text=[f"{loss:.4f}" for loss in runs.loss_nats],
        customdata=draw.of_runs(runs),
    )
    if bands is not None:
        draw.add_curve(
            figure,
            bands.n_params,
            bands.n_tokens,
            {"color": look.accent, "width": 2.4},
            "compute-optimal frontier",
            f"frontier<br>{at}",
            customdata=list(
                zip(draw.sizes(bands.n_params), draw.sizes(bands.n_tokens), strict=True)
            ),
        )
    draw.finish(
        figure,
        look,
        alt=(
            "Contours of the predicted loss over parameters and tokens, "
            f"{plural(len(rows), 'run')}, and the compute-optimal frontier."
        ),
        x=PARAMS,
        y=TOKENS,
        height=520,
    )
    figure.update_xaxes(**draw.log_axis(x, sizes=True), range=_log_range(x, 0))
    figure.update_yaxes(**draw.log_axis(y, sizes=True), range=_log_range(y, 0))
    _name_contours(figure, x, y, loss, levels, look)
    draw.note_thinned(figure, len(some), len(rows), look)
    return figure


def _name_contours(
    figure: Any, x: FloatArray, y: FloatArray, loss: FloatArray, levels: FloatArray, look: Look
) -> None:
    """Write the loss of each contour at its end, at the bottom or right edge.

    Plotly's own contour labels double the drawing time in the browser.
    """
    edge = np.concatenate((loss[0], loss[1:, -1]))
    edge_x = np.concatenate((x, np.full(len(y) - 1, x[-1])))
    edge_y = np.concatenate((np.full(len(x), y[0]), y[1:]))
    for level, colour in zip(levels, look.shades(len(levels))[::-1], strict=True):
        below = np.flatnonzero(edge <= level)
        if not len(below):
            continue
        at = int(below[0])
        where = (edge_x[at], edge_y[at], f"{level:.2f}", colour)
        draw.label_end(
            figure, *where, log_y=True, yanchor="bottom" if at < len(x) - 1 else "middle"
        )
    figure.update_layout(margin={"r": 44})


def _frontier(
    figure: Any, bands: Bands, axis: str, look: Look, row: int, span: tuple[float, float]
) -> None:
    name = "compute-optimal frontier"
    place: dict[str, Any] = {"row": row, "col": 1}
    flops, value = bands.flops, getattr(bands, axis)
    low, high = getattr(bands, f"{axis}_low"), getattr(bands, f"{axis}_high")
    style = {"color": look.accent, "width": 2.2}
    # beyond the axis by a tenth, so that a clipped band has no edge inside
    bottom, top = np.maximum(low, span[0] / 1.1), np.minimum(high, span[1] * 1.1)
    draw.add_band(figure, flops, bottom, top, look.with_alpha(look.accent, 0.2), **place)
    text = [
        [format_flops(float(c)), size, draw.interval(float(one), float(two), "no interval")]
        for c, size, one, two in zip(flops, draw.sizes(value), low, high, strict=True)
    ]
    hover = f"{name}<br>C %{{customdata[0]}} FLOP<br>%{{customdata[1]}}, %{{customdata[2]}}"
    draw.add_curve(figure, flops, value, style, name, hover, customdata=text, **place)
    draw.label_end(figure, flops[-1], value[-1], "frontier", look.accent, log_y=True, **place)


def _points(
    figure: Any, isoflop: IsoflopFit, axis: str, look: Look, row: int, span: tuple[float, float]
) -> None:
    """Draw the minima of approach 2; bars end at the axis with an arrow where they leave it."""
    minima = [getattr(curve, axis) for curve in isoflop.interior]
    budgets = np.array([curve.budget for curve in isoflop.interior])
    value = np.array([each.value for each in minima])
    low = np.array([np.nan if each.low is None else each.low for each in minima])
    high = np.array([np.nan if each.high is None else each.high for each in minima])
    name = "N" if axis == "n_params" else "D"
    limits = [draw.interval(each.low, each.high) for each in minima]
    text = [
        [format_flops(c), value, limit]
        for c, value, limit in zip(budgets, draw.sizes(value), limits, strict=True)
    ]
    size = 7 if len(minima) < 20 else 5
    is_bounded = np.isfinite(low + high)
    place: dict[str, Any] = {"row": row, "col": 1}
    draw.add_curve(
        figure,
        budgets,
        value,
        {
            "color": [look.second if each else look.paper for each in is_bounded],
            "size": size,
            "symbol": "diamond",
            "line": {"color": look.second, "width": 1.4},
        },
        "approach 2",
        f"minimum of approach 2<br>C %{{customdata[0]}} FLOP<br>{name} %{{customdata[1]}}, "
        "%{customdata[2]}",
        error_y=draw.error_bars(
            value, np.maximum(low, span[0]), np.minimum(high, span[1]), look.second, 3, 1.2
        ),
        customdata=text,
        **place,
    )
    for is_out, end, symbol in (
        (low < span[0], span[0], "triangle-down"),
        (high > span[1], span[1], "triangle-up"),
    ):
        if is_out.any():
            draw.add_curve(
                figure,
                budgets[is_out],
                np.full(int(is_out.sum()), end),
                {"color": look.second, "size": 9, "symbol": symbol},
                "interval beyond the axis",
                f"the interval leaves the axis<br>{name} %{{customdata}}",
                customdata=[limit for limit, out in zip(limits, is_out, strict=True) if out],
                **place,
            )


def _clipped(values: list[FloatArray]) -> tuple[float, float]:
    """Return the range of a size axis: its drawn values, and half a decade at each end."""
    every = np.concatenate(values)
    every = every[np.isfinite(every) & (every > 0)]
    return float(every.min()) / CLIP, float(every.max()) * CLIP


def _widened(values: FloatArray) -> tuple[float, float]:
    low, high = np.log(values.min()), np.log(values.max())
    margin = max(0.08 * (high - low), 0.2)
    return float(np.exp(low - margin)), float(np.exp(high + margin))


def _log_range(values: FloatArray, margin: float = 0.04) -> list[float]:
    """Return the range of a logarithmic axis around positive values, in decades."""
    good = values[np.isfinite(values) & (values > 0)]
    low, high = float(np.log10(good.min())), float(np.log10(good.max()))
    extra = max(margin * (high - low), 1e-3)
    return [low - extra, high + extra]


def caption(report: FitReport) -> str:
    """Return one line about the data of the figures: runs, source and conventions."""
    rows = report.observations
    span = fitted_range(rows)
    return (
        f"{plural(report.fit.n_rows, 'run')} from {rows.source}; N counted "
        f"{PARAM_WORDS.get(rows.param_convention, rows.param_convention)}, FLOPs counted "
        f"{rows.flop_convention}; largest {span.largest} {format_flops(span.flops)} FLOP, "
        f"N {format_quantity(float(rows.n_params.max()))}; forecasts use C = 6 N D."
    )

"""Parts of Plotly figures: curves, bands, labels, axes, and notes.

`finish` sets axes, fonts and the alternative text. Text from files must pass through `plain`,
because Plotly interprets some HTML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.report.look import Look
from scalelab.units import format_quantity

if TYPE_CHECKING:
    from scalelab.records.types import Observations

HEIGHT = 430
MAX_POINTS = 1000
"""Most points drawn per trace; a figure with more says so (`note_corner`). Each point takes the
browser 0.1 ms or more, and more points hide each other."""


def finish(
    figure: Any,
    look: Look,
    *,
    alt: str,
    x: str | None = None,
    y: str | None = None,
    height: int = HEIGHT,
    legend: bool = False,
) -> Any:
    """Set fonts, margins, axis names and alternative text; return the figure.

    Parameters
    ----------
    figure : plotly.graph_objects.Figure
    look : Look
    alt : str
        What the figure shows, in one sentence.
    x, y : str, optional
        Axis names with units, for a figure with one pair of axes.
    height : int
        Pixels.
    legend : bool
        Whether to show a legend. Figures without one name curves at their ends.
    """
    figure.update_layout(
        height=height,
        # the strip above the plot is for the mode bar, which covers no curve there
        margin={"l": 8, "r": 16, "t": 34, "b": 8},
        modebar={
            "bgcolor": "rgba(0,0,0,0)",
            "color": look.faint,
            "activecolor": look.accent,
        },
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": look.ink, "size": 13, "family": "Source Sans, Helvetica, Arial, sans-serif"},
        showlegend=legend,
        legend={
            "orientation": "h",
            "y": -0.22,
            "yanchor": "top",
            "x": 0,
            "font": {"color": look.ink, "size": 12},
            "bgcolor": "rgba(0,0,0,0)",
        },
        hoverlabel={"font": {"size": 12}},
        meta={"alt": alt},
    )
    common = {
        "gridcolor": look.grid,
        "linecolor": look.faint,
        "tickcolor": look.faint,
        "tickfont": {"color": look.ink},
        "title": {"font": {"color": look.ink}, "standoff": 8},
        "zeroline": False,
        "automargin": True,
        "ticks": "outside",
        "ticklen": 4,
    }
    figure.update_xaxes(**common)
    figure.update_yaxes(**common)
    if x is not None:
        figure.update_xaxes(title_text=x)
    if y is not None:
        figure.update_yaxes(title_text=y)
    return figure


def log_axis(values: Sequence[FloatArray] | FloatArray, *, sizes: bool = False) -> dict[str, Any]:
    """Return the settings of a logarithmic axis.

    Parameters
    ----------
    values : ndarray or sequence of ndarray
        The drawn values, which determine the number of decades.
    sizes : bool
        Whether to write 10M, 1B, 1T (for parameters and tokens) or powers of ten.
    """
    parts = [np.asarray(part, float).ravel() for part in _parts(values)]
    flat = np.concatenate(parts) if parts else np.ones(1)
    flat = flat[np.isfinite(flat) & (flat > 0)]
    low, high = (float(flat.min()), float(flat.max())) if len(flat) else (1.0, 10.0)
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    decades = math.log10(high / low)
    steps: tuple[float, ...] = (1.0,)
    for most, finer in ((2.6, (1.0, 3.0)), (1.4, (1.0, 2.0, 5.0)), (0.5, (1.0, 1.5, 2, 3, 5, 7))):
        steps = finer if decades <= most else steps
    stride = 3 if decades > 9 else 1
    powers = range(first, last + 1, stride)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return {
        "type": "log",
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [
            format_quantity(step * 10.0**power) if sizes else _power(step, power)
            for power in powers
            for step in steps
        ],
        "minor": {"ticks": "outside", "ticklen": 2, "dtick": "D1"},
        # where a number is written without a text of ours: 7.1B, not 7.1G
        "exponentformat": "B" if sizes else "power",
    }


LABEL_PX = 14
"""Height of the label of a curve."""
LABEL_SHARE = 0.3
"""Width of such a label on a narrow screen, as a share of the places of all labels."""


def label_end(
    figure: Any,
    x: float,
    y: float,
    text: str,
    colour: str,
    *,
    log_y: bool = False,
    gap: int = 4,
    **more: Any,
) -> None:
    """Write the name of a curve ``gap`` pixels beyond its end; the x axis is logarithmic."""
    figure.add_annotation(
        x=float(np.log10(x)),
        y=float(np.log10(y)) if log_y else float(y),
        text=text,
        showarrow=False,
        xshift=gap,
        font={"color": colour, "size": 12},
        **{"xanchor": "left", "yanchor": "middle", **more},
    )


def part_labels(figure: Any, y_range: float, plot_px: float) -> None:
    """Move labels of `label_end` that lie over one another down by the height of a line.

    Parameters
    ----------
    figure : plotly.graph_objects.Figure
        All of its annotations are labels; the y axis is linear.
    y_range : float
        Difference of the ends of the y axis.
    plot_px : float
        Height of the plot, pixels.
    """
    labels = sorted(figure.layout.annotations, key=lambda each: -each.y)
    width = max((each.x for each in labels), default=0) - min(
        (each.x for each in labels), default=0
    )
    placed: list[tuple[float, float]] = []
    for each in labels:
        down = -each.y / y_range * plot_px
        near = [at for x, at in placed if abs(x - each.x) <= LABEL_SHARE * width]
        shifted = max([down, *(at + LABEL_PX for at in near if at + LABEL_PX > down)])
        each.yshift = down - shifted
        placed.append((each.x, shifted))


def _power(step: float, power: int) -> str:
    """Return a tick of a logarithmic axis as a power of ten."""
    ten = f"10<sup>{power}</sup>"
    return ten if step == 1.0 else f"{step:g}·{ten}"


def add_band(
    figure: Any, x: FloatArray, low: FloatArray, high: FloatArray, fill: str, **more: Any
) -> None:
    """Draw the area between two curves."""
    import plotly.graph_objects as go

    ok = np.isfinite(low) & np.isfinite(high)
    if ok.sum() < 2:
        return
    figure.add_trace(
        go.Scatter(
            x=np.concatenate([x[ok], x[ok][::-1]]),
            y=np.concatenate([low[ok], high[ok][::-1]]),
            fill="toself",
            fillcolor=fill,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        ),
        **more,
    )


def error_bars(value: Any, low: Any, high: Any, colour: str, width: int, line: float) -> Any:
    """Return Plotly's error bars from values and their limits; NaN limits draw no bar."""
    value, low, high = (np.asarray(part, float) for part in (value, low, high))
    return {
        "type": "data",
        "symmetric": False,
        "array": np.nan_to_num(high - value),
        "arrayminus": np.nan_to_num(value - low),
        "color": colour,
        "thickness": line,
        "width": width,
    }


def add_curve(
    figure: Any,
    x: FloatArray,
    y: FloatArray,
    style: dict[str, Any],
    name: str = "",
    hover: str = "",
    *,
    row: int | None = None,
    col: int | None = None,
    **trace: Any,
) -> None:
    """Draw a line, or points if the style has a size; ``hover`` is the hover text, if any.

    ``row`` and ``col`` select the panel; ``trace`` holds more properties of the Plotly trace.
    """
    import plotly.graph_objects as go

    is_points = "size" in style
    text = {"hovertemplate": f"{hover}<extra></extra>"} if hover else {"hoverinfo": "skip"}
    figure.add_trace(
        go.Scatter(
            x=short(x),
            y=short(y),
            mode="markers" if is_points else "lines",
            name=name,
            **{"marker" if is_points else "line": style},
            **text,
            **trace,
        ),
        row=row,
        col=col,
    )


def sizes(values: FloatArray) -> list[str]:
    """Return parameters or tokens for a hover text: 7.1B, 18.9K."""
    return [format_quantity(float(value)) for value in np.asarray(values, float)]


def interval(low: float | None, high: float | None, fallback: str = "interval unbounded") -> str:
    """Return the limits of a size for a hover text, such as ``27K to 59K``."""
    if low is None or high is None or not math.isfinite(low + high):
        return fallback
    return f"{format_quantity(low)} to {format_quantity(high)}"


def add_value(figure: Any, end: float, row: str, value: float, look: Look) -> None:
    """Write a value of a forest beyond the end of its interval, over a dotted line there."""
    figure.add_annotation(
        x=end,
        y=row,
        text=f"{value:.3f}",
        showarrow=False,
        xanchor="left",
        xshift=8,
        bgcolor=look.paper,
    )


def note_corner(figure: Any, text: str, look: Look) -> None:
    """Write a small note in the lower left corner of a figure."""
    figure.add_annotation(
        text=text,
        x=0.01,
        y=0.01,
        xanchor="left",
        yanchor="bottom",
        xref="paper",
        yref="paper",
        showarrow=False,
        align="left",
        font={"size": 11, "color": look.faint},
    )


def note_thinned(figure: Any, shown: int, total: int, look: Look) -> None:
    """Write a note if only a sample of the runs is drawn."""
    if shown < total:
        note_corner(figure, f"{shown:,} of {total:,} runs drawn.", look)


def thinned(count: int, limit: int = MAX_POINTS) -> NDArray[np.intp]:
    """Return the indices of the points to draw: all, or a fixed sample in order."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, limit, replace=False))


def short(values: FloatArray) -> NDArray[np.floating]:
    """Return more than 100 values as 32-bit floats, which halves the size of the figure."""
    return np.asarray(values, dtype=np.float32 if np.size(values) > 100 else np.float64)


def plain(text: object) -> str:
    """Return text with HTML escaped and at most 80 characters."""
    words = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return words if len(words) <= 80 else words[:79] + "…"


def of_runs(rows: Observations) -> list[tuple[str, ...]]:
    """Return N, D and the name of each run as custom data; a click takes the last of them.

    The name is there twice if its hover text, without HTML, differs from it.
    """
    found: list[tuple[str, ...]] = []
    both = zip(sizes(rows.n_params), sizes(rows.n_tokens), strict=True)
    if rows.names is None:
        return [tuple(each) for each in both]
    for each, name in zip(both, map(str, rows.names), strict=True):
        words = plain(name)
        found.append((*each, words) if words == name else (*each, words, name))
    return found


def empty(look: Look, message: str, *, height: int = HEIGHT) -> Any:
    """Return a figure with only a message: why nothing is drawn, and what to do."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_annotation(
        text=message, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False, font={"size": 14}
    )
    finish(figure, look, alt=message, height=height)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def _parts(values: Sequence[FloatArray] | FloatArray) -> list[FloatArray]:
    if isinstance(values, np.ndarray):
        return [values]
    return [np.asarray(part) for part in values]

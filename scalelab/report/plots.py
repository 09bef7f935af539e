"""Matplotlib figures: a fit as PNG, SVG or PDF, and the figures of notebooks.

The figure of a fit has up to three panels; empty ones are omitted. They show the isoFLOP curves
with minima and compute-optimal frontier, the contours of the law, and the residuals against
compute. The HTML report and the dashboard use Plotly figures.
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import DataError, UsageError
from scalelab.fit.isoflop import misfits
from scalelab.forecast.bands import bands_between, surface
from scalelab.forecast.headline import exponents, headline
from scalelab.report.look import LIGHT
from scalelab.theory.accounting import train_flops_6nd
from scalelab.units import format_flops, format_quantity, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scalelab.fit.intervals import Interval
    from scalelab.forecast.fit_report import FitReport

Panel = Callable[["Axes", "FitReport"], None]

SUFFIXES = (".png", ".svg", ".pdf")
PANEL_INCHES = (6.2, 4.8)
DPI, HTML_DPI = 150, 80
INK, FAINT, FRONTIER = LIGHT.ink, LIGHT.faint, LIGHT.accent
"""Colours of the page in its light theme."""
LEGEND: Any = {
    "fontsize": 8,
    "loc": "upper left",
    "bbox_to_anchor": (0, -0.16),
    "ncols": 3,
    "frameon": False,
    "borderaxespad": 0.2,
}
"""A legend below its panel, where it covers no run."""
TITLE_CHARACTERS = 190
"""Characters of a line above three panels."""
CURVE_POINTS = 200
BAND_POINTS = 40
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "svg.hashsalt": "scalelab",
    "svg.fonttype": "none",
}


def draw_fit(report: FitReport, path: Path) -> None:
    """Write the figure of a fit, as `write_figure` does."""
    write_figure(lambda: figure_of(report), path)


def write_figure(make: Callable[[], Figure], path: Path) -> None:
    """Write the figure that ``make`` returns to a file, in the style of all figures.

    Parameters
    ----------
    make : callable
    path : Path
        The suffix sets the format.

    Raises
    ------
    UsageError
        If the suffix is not .png, .svg or .pdf; ``make`` is then not called.
    DataError
        If the file cannot be written.
    """
    check_path(path)
    from matplotlib import rc_context

    with rc_context(STYLE):
        save_figure(make(), path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a file, whose suffix sets the format; the same figure, the same bytes.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
        figure.savefig(path, dpi=DPI, metadata=metadata)
    except OSError as error:
        raise DataError(
            f"{path}, which cannot be written ({error.strerror})",
            "a path in a writable folder",
            "Write to another folder, for example --plot ~/fit.png.",
        ) from None


def check_path(path: Path) -> None:
    """Raise UsageError unless the suffix is supported."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"--plot {path}",
            f"a file ending in {', '.join(SUFFIXES)}",
            f"Write --plot {path.with_suffix('.png')}.",
        )


def figure_of(report: FitReport) -> Figure:
    """Return the figure of a fit, with the panels that have data."""
    from matplotlib.figure import Figure

    panels: list[tuple[str, Panel]] = []
    if report.isoflop.curves:
        panels.append(("isoFLOP curves", draw_isoflop))
    if {"n_params", "n_tokens"} <= set(report.fit.law.columns) and set(report.fit.law.columns) <= {
        "n_params",
        "n_tokens",
        "flops",
    }:
        panels.append((report.forecaster.label, draw_contours))
    panels.append(("residuals", draw_residuals))
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * len(panels), height), layout="constrained")
    for axes, (title, draw) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        draw(axes, report)
        axes.set_title(title, loc="left", fontsize=11, color=INK)
    figure.suptitle(_title(report), x=0.01, ha="left", fontsize=10, color=INK)
    return figure


def _title(report: FitReport) -> str:
    """Return the answer, the exponents with their intervals, and what was fitted."""
    found, lines = exponents(report), [headline(report).sentence]
    if found is not None and report.has_answer:
        a, b = found
        brackets = f" ({100 * report.level:g} % confidence intervals)"
        lines.append(
            f"N_opt grows as C^{_exponent(a)}, D_opt as C^{_exponent(b)}"
            + (brackets if math.isfinite(a.low) else "")
        )
    status = "" if report.fit.status == "ok" else f" ({report.fit.status.replace('_', ' ')})"
    lines.append(
        f"{report.observations.source}: {plural(report.fit.n_rows, 'run')}, {report.fit.form} "
        f"law{status}; frontier by the {report.forecaster.label}"
    )
    width = TITLE_CHARACTERS if report.isoflop.curves else TITLE_CHARACTERS * 2 // 3
    # "$" would start mathematics
    return "\n".join(textwrap.fill(line, width) for line in lines).replace("$", r"\$")


def _exponent(found: Interval) -> str:
    limits = f" [{found.low:.3f}, {found.high:.3f}]" if math.isfinite(found.low) else ""
    return f"{found.value:.3f}{limits}"


def interval_figure(
    rows: Sequence[tuple[str, float, float | None, float | None]], x: str
) -> Figure:
    """Return a figure with a value and its interval on each line.

    Parameters
    ----------
    rows : sequence of (label, value, low, high)
        From top to minimum; the limits may be None or NaN.
    x : str
        Name of the axis.
    """
    figure, axes = _one_panel(PANEL_INCHES[0], 1 + 0.28 * len(rows))
    for y, (_, value, low, high) in enumerate(rows):
        axes.plot(value, y, "o", ms=5, color=FRONTIER)
        if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
            axes.hlines(y, low, high, color=FRONTIER, lw=1.4)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(x)
    return figure


def point_figure(x: Sequence[float], y: Sequence[float], names: tuple[str, str]) -> Figure:
    """Return a figure of points on logarithmic axes, with the names of both axes."""
    figure, axes = _one_panel(*PANEL_INCHES)
    axes.loglog(x, y, "o", ms=4, color=FRONTIER, alpha=0.7)
    _name(axes, *names)
    return figure


def _one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def as_img(figure: Figure) -> str:
    """Return a figure as an HTML image that holds its own data."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=HTML_DPI)
    data = base64.b64encode(image.getvalue()).decode("ascii")
    return f'<img alt="figure" style="max-width: 100%" src="data:image/png;base64,{data}">'


def draw_isoflop(axes: Axes, report: FitReport) -> None:
    """Draw losses, parabola and minimum of each budget, and the compute-optimal frontier."""
    from matplotlib.lines import Line2D

    rows, curves = report.observations, report.isoflop.curves
    losses = np.concatenate([rows.loss_nats[curve.every_row] for curve in curves])
    is_missed = misfits(rows, curves)
    low, high = losses.min(), np.quantile(losses, 0.98)
    y_low, y_high = low - 0.06 * (high - low), high + 0.06 * (high - low)
    for curve, colour, is_bad in zip(curves, shades(len(curves)), is_missed, strict=True):
        minimum = curve.n_params
        sizes = rows.n_params[curve.rows]
        axes.plot(sizes, rows.loss_nats[curve.rows], "o", ms=3.5, color=colour, alpha=0.75)
        if len(curve.outliers):
            x, y = rows.n_params[curve.outliers], rows.loss_nats[curve.outliers]
            axes.plot(x, y, "o", ms=5, mfc="none", mec=colour)
        span = np.geomspace(sizes.min(), sizes.max(), CURVE_POINTS)
        fitted = minimum.curve(span)
        line = "-" if curve.is_interior and not is_bad else "--"
        axes.plot(span, fitted, line, lw=1, color=colour)
        inside = np.flatnonzero((fitted > y_low) & (fitted < y_high))
        if len(inside):
            axes.annotate(
                format_flops(curve.budget),
                (span[inside[-1]], fitted[inside[-1]]),
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=7,
                color=colour,
                va="center",
            )
        if curve.is_interior:
            if minimum.low is not None and minimum.high is not None:
                axes.hlines(minimum.loss, minimum.low, minimum.high, color=INK, lw=1.1, zorder=3)
            axes.plot(minimum.value, minimum.loss, "D", ms=6, color=colour, mec=INK, mew=0.8)
    budgets = np.array([curve.budget for curve in curves])
    bands = bands_between(report, budgets.min() / 2, budgets.max() * 2, BAND_POINTS)
    if bands is not None:
        axes.plot(bands.n_params, bands.loss, "--", lw=1.6, color=FRONTIER, label="compute-optimal")
    axes.set_xscale("log")
    axes.set_ylim(y_low, y_high)
    axes.margins(x=0.1)
    _name(axes, "parameters N", rows.metric.axis)
    _sizes_on(axes.xaxis)
    keys = [
        Line2D([], [], marker="D", ls="", ms=5, color="none", mec=INK, label="minimum, interval"),
        Line2D([], [], lw=1, color=INK, label="parabola of a budget, FLOP"),
    ]
    dashed = ["no minimum inside"] if len(report.isoflop.interior) < len(curves) else []
    dashed += ["misses its runs"] if any(is_missed) else []
    if dashed:
        keys.append(Line2D([], [], ls="--", lw=1, color=INK, label=" or ".join(dashed)))
    if any(len(curve.outliers) for curve in curves):
        hollow: Any = {"marker": "o", "ls": "", "ms": 5, "mfc": "none", "mec": INK}
        keys.append(Line2D([], [], **hollow, label="outlier, left out of its parabola"))
    axes.legend(handles=[*axes.get_legend_handles_labels()[0], *keys], **{**LEGEND, "ncols": 2})


def draw_contours(axes: Axes, report: FitReport) -> None:
    """Draw contours of the loss over N and D, the runs, and the compute-optimal frontier."""
    rows = report.observations
    span_n = _widened(rows.n_params)
    span_d = _widened(rows.n_tokens)
    n_params, n_tokens = np.meshgrid(np.geomspace(*span_n, 120), np.geomspace(*span_d, 120))
    losses = surface(report, n_params.ravel(), n_tokens.ravel())
    if losses is not None:
        loss = losses.reshape(n_params.shape)
        levels = np.quantile(loss, np.linspace(0.02, 0.9, 9))
    if losses is not None and np.all(np.diff(levels) > 0):
        colours = shades(len(levels))[::-1]
        lines = axes.contour(n_params, n_tokens, loss, levels=levels, colors=colours, linewidths=1)
        axes.clabel(lines, fmt="%.2f", fontsize=7, colors=INK)
    axes.scatter(rows.n_params, rows.n_tokens, s=9, c=INK, alpha=0.5, linewidths=0, label="runs")
    corners = train_flops_6nd(np.array([span_n[0], span_n[1]]), np.array([span_d[0], span_d[1]]))
    bands = bands_between(report, float(corners[0]), float(corners[1]), BAND_POINTS)
    if bands is not None:
        style: Any = {"ls": "--", "lw": 1.6, "color": FRONTIER, "label": "compute-optimal"}
        axes.plot(bands.n_params, bands.n_tokens, **style)
        if np.isfinite(bands.n_params_low).all():
            axes.fill_betweenx(
                bands.n_tokens,
                bands.n_params_low,
                bands.n_params_high,
                color=FRONTIER,
                alpha=0.15,
                lw=0,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*span_n)
    axes.set_ylim(*span_d)
    _name(axes, "parameters N", "tokens D")
    _sizes_on(axes.xaxis)
    _sizes_on(axes.yaxis)
    axes.legend(**LEGEND)


def draw_residuals(axes: Axes, report: FitReport) -> None:
    """Draw residuals against compute, or the loss if it is unknown, with their middle 90 %."""
    rows = report.observations
    x, label = (
        (rows.flops, "training FLOPs") if rows.has("flops") else (rows.loss_nats, "observed loss")
    )
    residuals = report.fit.residuals
    is_log = report.fit.objective.residual == "log"
    shown = 100 * residuals if is_log else residuals
    axes.axhline(0, color=INK, lw=0.8)
    low, high = np.quantile(shown, [0.05, 0.95])
    axes.axhspan(low, high, color=FRONTIER, alpha=0.07, lw=0, label="middle 90 %")
    colours = np.log(rows.n_params) if rows.has("n_params") else np.zeros(len(rows))
    axes.scatter(
        x,
        shown,
        s=12,
        c=colours,
        cmap=_ramp(),
        alpha=0.8,
        linewidths=0,
        label="run, darker: small N",
    )
    axes.set_xscale("log" if rows.has("flops") else "linear")
    y_limit = 2.5 * max(float(np.quantile(np.abs(shown), 0.9)), 1e-12)
    beyond = np.abs(shown) > y_limit
    if beyond.any():
        at = np.sign(shown[beyond]) * y_limit * 0.97
        axes.scatter(
            x[beyond],
            at,
            s=24,
            marker="^",
            c=FRONTIER,
            linewidths=0,
            label=f"{int(beyond.sum())} further out",
        )
    axes.set_ylim(-y_limit, y_limit)
    _name(axes, label, "predicted / observed - 1 (%)" if is_log else "predicted - observed")
    axes.legend(**LEGEND)


def _widened(values: FloatArray) -> tuple[float, float]:
    """Return the range of positive values, widened by a tenth of its log at both ends."""
    low, high = math.log(values.min()), math.log(values.max())
    margin = max(0.1 * (high - low), 0.2)
    return math.exp(low - margin), math.exp(high + margin)


def shades(count: int) -> list[Any]:
    """Return this many colours of the page's ramp, dark to light."""
    return LIGHT.shades(count)


def _ramp() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("page", shades(9))


def _name(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _sizes_on(axis: Any) -> None:
    """Write 300M and 7B on a logarithmic axis instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_quantity(value)))
    axis.set_minor_formatter(NullFormatter())

"""Matplotlib figure of a comparison: N_opt, D_opt and the exponents of every source."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from scalelab.report.look import LIGHT, compared_colours
from scalelab.report.plots import PANEL_INCHES
from scalelab.units import format_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scalelab.forecast.comparing import SourceComparison


def comparison_figure(found: SourceComparison) -> Figure:
    """Return the figure: N_opt and D_opt against compute, and a forest of the exponents a."""
    from matplotlib.figure import Figure

    width, height = PANEL_INCHES
    figure = Figure(figsize=(3 * width, height), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _frontiers(left, found, "n_params", "compute-optimal parameters N")
    _frontiers(middle, found, "n_tokens", "compute-optimal tokens D")
    _forest(right, found)
    left.legend(fontsize=8, frameon=False, loc="upper left")
    figure.suptitle("\n".join(found.answers), x=0.01, ha="left", fontsize=9, color=LIGHT.ink)
    return figure


def _frontiers(axes: Axes, found: SourceComparison, column: str, title: str) -> None:
    for part, colour in zip(found.parts, compared_colours(LIGHT, len(found.parts)), strict=True):
        bands = part.bands
        if bands is None:
            continue
        low, high = getattr(bands, f"{column}_low"), getattr(bands, f"{column}_high")
        axes.plot(bands.flops, getattr(bands, column), lw=1.8, color=colour, label=part.source.name)
        if np.isfinite(low + high).all():
            axes.fill_between(bands.flops, low, high, color=colour, alpha=0.15, lw=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("training compute C, FLOP")
    axes.set_title(title, loc="left", fontsize=11, color=LIGHT.ink)
    axes.yaxis.set_major_formatter(lambda value, _: format_quantity(value))


def _forest(axes: Axes, found: SourceComparison) -> None:
    names = [part.source.name for part in found.parts]
    for y, (part, colour) in enumerate(
        zip(found.parts, compared_colours(LIGHT, len(found.parts)), strict=True)
    ):
        slopes = part.source.exponents
        if slopes is None or not math.isfinite(slopes[0].value):
            continue
        a = slopes[0]
        axes.plot(a.value, y, "o", ms=6, color=colour)
        if math.isfinite(a.low + a.high):
            axes.hlines(y, a.low, a.high, color=colour, lw=1.6)
    axes.axvline(0.5, color=LIGHT.faint, ls=":", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title("exponent a of N_opt in C", loc="left", fontsize=11, color=LIGHT.ink)

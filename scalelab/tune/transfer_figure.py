"""Figure of a transfer check: loss against learning rate, a panel for each parametrization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalelab.report.plots import FAINT, INK, PANEL_INCHES, STYLE, shades
from scalelab.tune.transfer_fit import Cell
from scalelab.units import format_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST_RISE = 1.3
"""Losses above this many times the smallest of the figure are outside its range."""


def transfer_figure(cells: Sequence[Cell]) -> Figure:
    """Return the figure of a check; a diamond with its interval marks each best learning rate."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(cell.parametrization for cell in cells))
    shapes = list(dict.fromkeys(cell.shape for cell in cells))
    colours = dict(zip(shapes, shades(len(shapes)), strict=True))
    width, height = PANEL_INCHES
    with rc_context(STYLE):
        figure = Figure(figsize=(0.75 * width * len(kinds), height), layout="constrained")
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            for cell in (cell for cell in cells if cell.parametrization == kind):
                _draw(axes, cell, colours[cell.shape])
            axes.set_xscale("log", base=2)
            axes.set_title(kind, loc="left", fontsize=11, color=INK)
            axes.set_xlabel("peak learning rate")
        found = [loss for cell in cells for loss in _finite(cell).values()]
        if found:
            panels[0].set_ylim(0.98 * min(found), min(max(found), LARGEST_RISE * min(found)))
        panels[0].set_ylabel("loss, nats per token")
        panels[-1].legend(fontsize=8, frameon=False)
    return figure


def _draw(axes: Axes, cell: Cell, colour: str) -> None:
    losses = _finite(cell)
    label = f"{cell.shape}, N {format_quantity(cell.n_params)}"
    axes.plot(list(losses), list(losses.values()), "o-", ms=3.5, lw=1, color=colour, label=label)
    if cell.best_lr is None or not losses:
        return
    lowest = min(losses.values())
    if cell.low is not None and cell.high is not None:
        axes.hlines(lowest, cell.low, cell.high, color=FAINT, lw=1.1)
    marker = "s" if cell.is_bound else "D"
    axes.plot(cell.best_lr, lowest, marker, ms=6, color=colour, mec=INK, mew=0.8)


def _finite(cell: Cell) -> dict[float, float]:
    pairs = zip(cell.lrs, cell.losses, strict=True)
    return {lr: loss for lr, loss in pairs if loss is not None and math.isfinite(loss)}

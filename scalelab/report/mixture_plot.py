"""Figure of mixture laws: predicted against observed loss of each evaluation set."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from scalelab.report.plots import FAINT, FRONTIER, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scalelab.fit.mixing import MixtureFit

COLUMNS = 3
PANEL = (3.6, 3.3)


def mixture_figure(fit: MixtureFit) -> Figure:
    """Return one panel for each evaluation set; the colour of a run is its size."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(fit.laws))
    rows = math.ceil(len(fit.laws) / columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    N = fit.runs.n_params
    sizes = np.unique(N) if N is not None else np.array([0.0])
    ramp = colormaps["viridis"]
    from scalelab.units import format_quantity

    for ax, (name, law) in zip(axes, fit.laws.items(), strict=False):
        predicted = law.at(fit.runs.columns())
        observed = fit.runs.losses[name]
        ends = [min(predicted.min(), observed.min()), max(predicted.max(), observed.max())]
        ax.plot(ends, ends, color=FAINT, linewidth=1, zorder=1)
        for j, size in enumerate(sizes):
            here = size == N if N is not None else np.ones(len(observed), bool)
            color = ramp(0.1 + 0.75 * j / max(len(sizes) - 1, 1)) if N is not None else FRONTIER
            label = f"N = {format_quantity(float(size))}" if N is not None else None
            ax.scatter(observed[here], predicted[here], s=14, color=color, label=label, zorder=2)
        ax.set_title(f"{name}: {law.form}, R² {law.r2:.4f}", loc="left", fontsize=9, color=INK)
        ax.set_xlabel(f"observed loss, {fit.runs.unit}", fontsize=8)
        ax.set_ylabel("predicted loss", fontsize=8)
    for ax in axes[len(fit.laws) :]:
        ax.set_axis_off()
    if N is not None:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=len(sizes), frameon=False,
            fontsize=8,
        )  # fmt: skip
    return figure

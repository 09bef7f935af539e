"""Figure of chains: task loss over compute, and accuracy over task loss, a row for each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scalelab.report.plots import FAINT, FRONTIER, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scalelab.forecast.chain import TaskChain

PANEL = (5.0, 3.4)


def chain_figure(chains: Sequence[TaskChain]) -> Figure:
    """Return both steps of each task with their predictions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * PANEL[0], PANEL[1] * len(chains)), layout="constrained")
    panels = figure.subplots(len(chains), 2, squeeze=False)
    for (left, right), chain in zip(panels, chains, strict=True):
        _losses(left, chain)
        _accuracies(right, chain)
    return figure


def _losses(axes: Axes, chain: TaskChain) -> None:
    rows = chain.report.observations
    axes.scatter(rows.flops, rows.loss_nats, s=16, color=INK, zorder=2)
    for each in chain.forecasts:
        loss = each.loss
        if loss.flops is not None:
            axes.errorbar(
                loss.flops, loss.loss_nats,
                yerr=[[loss.loss_nats - loss.low], [loss.high - loss.loss_nats]],
                color=FRONTIER, marker="D", markersize=5, capsize=3,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("training FLOPs")
    axes.set_ylabel("task loss, bits/byte")
    axes.set_title(f"{chain.task}: task loss", loc="left", fontsize=11, color=INK)


def _accuracies(axes: Axes, chain: TaskChain) -> None:
    link = chain.link
    axes.scatter(link.task_loss, link.measured, s=6, color=FAINT, zorder=1)
    ends = [float(link.task_loss.min()), float(np.quantile(link.task_loss, 0.98))]
    ends[0] = min([ends[0], *(each.loss.loss_nats for each in chain.forecasts)])
    grid = np.linspace(0.98 * ends[0], ends[1], 200)
    axes.plot(grid, link.accuracy(grid), color=INK, linewidth=1.5, zorder=2)
    axes.axhline(link.chance, color=FAINT, linewidth=1, linestyle=":")
    for each in chain.forecasts:
        loss, found = each.loss, each.accuracy
        axes.errorbar(
            loss.loss_nats, found.value,
            xerr=[[loss.loss_nats - loss.low], [loss.high - loss.loss_nats]],
            yerr=[[found.value - found.low], [found.high - found.value]],
            color=FRONTIER, marker="D", markersize=5, capsize=3,
        )  # fmt: skip
    axes.set_xlim(0.97 * ends[0], ends[1])
    axes.set_xlabel("task loss, bits/byte")
    axes.set_ylabel("accuracy")
    words = "at chance: no prediction" if chain.status == "at_chance" else "accuracy"
    axes.set_title(f"{chain.task}: {words}", loc="left", fontsize=11, color=INK)

"""Draw the pictures of the documentation from scalelab's own functions.

Usage: python docs/figures.py [NAME ..]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scalelab import api
from scalelab.forecast.bands import bands_between
from scalelab.forecast.published_laws import PUBLISHED_LAWS
from scalelab.sweep.shapes import nearest_shape
from scalelab.theory.accounting import count_params, train_flops_per_token
from scalelab.theory.schedule import learning_rate_ratio

IMAGES = Path(__file__).parent / "images"
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#d58a00", "#009e73", "#d55e00", "#777777"
LAW = PUBLISHED_LAWS["besiroglu"].law


def flow() -> Figure:
    """Boxes: one frozen type per step, with the room and the command below each."""
    steps = [
        ("SweepSpec", "sweep", "sweep run FILE"),
        ("Plan", "sweep", "--dry-run"),
        ("run folder", "launch, train", "status, logs"),
        ("DuckDB", "store", "collect, export"),
        ("Observations", "records", "import"),
        ("Fit", "fit", "fit"),
        ("Forecast", "forecast", "fit --predict"),
        ("Decision", "forecast", "decide"),
    ]
    figure, axes = plt.subplots(figsize=(10.5, 1.5))
    for i, (name, room, command) in enumerate(steps):
        style = {"boxstyle": "round,pad=0.35", "fc": "#eaf2f8", "ec": BLUE}
        axes.text(i, 0.6, name, ha="center", va="center", fontsize=7.5, bbox=style)
        axes.text(i, 0.22, room, ha="center", va="center", fontsize=7.5, color=GREY)
        axes.text(i, 0.0, command, ha="center", va="center", fontsize=6.5, family="monospace")
        if i:
            ends = {"xy": (i - 0.42, 0.6), "xytext": (i - 0.58, 0.6)}
            axes.annotate("", arrowprops={"arrowstyle": "-|>", "color": RED, "lw": 1}, **ends)
    axes.set(xlim=(-0.6, len(steps) - 0.4), ylim=(-0.15, 0.9))
    axes.axis("off")
    return figure


def counts() -> Figure:
    """Ratio of the counting conventions over size, for planned shapes, 32,768 tokens of BPE."""
    shapes = [nearest_shape(n, 32_768) for n in np.geomspace(2e7, 2e10, 40)]
    tables = [count_params(shape).by_convention() for shape in shapes]
    flops = [train_flops_per_token(shape, 2048) for shape in shapes]
    n = np.array([table["chinchilla"] for table in tables], float)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for name, colour in (("kaplan", BLUE), ("matmul", ORANGE)):
        left.plot(n, [table[name] for table in tables] / n, color=colour, label=name)
    left.axhline(1, color=GREY, lw=1, label="chinchilla")
    _name(left, "parameters N (chinchilla)", "N by convention / N (chinchilla)")
    exact = np.array([f["exact"] for f in flops])
    for name, colour in (("6nd", BLUE), ("6nd_kaplan", ORANGE), ("palm", GREEN)):
        right.plot(n, [f[name] for f in flops] / exact, color=colour, label=name)
    right.axhline(1, color=GREY, lw=1, label="exact")
    _name(right, "parameters N (chinchilla)", "FLOPs by convention / exact FLOPs")
    return figure


def isoflop() -> Figure:
    """Three isoFLOP curves of a published law, their minima, and the compute-optimal line."""
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for budget, colour in ((1e19, BLUE), (1e20, ORANGE), (1e21, GREEN)):
        best = float(LAW.optimal(budget)[0])
        n = best * np.geomspace(1 / 8, 8, 100)
        axes.plot(n, _loss(n, budget), color=colour, label=f"C = {budget:.0e} FLOPs")
        runs = best * np.geomspace(1 / 4, 4, 7)
        axes.plot(runs, _loss(runs, budget), "o", color=colour, ms=4)
    computes = np.geomspace(1e18, 1e22, 50)
    n, _ = LAW.optimal(computes)
    axes.plot(n, _loss(n, computes), "--", color=RED, lw=1, label="compute-optimal")
    axes.set(xlim=(1e7, 2e10), ylim=(2.3, 4.2))
    _name(axes, "parameters N", "loss, nats per token")
    return figure


def approaches() -> Figure:
    """Each approach on runs of one known law."""
    figure, (first, second, third) = plt.subplots(1, 3, figsize=(10, 3.2))
    computes = np.geomspace(1e17, 1e22, 100)
    for n in np.geomspace(1e7, 3e9, 9):
        first.plot(
            computes,
            LAW.loss({"n_params": np.full(100, n), "n_tokens": computes / (6 * n)}),
            color=GREY,
            lw=0.8,
        )
    n, d = LAW.optimal(computes)
    first.plot(computes, LAW.loss({"n_params": n, "n_tokens": d}), color=RED, label="envelope")
    first.set(ylim=(2, 6), title="1: envelope of curves")
    _name(first, "training FLOPs", "loss, nats per token")
    report = api.fit(_runs(noise=2e-3), forecaster="law")
    for curve in report.isoflop.curves:
        second.plot(curve.budget, curve.n_params.value, "o", color=BLUE)
    c = np.geomspace(1e18, 3e21, 20)
    second.plot(c, [report.isoflop.n_law.at(x) for x in c], color=RED, label="power law")
    second.set_title("2: minima of isoFLOP curves")
    _name(second, "budget C, FLOPs", "N_opt")
    second.set_yscale("log")
    rows = report.observations
    fitted = report.fit.law.loss({"n_params": rows.n_params, "n_tokens": rows.n_tokens})
    third.plot(fitted, rows.loss_nats, "o", color=BLUE, ms=3)
    third.plot([2.2, 4.2], [2.2, 4.2], color=RED, lw=1, label="observed = fitted")
    third.set_title("3: parametric fit")
    third.set(xlabel="fitted loss", ylabel="observed loss")
    third.legend(frameon=False, fontsize=8)
    return figure


def intervals() -> Figure:
    """Confidence and prediction interval relative to the law, inside and beyond the runs."""
    report = api.fit(_runs(noise=1e-2), forecaster="law")
    found = bands_between(report, 1e18, 1e25)
    assert found is not None
    figure, axes = plt.subplots(figsize=(6, 3.4))
    for low, high, shade, name in (
        (found.pred_low, found.pred_high, 0.15, "prediction interval of a new run, 90 %"),
        (found.low, found.high, 0.4, "confidence interval of the law, 90 %"),
    ):
        ends = (100 * (low / found.loss - 1), 100 * (high / found.loss - 1))
        axes.fill_between(found.flops, *ends, color=BLUE, alpha=shade, lw=0, label=name)
    rows = report.observations
    fitted = report.fit.law.loss({"n_params": rows.n_params, "n_tokens": rows.n_tokens})
    axes.plot(rows.flops, 100 * (rows.loss_nats / fitted - 1), ".", color=GREY, ms=4, label="runs")
    axes.axvline(rows.flops.max(), color=RED, lw=1, ls=":", label="largest run")
    axes.set_ylim(-4.5, 8)
    _name(axes, "training compute C, FLOPs", "difference from the fitted law, %")
    return figure


def ladder() -> Figure:
    """Learning rate of a trunk with its cooldown branches, beside one cosine run for each D."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True)
    for n_steps, colour in ((100, BLUE), (200, ORANGE), (400, GREEN), (800, RED)):
        steps = np.arange(n_steps)
        wsd = {"schedule": "wsd", "decay_steps": n_steps // 10}
        for axes, options in ((left, wsd), (right, {"schedule": "cosine"})):
            rate = [
                learning_rate_ratio(int(s), n_steps=n_steps, warmup_steps=20, **options)
                for s in steps
            ]
            axes.plot(steps, rate, color=colour, label=f"D = {n_steps} steps")
    left.plot(
        np.arange(800), [min((s + 1) / 20, 1) for s in range(800)], color="black", lw=2.5, alpha=0.3
    )
    left.set(
        title="WSD ladder: one trunk, four branches", xlabel="step", ylabel="learning rate / peak"
    )
    right.set(title="four separate cosine runs", xlabel="step")
    right.legend(frameon=False, fontsize=8)
    return figure


def identification() -> Figure:
    """How the best objective depends on alpha: runs on one line D = 20 N, and runs off it."""
    n = np.geomspace(5e7, 5e9, 24)
    line = pd.DataFrame({"n_params": n, "n_tokens": 20 * n})
    spread = _runs(noise=0)[["n_params", "n_tokens"]]
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.1))
    alphas = np.linspace(0.15, 0.6, 46)
    for design, colour, name, place in (
        (line, RED, "one ratio D/N", 0),
        (spread, GREEN, "isoFLOP grid", 1),
    ):
        noise = np.random.default_rng(1).normal(0, 3e-3, len(design))
        loss = LAW.loss({"n_params": design.n_params, "n_tokens": design.n_tokens}) * np.exp(noise)
        axes[place].plot(design.n_params, design.n_tokens, "o", color=colour, ms=3, label=name)
        axes[place].set(xlim=(1e7, 3e10), ylim=(1e8, 1e12))
        _name(axes[place], "parameters N", "tokens D")
        axes[place].set_yscale("log")
        value = np.array([_best(design, loss, alpha) for alpha in alphas])
        axes[2].plot(alphas, value / value.min(), color=colour, label=name)
    axes[2].set(xlabel="alpha (fixed)", ylabel="best objective / its minimum", ylim=(0.9, 3))
    axes[2].legend(frameon=False, fontsize=8)
    return figure


def _best(design: pd.DataFrame, loss: NDArray[np.float64], alpha: float) -> float:
    """Return the least sum of squares of relative errors with ``alpha`` fixed, A, B, E >= 0."""
    from scipy.optimize import nnls

    def at(beta: float) -> float:
        basis = np.stack(
            [np.ones(len(design)), design.n_params**-alpha * 1e3, design.n_tokens**-beta * 1e3],
            axis=1,
        )
        return float(nnls(basis / np.asarray(loss)[:, None], np.ones(len(design)))[1] ** 2)

    return min(at(beta) for beta in np.linspace(0.1, 0.8, 71))


def _runs(noise: float) -> pd.DataFrame:
    """Return the runs of an isoFLOP sweep on the known law."""
    rng = np.random.default_rng(0)
    rows = []
    for budget in np.geomspace(1e18, 1e21, 6):
        for n in float(LAW.optimal(budget)[0]) * np.geomspace(1 / 4, 4, 7):
            rows.append({"n_params": n, "n_tokens": budget / (6 * n), "budget": budget})
    table = pd.DataFrame(rows)
    table["loss_nats"] = _loss(table.n_params, table.budget) * np.exp(
        rng.normal(0, noise, len(table))
    )
    return table


def _loss(n: NDArray[np.float64], budget: NDArray[np.float64] | float) -> NDArray[np.float64]:
    n = np.asarray(n)
    return np.asarray(LAW.loss({"n_params": n, "n_tokens": np.asarray(budget) / (6 * n)}))


def _name(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y, xscale="log")
    axes.legend(frameon=False, fontsize=8)


FIGURES: tuple[Callable[[], Figure], ...] = (
    flow,
    counts,
    isoflop,
    approaches,
    intervals,
    ladder,
    identification,
)


def main(names: list[str]) -> None:
    """Write the named pictures, or all of them, as SVG."""
    mpl.use("Agg")
    mpl.rcParams.update(
        {
            "svg.hashsalt": "scalelab",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
        }
    )
    mpl.rcParams.update(
        {"axes.spines.right": False, "axes.titlesize": 9, "figure.constrained_layout.use": True}
    )
    for draw in FIGURES:
        if not names or draw.__name__ in names:
            figure = draw()
            figure.savefig(
                IMAGES / f"{draw.__name__}.svg", bbox_inches="tight", metadata={"Date": None}
            )
            plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])

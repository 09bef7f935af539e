"""IsoFLOP curves of a sweep that runs: losses so far, and the state of each run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.records.states import OPEN
from scalelab.report import draw
from scalelab.report.look import LIGHT, PARAMS, Look
from scalelab.units import format_flops, format_quantity, plural

if TYPE_CHECKING:
    from scalelab.store.run_status import RunStatus

DONE, RUNNING, SILENT, WAITING, LOST = "done", "running", "silent", "waiting", "without a result"
SYMBOLS = {
    DONE: ("circle", 8, 0.0),
    RUNNING: ("circle-open", 9, 1.8),
    SILENT: ("diamond-open", 10, 1.8),
    WAITING: ("line-ns-open", 8, 1.4),
    LOST: ("x-thin-open", 8, 2.2),
}
"""Marker of each kind of state: symbol, size and line width, pixels."""
LOSS_HEIGHT, ROW_HEIGHT = 300, 24
"""Height of the panel of losses, and of each budget in the panel of states, pixels."""
MAX_BUDGETS = 16
"""Most budgets in the panel of states; a sweep with more has losses only."""


def filling(runs: Sequence[RunStatus], look: Look = LIGHT) -> Any:
    """Return loss against parameters of the runs so far, above a row of all runs per budget.

    A running run is drawn at its expected final loss with its interval, once that is known.

    Parameters
    ----------
    runs : sequence of RunStatus
        Runs of one sweep, finished or not.
    look : Look
    """
    from plotly.subplots import make_subplots

    known = [run for run in runs if run.budget_flops is not None and run.n_params is not None]
    budgets = sorted({run.budget_flops or 0.0 for run in known})
    if not budgets:
        return draw.empty(look, "This sweep has no budgets.", height=220)
    n_rows = len(budgets) if len(budgets) <= MAX_BUDGETS else 0
    heights = [LOSS_HEIGHT, ROW_HEIGHT * (n_rows + 1)] if n_rows else [LOSS_HEIGHT]
    figure = make_subplots(
        rows=len(heights), cols=1, shared_xaxes=True, vertical_spacing=0.04, row_heights=heights
    )
    colours = look.shades(len(budgets))
    for at, (budget, colour) in enumerate(zip(budgets, colours, strict=True)):
        own = [run for run in known if run.budget_flops == budget]
        _losses(figure, own, budget, colour)
        if n_rows:
            _states(figure, own, at, budget, colour)
    if n_rows:
        _legend(figure, {kind_of(run) for run in known}, look)
    counts = {kind: sum(kind_of(run) == kind for run in known) for kind in SYMBOLS}
    said = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
    draw.finish(
        figure,
        look,
        alt=f"Loss against parameters of {plural(len(budgets), 'budget')} so far: {said}.",
        height=sum(heights) + 110,
        legend=n_rows > 0,
    )
    sizes = np.array([run.n_params or 0 for run in known], float)
    low, high = np.log10(sizes.min()), np.log10(sizes.max())
    room = 0.06 * (high - low) + 0.02
    figure.update_xaxes(**draw.log_axis(sizes, sizes=True), range=[low - room, high + room])
    figure.update_xaxes(title_text=PARAMS, row=len(heights))
    figure.update_yaxes(title_text="loss (nats/token)", row=1)
    if not any(run.loss_nats is not None and kind_of(run) == DONE for run in known):
        figure.update_yaxes(showticklabels=False, row=1)
        middle = {"xref": "x domain", "yref": "y domain", "x": 0.5, "y": 0.5}
        figure.add_annotation(text="The first loss appears here.", showarrow=False, **middle)
    if n_rows:
        names = [format_flops(budget) for budget in budgets]
        figure.update_yaxes(
            row=2,
            tickvals=list(range(n_rows)),
            ticktext=names,
            range=[-0.7, n_rows - 0.3],
            title_text="FLOP",
        )
    figure.update_layout(legend={"y": -0.16, "itemclick": False, "itemdoubleclick": False})
    return figure


def kind_of(run: RunStatus) -> str:
    """Return which of the markers a run has."""
    if run.state == "running":
        return SILENT if run.is_silent else RUNNING
    if run.state == "done":
        return DONE
    return WAITING if run.state in OPEN else LOST


def _losses(figure: Any, runs: Sequence[RunStatus], budget: float, colour: str) -> None:
    """Draw the finished runs, joined by a line, and the running ones where they are expected."""
    name = f"{format_flops(budget)} FLOP"
    found: dict[int, list[float]] = {}
    for run in runs:
        if kind_of(run) == DONE and run.loss_nats is not None:
            found.setdefault(run.n_params or 0, []).append(run.loss_nats)
    sizes = sorted(found)
    means = [math.fsum(found[size]) / len(found[size]) for size in sizes]
    x, y = np.array(sizes, float), np.array(means)
    if len(sizes) > 1:
        line = {"color": colour, "width": 1.2, "dash": "dot"}
        draw.add_curve(figure, x, y, line, name, row=1, col=1, showlegend=False)
    if sizes:
        draw.add_curve(
            figure,
            x,
            y,
            {"color": colour, "size": SYMBOLS[DONE][1]},
            name,
            f"{name}<br>N %{{customdata}}<br>loss %{{y:.4f}}",
            customdata=draw.sizes(x),
            row=1,
            col=1,
            showlegend=False,
        )
    ends = [(run, run.outlook.end) for run in runs if run.outlook and run.outlook.end]
    if not ends:
        return
    x = np.array([run.n_params or 0 for run, _ in ends], float)
    y = np.array([end.loss_nats for _, end in ends])
    low = np.array([end.low_nats for _, end in ends])
    high = np.array([end.high_nats for _, end in ends])
    symbol, size, width = SYMBOLS[RUNNING]
    draw.add_curve(
        figure,
        x,
        y,
        {"color": colour, "size": size, "symbol": symbol, "line": {"width": width}},
        name,
        f"{name}, running<br>N %{{customdata}}<br>expected loss %{{y:.4f}}",
        customdata=[
            f"{format_quantity(n)}, {a:.4f} to {b:.4f}"
            for n, a, b in zip(x, low, high, strict=True)
        ],
        error_y=draw.error_bars(y, low, high, colour, 3, 1.0),
        row=1,
        col=1,
        showlegend=False,
    )


def _states(figure: Any, runs: Sequence[RunStatus], at: int, budget: float, colour: str) -> None:
    """Draw every run of a budget in its row, by its state."""
    for kind, (symbol, size, width) in SYMBOLS.items():
        own = [run for run in runs if kind_of(run) == kind]
        if not own:
            continue
        own = [own[i] for i in draw.thinned(len(own), draw.MAX_POINTS // MAX_BUDGETS)]
        words = [
            f"{run.run_id}: {run.state}" + (f", {run.fraction:.0%}" if run.step else "")
            for run in own
        ]
        draw.add_curve(
            figure,
            np.array([run.n_params or 0 for run in own], float),
            np.full(len(own), float(at)),
            {
                "color": colour,
                "size": size,
                "symbol": symbol,
                "line": {"width": width, "color": colour},
            },
            kind,
            f"{format_flops(budget)} FLOP<br>N %{{customdata[0]}}<br>%{{customdata[1]}}",
            customdata=[
                (format_quantity(run.n_params or 0), draw.plain(text))
                for run, text in zip(own, words, strict=True)
            ],
            row=2,
            col=1,
            showlegend=False,
        )


def _legend(figure: Any, kinds: set[str], look: Look) -> None:
    """Name the markers in the colour of text: their own colour says the budget."""
    for kind, (symbol, size, width) in SYMBOLS.items():
        if kind in kinds:
            style = {"color": look.ink, "size": size, "symbol": symbol}
            style["line"] = {"width": width, "color": look.ink}
            nothing = np.array([np.nan])
            draw.add_curve(figure, nothing, nothing, style, kind, row=2, col=1, showlegend=True)

"""What is drawn over a figure of runs: one marked run, excluded runs, and the law before a change.

Each function works on the isoFLOP figure (loss against N) and adds its words to the alternative
text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.report import draw
from scalelab.report.look import Look
from scalelab.units import plural

if TYPE_CHECKING:
    from scalelab.forecast.bands import Bands
    from scalelab.records.types import Observations

GHOST = "with the excluded runs"


def positions(rows: Observations, names: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the positions of the rows of these runs."""
    if rows.names is None or not names:
        return np.zeros(0, dtype=np.intp)
    return np.flatnonzero(np.isin(rows.names.astype(np.str_), names))


def mark(figure: Any, rows: Observations, name: str, look: Look) -> None:
    """Draw a ring around the points of a run."""
    at = rows.take(positions(rows, (name,)))
    if len(at):
        ring = {"symbol": "circle-open", "size": 17, "color": look.ink, "line": {"width": 2.4}}
        draw.add_curve(figure, at.n_params, at.loss_nats, ring, f"run {draw.plain(name)}")
        _say(figure, f"A ring marks the run {name}.")


def left_out(figure: Any, rows: Observations, look: Look) -> None:
    """Draw excluded runs as crosses that can be clicked."""
    if not len(rows):
        return
    draw.add_curve(
        figure,
        rows.n_params,
        rows.loss_nats,
        {"symbol": "x-thin", "size": 9, "line": {"color": look.accent, "width": 2.2}},
        "excluded",
        "excluded: %{customdata[2]}<br>N %{customdata[0]}, D %{customdata[1]}<br>loss %{y:.4f}",
        customdata=draw.of_runs(rows),
    )
    _say(figure, f"Crosses: {plural(len(rows), 'excluded run')}.")


def ghost(figure: Any, bands: Bands, look: Look) -> None:
    """Draw the frontier of the law before runs were excluded, in the loss-N plane."""
    low, high = figure.layout.yaxis.range
    inside = (bands.loss >= low) & (bands.loss <= high)
    if inside.sum() > 1:
        style = {"color": look.faint, "width": 2, "dash": "dot"}
        draw.add_curve(figure, bands.n_params[inside], bands.loss[inside], style, GHOST, GHOST)
        _say(figure, f"Dotted: the frontier {GHOST}.")


def ghost_optima(figure: Any, bands: Bands, look: Look) -> None:
    """Draw the same in the two panels of N_opt and D_opt against compute."""
    style = {"color": look.faint, "width": 2, "dash": "dot"}
    for row, axis in ((1, "n_params"), (2, "n_tokens")):
        values = getattr(bands, axis)
        draw.add_curve(figure, bands.flops, values, style, GHOST, GHOST, row=row, col=1)
    _say(figure, f"Dotted: {GHOST}.")


def _say(figure: Any, words: str) -> None:
    figure.update_layout(meta={"alt": f"{figure.layout.meta['alt']} {words}"})

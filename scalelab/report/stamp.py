"""What a figure says about itself: title, source, law, interval and date, inside the figure.

A picture that leaves the page or the report takes them along.
"""

from __future__ import annotations

import hashlib
import textwrap
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.report.draw import plain
from scalelab.report.look import Look
from scalelab.units import plural

if TYPE_CHECKING:
    from scalelab.forecast.fit_report import FitReport
    from scalelab.records.types import Observations

TITLES = {
    "isoflop": "Loss against parameters at fixed compute",
    "optima": "Compute-optimal N and D against compute",
    "contours": "Loss over N and D",
    "extrapolation": "Loss at the compute-optimal N and D",
    "at_compute": "Predicted loss of every size at this compute",
    "compare_n": "Compute-optimal parameters, compared",
    "compare_d": "Compute-optimal tokens, compared",
    "compare_a": "Exponent of N_opt in C, compared",
    "compare_l": "Loss at the compute-optimal N and D, compared",
    "compare_s": "Speed-up over the reference against compute",
    "published_n_tokens": "Published models: parameters against tokens",
    "published_flops": "Published models: parameters against compute",
    "forest": "Exponent a of N_opt by method",
    "residuals": "Residuals of the law",
    "pairs": "Bootstrap replicates of the parameters",
    "left_out": "Fits without one budget",
    "forms": "Error of each form on the next budget",
    "curves": "Training curves",
    "running": "Training curves of running runs",
    "filling": "IsoFLOP curves so far",
    "pareto": "Predicted loss against cost",
    "costs": "Cost by budget",
    "valleys": "Valleys of the evaluation sets",
    "ratios": "D/N of the evaluation sets",
    "ternary": "Predicted target over the weights",
    "mix_weights": "Best weights of the sources",
    "mix_effects": "What 10 % more of a source does",
    "mix_fit": "Measured against predicted loss",
}
LINE_CHARACTERS = 62
"""Characters of a line of the source: it fits a window of 420 pixels."""
TITLE_PX, LINE_PX = 24, 17


def line_of(rows: Observations, report: FitReport | None, level: float) -> str:
    """Return the source line: runs, law, level and today's date."""
    parts = [f"{plural(len(rows.loss_nats), 'run')} from {rows.source}"]
    if report is not None:
        parts.append(
            f"{report.forecaster.label}" if report.averaged is None else
            f"{report.forecaster.label} beside the {report.fit.form} law"
        )  # fmt: skip
    parts += [f"{100 * level:g} % intervals", date.today().isoformat()]
    return ", ".join(parts)


def stamp(figure: Any, name: str, line: str, look: Look) -> Any:
    """Write title and source line above a figure, which becomes higher by their height."""
    title = TITLES.get(name, name.replace("_", " ").capitalize())
    rows = [plain(row) for row in textwrap.wrap(line, LINE_CHARACTERS)]
    more = TITLE_PX + LINE_PX * len(rows) + 6
    margin, height = figure.layout.margin.t or 0, figure.layout.height
    small = f"<span style='font-size:12px;color:{look.faint}'>{'<br>'.join(rows)}</span>"
    figure.update_layout(
        title={
            "text": f"<b>{title}</b><br>{small}",
            "font": {"size": 15, "color": look.ink},
            "x": 0,
            "xanchor": "left",
            "xref": "container",
            "y": 1,
            "yanchor": "top",
            "yref": "container",
            "pad": {"l": 4, "t": 20},  # Plotly puts the first baseline here
        },
        margin={"t": margin + more},
        paper_bgcolor=look.paper,  # a saved picture has its own background
        height=None if height is None else height + more,
    )
    return figure


def fingerprint(rows: Observations) -> str:
    """Return 12 hexadecimal digits of the fitted numbers: the same for the same data."""
    digest = hashlib.sha256()
    for column in (rows.n_params, rows.n_tokens, rows.flops, rows.loss_nats):
        digest.update(np.ascontiguousarray(column, dtype="<f8").tobytes())
    return digest.hexdigest()[:12]

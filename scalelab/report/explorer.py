"""The compute slider: the answer at many values of the compute, which the browser moves between.

All numbers are computed here, so that a move asks nothing of a server and gives the numbers of
``scalelab fit --predict``. `explorer.js` draws them, on the page and in the HTML report.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.fit.intervals import Interval
from scalelab.forecast.allocate import Forecast
from scalelab.forecast.averaged_forecast import WIDEST
from scalelab.forecast.bands import Bands, surface
from scalelab.forecast.extrapolation import fitted_range
from scalelab.forecast.headline import answer_basis, answer_sentence, next_compute
from scalelab.forecast.verdict import verdict_on
from scalelab.report import draw
from scalelab.report.look import FLOPS, LIGHT, PARAMS, Look
from scalelab.theory.accounting import tokens_at_6nd, train_flops_6nd
from scalelab.units import format_flops

if TYPE_CHECKING:
    from scalelab.forecast.fit_report import FitReport

Valley = list[list[float | None]] | None
"""Sizes and their losses."""
E24 = (
    *(1.0, 1.1, 1.2, 1.3, 1.5, 1.6, 1.8, 2.0, 2.2, 2.4, 2.7, 3.0),
    *(3.3, 3.6, 3.9, 4.3, 4.7, 5.1, 5.6, 6.2, 6.8, 7.5, 8.2, 9.1),
)
"""Values of a decade in equal ratios, with two digits (IEC 60063)."""
BEYOND = 1000.0
"""The slider ends at this many times the largest run."""
MAX_STEPS = 120
VALLEY_POINTS = 33
VALLEY_DECADES = 1.0
"""A valley is drawn from this many decades below its minimum to as many above."""
RUNS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Explorer:
    """What the browser needs, apart from colours and the printed command.

    Attributes
    ----------
    content : dict
        ``steps`` (one answer each), ``runs``, ``fitted`` (range of the compute of the runs),
        ``words`` (warnings by number) and ``start`` (index of the first shown step).
    axis : str
        Name of the loss with its unit.
    """

    content: dict[str, Any]
    axis: str

    def data(self, look: Look, command: str) -> dict[str, Any]:
        """Return the data of `explorer.js` in the colours of a theme.

        Parameters
        ----------
        look : Look
        command : str
            Command line that fits these runs; the browser adds ``--predict``.
        """
        colours = {name: getattr(look, name) for name in COLOURS}
        titles = {"flops": FLOPS, "loss": self.axis, "params": PARAMS}
        return {**self.content, "colours": colours, "command": command, "titles": titles}


COLOURS = ("ink", "faint", "grid", "paper", "accent", "second", "third")


def explorer(report: FitReport, asked: Forecast | None = None) -> Explorer | None:
    """Return the answers of a fit along the compute-optimal frontier, or None without one.

    Parameters
    ----------
    report : FitReport
    asked : Forecast, optional
        The step shown first; default: that of the headline.
    """
    rows = report.observations
    start = next_compute(rows)
    if not report.has_answer or not math.isfinite(start):
        return None
    if asked is not None and asked.flops is not None:
        start = asked.flops
    bands = report.forecaster.bands(_grid(rows.flops, start))
    if bands is None:
        return None
    forecasts = _forecasts(report, bands)
    if len(forecasts) < 2:
        return None
    valleys = _valleys(report, forecasts)
    words: dict[str, int] = {}
    steps = [
        _step(report, each, valley, words) for each, valley in zip(forecasts, valleys, strict=True)
    ]
    some = rows.take(draw.thinned(len(rows), RUNS))
    reached = train_flops_6nd(some.n_params, some.n_tokens)
    away = [abs(math.log((each.flops or start) / start)) for each in forecasts]
    return Explorer(
        content={
            "steps": steps,
            "start": int(np.argmin(away)),
            "fitted": [_digits(float(reached.min())), _digits(float(reached.max()))],
            "runs": [
                [_digits(float(x)) for x in row]
                for row in zip(reached, some.n_params, some.n_tokens, some.loss_nats, strict=True)
            ],
            "words": list(words),
            "level": f"{100 * report.level:g} %",
        },
        axis=rows.metric.axis,
    )


def _step(
    report: FitReport, asked: Forecast, valley: Valley, words: dict[str, int]
) -> dict[str, Any]:
    """Return one answer; its warnings are numbered in ``words``."""
    verdict = verdict_on(report.warnings, forecast=asked, has_answer=True)
    told = [
        f"{warning.code.replace('_', ' ').capitalize()}: {warning.message}"
        for warning in verdict.warnings
    ]
    losses = (asked.loss_nats, asked.low, asked.high, asked.pred_low, asked.pred_high)
    return {
        "c": _digits(asked.flops),
        "asked": asked.asked,
        "n": _ends(asked.n_params),
        "d": _ends(asked.n_tokens),
        "loss": [_digits(x) for x in losses],
        "says": answer_sentence(report, asked),
        "basis": answer_basis(report, asked),
        "verdict": verdict.label,
        "warnings": [words.setdefault(each, len(words)) for each in told],
        "valley": valley,
    }


def script() -> str:
    """Return the JavaScript function ``explore(root, data)``."""
    return resources.files("scalelab.report").joinpath("explorer.js").read_text("utf-8")


def style() -> str:
    """Return the style sheet of the slider."""
    return resources.files("scalelab.report").joinpath("explorer.css").read_text("utf-8")


def in_html(found: Explorer, command: str) -> str:
    """Return the slider for an HTML file: its style, its place, its script and its data."""
    data = json.dumps(found.data(LIGHT, command)).replace("</", "<\\/")
    return (
        f'<style>{style()}</style><div class="explorer" id="explorer"></div>'
        f"<script>{script()}\nexplore(document.getElementById('explorer'), {data});</script>"
    )


def _grid(flops: FloatArray, start: float) -> FloatArray:
    """Return the values of the compute, from the smallest run to `BEYOND` times the largest."""
    low, high = float(flops.min()), max(BEYOND * float(flops.max()), start)
    low = min(low, start)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [step * 10.0**power for power in powers for step in E24]
    found = [float(f"{value:.2g}") for value in found if low <= value <= high]
    every = max(1, -(-len(found) // MAX_STEPS))
    return np.unique([*found[::every], start])


def _forecasts(report: FitReport, bands: Bands) -> list[Forecast]:
    """Return the answers along the frontier; too uncertain ones are left out, as by `fit`."""
    fitted = fitted_range(report.observations)
    found = []
    for i, flops in enumerate(map(float, bands.flops)):
        n, d = (
            Interval(
                value=float(getattr(bands, name)[i]),
                low=float(getattr(bands, f"{name}_low")[i]),
                high=float(getattr(bands, f"{name}_high")[i]),
            )
            for name in ("n_params", "n_tokens")
        )
        if report.averaged is not None and not bands.high[i] / bands.low[i] <= WIDEST:
            continue
        found.append(
            Forecast(
                asked=f"C={format_flops(flops)}",
                allocation=f"compute-optimal at C = {format_flops(flops)}",
                n_params=n,
                n_tokens=d,
                flops=flops,
                loss_nats=float(bands.loss[i]),
                low=float(bands.low[i]),
                high=float(bands.high[i]),
                pred_low=float(bands.pred_low[i]),
                pred_high=float(bands.pred_high[i]),
                level=bands.level,
                extrapolation=flops / fitted.flops,
                outside_range=fitted.describe_extrapolation(
                    n_params=n.value, n_tokens=d.value, flops=flops
                ),
                distance=fitted.describe_distance(flops),
                forecaster=report.forecaster.name,
            )
        )
    return found


def _valleys(report: FitReport, forecasts: list[Forecast]) -> list[Valley]:
    """Return sizes and losses at each compute, around its optimum; None where not known."""
    flops = np.array([each.flops for each in forecasts])[:, None]
    best = np.array([each.n_params.value for each in forecasts if each.n_params])[:, None]
    around = np.logspace(-VALLEY_DECADES, VALLEY_DECADES, VALLEY_POINTS)
    n_params = best * around
    losses = surface(report, n_params.ravel(), tokens_at_6nd(flops, n_params).ravel())
    if losses is None:
        return [None] * len(forecasts)
    return [
        [[_digits(float(x)) for x in part] for part in pair]
        for pair in zip(n_params, losses.reshape(n_params.shape), strict=True)
    ]


def _ends(size: Interval | None) -> list[float | None]:
    return [] if size is None else [_digits(x) for x in (size.value, size.low, size.high)]


def _digits(value: float | None) -> float | None:
    """Return a number of five digits for JSON, which has no infinity."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.5g}")

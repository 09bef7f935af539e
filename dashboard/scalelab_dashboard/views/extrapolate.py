"""Extrapolate: a target in compute, parameters, tokens, GPU-hours or money; published models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import streamlit as st

from scalelab.errors import ScalelabError, UsageError
from scalelab.forecast.allocate import far_warnings
from scalelab.forecast.published import PUBLISHED, WELL_KNOWN
from scalelab.report import figures_forecast
from scalelab.theory.hardware import HARDWARE, STATED_UTILISATION, find_hardware
from scalelab.units import format_flops, format_quantity, parse_quantity
from scalelab_dashboard import queries, ui, waiting
from scalelab_dashboard.fits import Failure

if TYPE_CHECKING:
    from scalelab.fit.outcome import Interval
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.fit_report import FitReport
    from scalelab.records.types import Observations
    from scalelab_dashboard.state import Choice

BY = ("Compute C", "Parameters N", "Tokens D", "GPU-hours", "Money")
LETTER = {"Compute C": "C", "Parameters N": "N", "Tokens D": "D"}
EXAMPLES = {
    "Parameters N": "7B",
    "Tokens D": "2T",
    "GPU-hours": "100000",
    "Money": "1M",
}
COLUMNS = {"n_params": "N", "n_tokens": "D", "flops": "C"}
SECONDS_PER_HOUR = 3600
PUBLISHED_SPAN = (1e19, 1e26)


def show(choice: Choice) -> None:
    """Draw the page."""
    found = waiting.rows(choice)
    if found is None:
        return
    request = _ask(found[0])
    report = waiting.report(choice)
    if report is None or choice.key is None:
        return
    if report.fit.status == "not_identified":
        waiting.not_identified(report)
        return
    if isinstance(request, Failure):
        ui.failure(request)
        return
    forecast = queries.forecast(choice.key, request, report)
    if isinstance(forecast, Failure):
        ui.failure(forecast)
        return
    _answer(forecast)
    _picture(choice, report, forecast)
    st.download_button(
        "Save this run as a sweep file",
        sweep_file(forecast, choice),
        f"target-{request.replace('=', '-')}.toml",
        "application/toml",
        on_click="ignore",
        help="A grid of one: the run that this forecast is about.",
    )
    ui.command(choice.words("--predict", request))
    _published(choice, report)


def _ask(rows: Observations) -> str | Failure:
    """Draw the inputs; return the request as the command line takes it."""
    columns = st.columns([2, 2, 1, 1])
    with columns[0]:
        by = st.selectbox("Target by", BY, key="by", bind="query-params")
    with columns[1]:
        next_c = by == "Compute C"
        usual = ui.next_compute(rows) if next_c else EXAMPLES[by]
        text = st.text_input(
            "Target",
            key="target",
            bind="query-params",
            placeholder=f"{usual}, 10 times the largest run" if next_c else usual,
            help="1e24, 7B, 2T; money in US dollars.",
        )
    text = text or usual
    hardware, utilisation = "h100", STATED_UTILISATION
    if by in ("GPU-hours", "Money"):
        with columns[2]:
            hardware = st.selectbox(
                "GPU", sorted(HARDWARE), key="gpu", bind="query-params", index=2
            )
        with columns[3]:
            utilisation = st.number_input(
                "Utilisation", 0.01, 1.0, STATED_UTILISATION, 0.05, key="mfu", bind="query-params"
            )
    try:
        return request_of(by, text, hardware, utilisation)
    except ScalelabError as error:
        return Failure(given=error.given, allowed=error.allowed, do=error.do)


def request_of(by: str, text: str, hardware: str, utilisation: float) -> str:
    """Return a target as ``scalelab fit --predict`` takes it.

    Raises
    ------
    UsageError
        When the text is no quantity.
    """
    text = text.strip()
    if "=" in text:
        return text
    if by in LETTER:
        parse_quantity(text, what=by)
        return f"{LETTER[by]}={text}"
    device = find_hardware(hardware)
    hours = parse_quantity(text.lstrip("$"), what=by)
    if by == "Money":
        hours /= device.usd_per_hour
    flops = hours * SECONDS_PER_HOUR * device.peak_flops_per_s * utilisation
    if not math.isfinite(flops):
        raise UsageError(f"{by} {text!r}", "a quantity that a GPU could spend", "Ask for less.")
    return f"C={flops:.6g}"


def _answer(forecast: Forecast) -> None:
    """Show N, D, C and the loss, each with its interval, and how far it is."""
    share = f"{100 * forecast.level:g} %"
    columns = st.columns(3)
    sizes = (("parameters N", forecast.n_params), ("training tokens D", forecast.n_tokens))
    for column, (label, size) in zip(columns, sizes, strict=False):
        with column:
            ui.number(label, format_quantity(size.value) if size else "–", _span(size, share))
    with columns[2]:
        ui.number(
            "predicted loss, nats per token",
            f"{forecast.loss_nats:.4f}",
            f"law {forecast.low:.4f} to {forecast.high:.4f}; a new run {forecast.pred_low:.4f} to "
            f"{forecast.pred_high:.4f} ({share})",
        )
    flops = "" if forecast.flops is None else f"C = {format_flops(forecast.flops)} FLOP. "
    distance = ""
    if forecast.extrapolation is not None:
        ratio = forecast.extrapolation
        times = format_flops(ratio) if ratio >= 1e6 else f"{ratio:,.{0 if ratio >= 100 else 1}f}"
        distance = (
            f"{times} times the compute of the largest run."
            if forecast.extrapolation > 1
            else "Within the compute of the runs."
        )
    allocation = forecast.allocation
    for name, letter in COLUMNS.items():
        allocation = allocation.replace(name, letter)
    st.markdown(ui.as_text(f"{flops}{allocation}. ") + f"**{distance}**")
    for warning in far_warnings([forecast]):
        st.warning(ui.as_text(warning.message))


def _span(size: Interval | None, share: str) -> str:
    if size is None:
        return "not used by this form"
    if size.low == size.high == size.value:
        return "given"
    if not math.isfinite(size.low + size.high):
        return "no interval (no replicates)"
    return f"{format_quantity(size.low)} to {format_quantity(size.high)} ({share})"


def _picture(choice: Choice, report: FitReport, forecast: Forecast) -> None:
    assert choice.key is not None
    flops = forecast.flops or report.fit.max_flops
    low = float(report.observations.flops.min()) / 2
    bands = queries.bands(choice.key, low, max(flops, report.fit.max_flops) * 3, report)
    held = queries.held_out(choice.key, report)
    look = ui.look()
    ui.draw(
        queries.figure(
            "extrapolation",
            choice.key,
            look.name,
            forecast.asked,
            lambda: figures_forecast.extrapolation(report, bands, [forecast], held, look),
        ),
        "extrapolation",
    )
    st.caption(
        "Inner band: the law's own uncertainty. Outer band: where a new run would land. Grey: the "
        "compute of the fitted runs."
    )
    if report.holdout is not None:
        score = report.holdout
        st.markdown(
            f"Of {score.n_rows:,} held-out runs, {score.covered:,} lie inside their prediction "
            f"interval; mean error {100 * score.mean_relative_error:.2f} %, largest "
            f"{100 * score.max_relative_error:.2f} %."
        )


def sweep_file(forecast: Forecast, choice: Choice) -> str:
    """Return the run of a forecast as a sweep file that ``scalelab sweep run`` takes."""
    from scalelab.api.assess import run_as_sweep

    return run_as_sweep(forecast, " ".join(choice.words("--predict", forecast.asked)))


def _published(choice: Choice, report: FitReport) -> None:
    assert choice.key is not None
    st.subheader("Published models beside this sweep's optimum")
    table = queries.against_published(choice.key, report)
    if not len(table):
        st.caption("This form has no optimum in N and D to compare with.")
        return
    bands = queries.bands(choice.key, *PUBLISHED_SPAN, report)
    models = [model for model in PUBLISHED if model.is_decoder]
    look = ui.look()
    ui.draw(
        queries.figure(
            "published",
            choice.key,
            look.name,
            None,
            lambda: figures_forecast.published_planes(models, bands, WELL_KNOWN, look),
        ),
        "published",
    )
    shown = table[["model", "year", "n_params", "n_tokens", "ratio", "saved", "verdict", "source"]]
    flops, name = ui.scaled(table, "flops")
    shown = shown.assign(saved=100 * table["saved"])
    shown.insert(4, name, flops)
    shown = shown.sort_values("year", ascending=False, kind="stable")
    st.dataframe(
        shown,
        hide_index=True,
        alt="Published models with their distance from this sweep's optimum",
        column_config={
            "year": st.column_config.NumberColumn(format="%d", width=56),
            "n_params": st.column_config.NumberColumn("N", format="compact", width=64),
            "n_tokens": st.column_config.NumberColumn("D, tokens", format="compact", width=80),
            name: st.column_config.NumberColumn(format="%.3g", width=100),
            "ratio": st.column_config.NumberColumn("N / optimal N", format="%.2f", width=100),
            "saved": st.column_config.NumberColumn(
                "saved, %",
                format="%.1f",
                width=80,
                help="Share of its compute with which the optimum reaches the same loss.",
            ),
            "verdict": st.column_config.TextColumn(width=330),
            "source": st.column_config.TextColumn(width="large"),
        },
    )
    st.caption(
        "N is what a token passes through, C = 6 N D. Data and tokenizers differ: "
        "the comparison is of shapes, not of losses."
    )

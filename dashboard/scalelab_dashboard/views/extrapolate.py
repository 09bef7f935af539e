"""Extrapolate: predict a target in compute, parameters, tokens, GPU-hours or money."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import streamlit as st

from scalelab.errors import UsageError
from scalelab.forecast.allocate import SIZE_COLUMNS, parse_request
from scalelab.forecast.extrapolation import fitted_range
from scalelab.forecast.forecaster import beside
from scalelab.forecast.headline import laws_sentence
from scalelab.forecast.published import LABELLED_MODELS, PUBLISHED_MODELS, far_words
from scalelab.report import figures_forecast
from scalelab.theory.hardware import HARDWARE, STATED_UTILISATION, find_hardware
from scalelab.units import format_flops, format_quantity, parse_quantity, plural
from scalelab_dashboard import glossary, point, queries, scores, slider, ui, waiting
from scalelab_dashboard.fits import Failure, attempt

if TYPE_CHECKING:
    from scalelab.fit.intervals import Interval
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.bands import Bands
    from scalelab.forecast.fit_report import FitReport
    from scalelab.records.types import Observations
    from scalelab.report.look import Look
    from scalelab_dashboard.choice import Choice

BY = ("Compute C", "Parameters N", "Tokens D", "GPU-hours", "Money")
LETTER = {"Compute C": "C", "Parameters N": "N", "Tokens D": "D"}
EXAMPLES = {
    "Parameters N": "7B",
    "Tokens D": "2T",
    "GPU-hours": "100000",
    "Money": "1M",
}
SECONDS_PER_HOUR = 3600
ANSWERED = "last_answered_target"
PUBLISHED_SPAN = (1e19, 1e26)
PLANES: tuple[Literal["n_tokens", "flops"], ...] = ("n_tokens", "flops")


def show(choice: Choice) -> None:
    """Draw the page."""
    _forecast(choice)
    scores.show(choice)


def _forecast(choice: Choice) -> None:
    """Draw the forecast of a target."""
    found = waiting.rows(choice)
    if found is None:
        return
    request = _ask(found[0])
    report = waiting.report(choice)
    if report is None or choice.key is None:
        return
    if not report.has_answer:
        waiting.not_identified(report)
        return
    forecast = queries.forecast(choice.key, request, report)
    if isinstance(forecast, Failure):
        ui.field_error(replace(forecast, given=forecast.given.removeprefix("--predict ")))
        source, request = st.session_state.get(ANSWERED, ("", ""))
        what = "the last target with an answer"
        if source != choice.shown:
            request, what = f"C={ui.next_compute(found[0])}", "10x the largest run"
        st.caption(ui.as_text(f"Below: {request}, {what}."))
        forecast = queries.forecast(choice.key, request, report)
        if isinstance(forecast, Failure):
            return
    else:
        st.session_state[ANSWERED] = (choice.shown, request)
    head = queries.headline(choice.key, tuple(choice.words()[2:]), forecast.asked, report, forecast)
    laws = laws_sentence(report.averaged)
    ui.answer(head.sentence, head.basis, head.verdict, head.warnings, laws)
    point.offer(choice, head.warnings, len(found[0]))
    _answer(report, forecast)
    _picture(choice, report, forecast)
    point.panel(choice, report)
    st.download_button(
        "Save this run as a sweep file",
        sweep_file(forecast, choice),
        f"target-{request.replace('=', '-')}.toml",
        "application/toml",
        on_click="ignore",
        help="A sweep file with this one run.",
    )
    ui.command(choice.words("--predict", request))
    slider.show(choice, forecast)
    _published(choice, report)


def _ask(rows: Observations) -> str:
    """Draw the inputs; return the request in the form of the command line.

    Of a target that is no quantity, the last valid one; the error is below the field.
    """
    columns = st.columns([2, 2, 1, 1])
    with columns[0]:
        by = st.selectbox("Target by", BY, key="by", bind="query-params")
    place = columns[1].container()
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
    with place:
        next_c = by == BY[0]
        usual = ui.next_compute(rows) if next_c else EXAMPLES[by]
        text = ui.checked_input(
            "Target",
            ui.COMPUTE if next_c else "target",
            lambda text: parse_request(request_of(by, text, hardware, utilisation)),
            placeholder=f"{usual}, 10x the largest run" if next_c else usual,
            help="For example 1e24, 7B or 2T; money in US dollars.",
        )
    # the last valid text may belong to another choice of "Target by"
    found = attempt(lambda: request_of(by, text or usual, hardware, utilisation))
    return request_of(by, usual, hardware, utilisation) if isinstance(found, Failure) else found


def request_of(by: str, text: str, hardware: str, utilisation: float) -> str:
    """Return a target in the form of ``scalelab fit --predict``.

    Raises
    ------
    UsageError
        If the text is not a quantity.
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
        raise UsageError(f"{by} {text!r}", "a finite amount of compute", "Enter a smaller number.")
    return f"C={flops:.6g}"


def _answer(report: FitReport, forecast: Forecast) -> None:
    """Show N, D, C and the loss with intervals, and the extrapolation distance."""
    share = f"{100 * forecast.level:g} %"
    columns = st.columns(3)
    sizes = (("parameters N", forecast.n_params), ("training tokens D", forecast.n_tokens))
    for column, (label, size) in zip(columns, sizes, strict=False):
        with column:
            ui.number(label, format_quantity(size.value) if size else "–", _span(size, share))
    with columns[2]:
        ui.number(
            f"predicted {report.label}, {report.unit}",
            f"{forecast.loss_nats:.4f}",
            f"{forecast.low:.4f} to {forecast.high:.4f} ({share} confidence interval); "
            f"{forecast.pred_low:.4f} to {forecast.pred_high:.4f} ({share} prediction interval)",
            glossary.about("Confidence interval", "Prediction interval"),
        )
    flops = "" if forecast.flops is None else f"C = {format_flops(forecast.flops)} FLOP. "
    allocation = forecast.allocation[0].upper() + forecast.allocation[1:]
    st.markdown(ui.as_text(f"{flops}{allocation}."))
    st.caption(ui.as_text(_basis(report, forecast)))


def _basis(report: FitReport, forecast: Forecast) -> str:
    """Return what predicts, and what the fitted law says beside it."""
    by = f"By the {report.forecaster.label}."
    if report.averaged is None:
        return by
    (law,) = beside(report.law_forecaster, [parse_request(forecast.asked)])
    if law is None:
        return f"{by} The {report.fit.form} law alone has no answer."
    difference = 100 * (law.loss_nats / forecast.loss_nats - 1)
    asked = parse_request(forecast.asked).values
    where = "at its own optimum" if len(set(asked) & set(SIZE_COLUMNS)) == 1 else "there"
    return (
        f"{by} The {report.fit.form} law alone, {where}: {law.loss_nats:.4f} ({difference:+.2f} %)."
    )


def _span(size: Interval | None, share: str) -> str:
    if size is None:
        return "not used by this form"
    if size.low == size.high == size.value:
        return "given"
    if not math.isfinite(size.low + size.high):
        return "no interval"
    return f"{format_quantity(size.low)} to {format_quantity(size.high)} ({share})"


def _picture(choice: Choice, report: FitReport, forecast: Forecast) -> None:
    assert choice.key is not None
    flops = forecast.flops or report.fit.max_flops
    low = min(float(report.observations.flops.min()), flops) / 2
    bands = queries.bands(choice.key, low, max(flops, report.fit.max_flops) * 3, report)
    held = queries.held_out(choice.key, report)
    ui.plot(
        "extrapolation",
        choice.key,
        lambda look: figures_forecast.extrapolation(report, bands, [forecast], held, look),
        forecast.asked,
        point.clicks(choice),
    )
    st.caption(
        "Inner band: confidence interval of the loss. Outer band: prediction interval of a new "
        "run. Grey: compute range of the fitted runs. Click a point to see its run."
    )
    if report.holdout is not None:
        score = report.holdout
        inside = (
            f"{score.covered:,} of {plural(score.n_intervals, 'held-out run')} inside the "
            "prediction interval"
            if score.n_intervals
            else f"{plural(score.n_rows, 'held-out run')} without prediction intervals"
        )
        st.markdown(
            f"{inside}; mean error {100 * score.mean_relative_error:.2f} %, largest "
            f"{100 * score.max_relative_error:.2f} %."
        )


def sweep_file(forecast: Forecast, choice: Choice) -> str:
    """Return a sweep file for the run of a forecast."""
    from scalelab_dashboard.assess import run_as_sweep

    return run_as_sweep(forecast, " ".join(choice.words("--predict", forecast.asked)))


def _plane(
    bands: Bands | None, axis: Literal["n_tokens", "flops"], largest: float, look: Look
) -> Any:
    models = [model for model in PUBLISHED_MODELS if model.is_decoder]
    return figures_forecast.published_plane(
        models, bands, axis, LABELLED_MODELS, look, largest=largest
    )


def _published(choice: Choice, report: FitReport) -> None:
    assert choice.key is not None
    st.subheader(f"Published models compared with the optimum of the {report.fit.form} law")
    table = queries.against_published(choice.key, report)
    if not len(table):
        st.caption("This law has no compute-optimal N and D, or is not identified.")
        return
    largest = fitted_range(report.observations).flops
    if far := far_words([float(each) for each in table["flops"]], largest):
        st.warning(ui.as_text(far))
    bands = queries.law_bands(choice.key, *PUBLISHED_SPAN, report)
    for column, axis in zip(st.columns(2, gap="medium"), PLANES, strict=True):
        draw = partial(_plane, bands, axis, largest)
        with column:
            ui.plot(f"published_{axis}", choice.key, draw)
    # The verdict comes early: at 1,280 pixels the last columns are beyond the edge.
    shown = table[["model", "verdict", "n_params", "n_tokens", "ratio", "saved", "year", "source"]]
    flops, name = ui.scaled(table, "flops")
    words = table["verdict"].str.split(": ")
    shown = shown.assign(saved=100 * table["saved"], verdict=words.str[0])
    shown.insert(4, name, flops)
    times = table["flops"] / largest
    shown.insert(5, "x largest run", times)
    shown = shown.sort_values("year", ascending=False, kind="stable")
    st.dataframe(
        shown,
        hide_index=True,
        alt="Published models with their distance from the optimum of this fit",
        column_config={
            "year": st.column_config.NumberColumn(format="%d", width=56),
            "n_params": st.column_config.NumberColumn("N", format="compact", width=64),
            "n_tokens": st.column_config.NumberColumn("D, tokens", format="compact", width=80),
            name: st.column_config.NumberColumn(format="%.3g", width=100),
            "x largest run": st.column_config.NumberColumn(
                format="%.1e" if times.max() >= 1e6 else "%.3g", width=100
            ),
            "ratio": st.column_config.NumberColumn("N / optimal N", format="%.2f", width=100),
            "saved": st.column_config.NumberColumn(
                "saved, %",
                format="%.1f",
                width=80,
                help="Share of its compute that the optimum would save at the same loss.",
            ),
            "verdict": st.column_config.TextColumn(
                width=130, help=". ".join(sorted({": ".join(each) for each in words}))
            ),
            "source": st.column_config.TextColumn(width="large"),
        },
    )
    st.caption(
        "Point at a model for its name. Faded: more than 1,000 times the compute of the largest "
        "run. Over-trained: smaller than optimal, cheaper to serve. Under-trained: too large for "
        "its compute. N: parameters used per token. C = 6 N D. Data and tokenizers differ, so "
        "compare sizes, not losses."
    )

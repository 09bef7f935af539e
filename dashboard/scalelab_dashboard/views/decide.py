"""Decide: what to train under limits of compute, money, data, energy, time and serving."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from scalelab.api import decisions as api_decide
from scalelab.errors import ScalelabError
from scalelab.forecast.decision import GRID_SOURCE, WORLD_GRAMS_PER_KWH, Limits
from scalelab.forecast.published_laws import PUBLISHED_LAWS
from scalelab.report import figures_forecast
from scalelab.theory.hardware import HARDWARE, STATED_UTILISATION, UTILISATION_SOURCE
from scalelab.units import format_flops, format_money, format_quantity, parse_quantity
from scalelab_dashboard import ui, waiting
from scalelab_dashboard.fits import Failure

if TYPE_CHECKING:
    from scalelab.fit.result import FitReport
    from scalelab.forecast.decision import Candidate, Decision
    from scalelab_dashboard.state import Choice

OWN = "this fit"
# Our name of the limit, its label, its option, its unit's factor, an example.
LIMITS = (
    ("flops", "Training compute, FLOP", "--flops", 1.0, "5.76e23"),
    ("gpu_hours", "GPU-hours of training", "--gpu-hours", 1.0, "400K"),
    ("days", "Days of training", "--max-days", 1.0, "30"),
    ("usd", "Money, US dollars", "--max-usd", 1.0, "2M"),
    ("kwh", "Energy, kWh", "--max-kwh", 1.0, "500K"),
    ("kg_co2", "CO2, kg", "--max-co2-kg", 1.0, "100K"),
    ("unique_tokens", "Unique tokens", "--unique-tokens", 1.0, "1T"),
    ("serving_bytes", "Serving memory, GB", "--serving-gb", 1e9, "80"),
)
COSTS = {
    "Total FLOPs": ("total_flops", "training and serving, FLOP"),
    "Money": ("usd", "money, US dollars"),
    "Energy": ("kwh", "energy, kWh"),
    "CO2": ("kg_co2", "kg CO2"),
}


def show(choice: Choice) -> None:
    """Draw the page."""
    laws = [*([OWN] if choice.key is not None else []), *PUBLISHED_LAWS]
    top = st.columns([2, 2, 1, 1, 1])
    with top[0]:
        law = st.selectbox("Law", laws, key="law", bind="query-params")
    with top[1]:
        demand = st.text_input(
            "Tokens served over its life",
            key="serve",
            bind="query-params",
            placeholder="none",
            help="Serving costs 2 N FLOPs a token; it counts into money, energy and CO2.",
        )
    with top[2]:
        gpu = st.selectbox("GPU", sorted(HARDWARE), index=2, key="device", bind="query-params")
    with top[3]:
        count = st.number_input("How many", 1, 10**6, 1024, 1, key="gpus", bind="query-params")
    with top[4]:
        share = st.number_input(
            "Utilisation",
            0.01,
            1.0,
            STATED_UTILISATION,
            0.05,
            key="use",
            bind="query-params",
            help=UTILISATION_SOURCE,
        )
    given = _limits()
    named = st.text_input(
        "Candidates, N:D (empty: search)",
        key="named",
        bind="query-params",
        placeholder="7B:2T, 13B:1T",
    )
    words = ["scalelab", "decide"]
    source: FitReport | str = law
    if law == OWN:
        if waiting.rows(choice) is None:
            return
        report = waiting.report(choice)
        if report is None:
            return
        if report.fit.status == "not_identified":
            waiting.not_identified(report)
            return
        source = report
        words += choice.words()[2:]
    else:
        words += ["--law", law]
    candidates = [part.strip() for part in (named or "").split(",") if part.strip()]
    for option, text in _options(given, gpu, count, share, demand or "", candidates):
        words += [option, text]
    answer = _answer(source, given, gpu, count, share, demand or "", candidates)
    if isinstance(answer, Failure):
        ui.failure(answer)
        return
    _show(answer, is_constant=isinstance(source, str))
    if answer.best is not None:
        st.download_button(
            "Save the winner as a sweep file",
            api_decide.as_sweep(answer.best, " ".join(words)),
            "winner.toml",
            "application/toml",
            on_click="ignore",
        )
    ui.command(words)


def _limits() -> dict[str, str]:
    """Draw the limits; return those that were given, as text."""
    given = {}
    places = st.columns(4)
    for i, (name, label, _, _, example) in enumerate(LIMITS):
        with places[i % 4]:
            text = st.text_input(
                label,
                "5.76e23" if name == "flops" else "",
                key=f"max_{name}",
                bind="query-params",
                placeholder=f"no limit, or {example}",
            )
        if text and text.strip():
            given[name] = text.strip()
    return given


def _options(
    given: dict[str, str], gpu: str, count: float, share: float, demand: str, named: list[str]
) -> list[tuple[str, str]]:
    """Return the options of the command that has the same answer."""
    options = [(option, given[name]) for name, _, option, _, _ in LIMITS if name in given]
    options += [("--candidate", text) for text in named]
    if demand.strip():
        options.append(("--inference-tokens", demand.strip()))
    options += [("--gpu", gpu), ("--gpus", f"{count:g}")]
    if share != STATED_UTILISATION:
        options.append(("--utilisation", f"{share:g}"))
    return options


def _answer(
    source: FitReport | str,
    given: dict[str, str],
    gpu: str,
    count: float,
    share: float,
    demand: str,
    named: list[str],
) -> Decision | Failure:
    try:
        scale = {name: factor for name, _, _, factor, _ in LIMITS}
        read = {
            name: parse_quantity(text.lstrip("$"), what=name.replace("_", " ")) * scale[name]
            for name, text in given.items()
        }
        return api_decide.decide(
            source,
            Limits(**read),
            api_decide.Demand(
                gpu=gpu,
                n_devices=count,
                utilisation=share,
                inference_tokens=parse_quantity(demand, what="served tokens")
                if demand.strip()
                else 0.0,
            ),
            candidates=named,
        )
    except ScalelabError as error:
        return Failure(given=error.given, allowed=error.allowed, do=error.do)


def _show(answer: Decision, *, is_constant: bool) -> None:
    best = answer.best
    if best is None:
        st.warning("No candidate keeps the limits. Loosen one, or name smaller candidates.")
    else:
        _headline(best, is_constant=is_constant)
        _binding(answer)
    left, right = st.columns([3, 2], gap="medium")
    with left:
        cost = st.selectbox("Against", list(COSTS), key="against_cost", bind="query-params")
        column, unit = COSTS[cost]
        points = [
            {
                **each.costs,
                "label": each.label,
                "loss_nats": each.loss_nats,
                "low": each.low,
                "high": each.high,
                "is_feasible": each.is_feasible,
                "is_front": i in answer.front,
                "is_best": each is best,
            }
            for i, each in enumerate(answer.candidates)
        ]
        ui.draw(figures_forecast.pareto(points, column, unit, ui.look()), "pareto")
    with right:
        st.dataframe(
            pd.DataFrame([_row(each) for each in answer.candidates]),
            hide_index=True,
            alt="Candidates with predicted loss and costs",
        )
        st.caption(
            ui.as_text(
                "Hours and days are of training; money, energy and CO2 include serving. Board "
                f"power, list price, {WORLD_GRAMS_PER_KWH:g} g CO2 a kWh ({GRID_SOURCE})."
            )
        )


def _headline(best: Candidate, *, is_constant: bool) -> None:
    columns = st.columns(4)
    with columns[0]:
        ui.number("train parameters N", format_quantity(best.n_params), "the best size")
    with columns[1]:
        epochs = best.costs["epochs"]
        passes = "" if epochs is None else f", {epochs:.2f} passes over the data"
        ui.number(
            "on tokens D",
            format_quantity(best.n_tokens),
            f"{best.n_tokens / best.n_params:.1f} tokens a parameter{passes}",
        )
    with columns[2]:
        interval = (
            "no interval: constants alone"
            if is_constant or best.low is None
            else f"{best.low:.4f} to {best.high:.4f}"
        )
        ui.number("predicted loss, nats", f"{best.loss_nats:.4f}", interval)
    with columns[3]:
        ui.number(
            "for",
            format_money(best.costs["usd"] or 0.0),
            f"{format_quantity(best.costs['gpu_hours'] or 0.0)} GPU-hours, "
            f"{best.costs['days'] or 0.0:.3g} days, {format_flops(best.flops)} FLOP",
        )


def _binding(answer: Decision) -> None:
    if not answer.binding:
        st.markdown("No limit binds.")
        return
    labels = {name: label for name, label, *_ in LIMITS}
    for name in answer.binding:
        gain = answer.relaxed.get(name)
        more = "" if gain is None else f" 10 % more of it would save {gain:.4f} nats."
        st.markdown(f"**{labels[name]}** binds.{more}")


def _row(each: Candidate) -> dict[str, str]:
    return {
        "candidate": each.label,
        "loss": f"{each.loss_nats:.4f}",
        "C, FLOP": format_flops(each.flops),
        "money": format_money(each.costs["usd"] or 0.0),
        "kWh": format_quantity(each.costs["kwh"] or 0.0),
        "kg CO2": format_quantity(each.costs["kg_co2"] or 0.0),
        "exceeds": ", ".join(each.broken).replace("_", " "),
    }

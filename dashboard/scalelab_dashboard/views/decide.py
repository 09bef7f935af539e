"""Decide: what to train within limits on compute, money, data, energy, time and serving."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from scalelab.api import decisions as api_decide
from scalelab.arrays import FloatArray
from scalelab.forecast.bands import surface
from scalelab.forecast.headline import basis_words, decision_sentence, laws_sentence, limits_words
from scalelab.forecast.more_runs import of_sweep
from scalelab.forecast.published_laws import PUBLISHED_LAWS
from scalelab.records.sweep_words import sweep_words
from scalelab.report import figures_decide
from scalelab.theory.hardware import GRID_SOURCE, HARDWARE
from scalelab.units import format_flops, format_money, format_quantity, plural
from scalelab_dashboard import point, queries, ui, waiting
from scalelab_dashboard.asked import CHINCHILLA_FLOPS, LIMITS, Asked
from scalelab_dashboard.fits import Failure, FitKey, attempt
from scalelab_dashboard.views import candidates, decide_inputs

if TYPE_CHECKING:
    from scalelab.fit.intervals import Interval
    from scalelab.forecast.decision import Candidate, Decision
    from scalelab.forecast.fit_report import FitReport
    from scalelab_dashboard.choice import Choice

OWN = "this fit"
AT_COMPUTE = "Parameters at this compute"
ANSWERED = "last_answered_question"
RECOMMENDED = "besiroglu"
"""Refit of the Chinchilla runs; the published constants do not fit them, arXiv:2404.10102."""
COSTS = {
    "Total FLOPs": ("total_flops", "training and serving, FLOP"),
    "Money": ("usd", "money, US dollars"),
    "Energy": ("kwh", "energy, kWh"),
    "CO2": ("kg_co2", "kg CO2"),
}


def show(choice: Choice) -> None:
    """Draw the page: the answer and its figure, then the question."""
    top = st.container()
    inputs = st.expander("Law, limits and hardware", expanded=decide_inputs.is_changed())
    with inputs:
        others = sorted(PUBLISHED_LAWS, key=lambda name: name != RECOMMENDED)
        laws = [*([OWN] if choice.key is not None else []), *others]
        law = st.selectbox(
            "Law of the decision",
            laws,
            key="law",
            bind="query-params",
            help="Your fit has intervals; published laws have none.",
        )
        asked = decide_inputs.ask(_usual(choice, law))
        below = st.container()
    words = ["scalelab", "decide"]
    source: FitReport | str = law
    if law == OWN:
        if waiting.rows(choice) is None:
            return
        report = waiting.report(choice)
        if report is None:
            return
        if not report.has_answer:
            waiting.not_identified(report)
            return
        source = report
        words += choice.words()[2:]
    else:
        words += ["--law", law]
    key = choice.key if law == OWN else None
    found = attempt(lambda: _answer(key, law, asked, source))
    if isinstance(found, Failure):
        with below:
            ui.field_error(found)
        last = st.session_state.get(ANSWERED)
        if last is None or last[:2] != (key, law):
            with top:
                ui.failure(found)
            return
        asked = last[2]
        found = _answer(key, law, asked, source)
    st.session_state[ANSWERED] = (key, law, asked)
    words += asked.options()
    share = "" if isinstance(source, str) else f"{100 * choice.level:g} %"
    with top:
        _answer_first(found, source, law, share, asked.hardware, choice)
        if found.to_add:
            stored = partial(sweep_words, Path(choice.results))
            added = of_sweep(found.to_add, choice.words(), stored)
            ui.runs_to_add(added, choice.level)
        _show(found, asked, source, (key, law, asked))
    if found.best is not None:
        st.download_button(
            "Save the winner as a sweep file",
            api_decide.as_sweep(found.best, " ".join(words), unit=found.unit),
            "winner.toml",
            "application/toml",
            on_click="ignore",
        )
    ui.command(words)


@st.cache_resource(max_entries=64, show_spinner=False)
def _answer(key: FitKey | None, law: str, asked: Asked, _source: FitReport | str) -> Decision:
    """Return the decision, computed once for the same inputs and fit."""
    return asked.decide(_source)


def _usual(choice: Choice, law: str) -> str:
    """Return the compute limit that is used if no limit is given."""
    found = queries.observed(choice.key) if law == OWN and choice.key is not None else None
    return (
        CHINCHILLA_FLOPS
        if found is None or isinstance(found, Failure)
        else ui.next_compute(found[0])
    )


def _show(
    answer: Decision, asked: Asked, source: FitReport | str, question: tuple[object, ...]
) -> None:
    """Draw the answer: a figure, the limits that are reached, and the candidates."""
    of = f"law {source}" if isinstance(source, str) else question[0]
    left, right = st.columns([3, 2], gap="medium")
    with left:
        axis = st.selectbox("Loss against", [AT_COMPUTE, *COSTS], key="axis", bind="query-params")
        loss = f"{answer.metric.label} ({answer.unit})"
        points = [
            {
                **each.costs,
                "n_params": each.n_params,
                "flops": each.flops,
                "label": each.label,
                "loss_nats": each.loss_nats,
                "low": each.pred_low,
                "high": each.pred_high,
                "is_feasible": each.is_feasible,
                "is_in_valley": each.is_in_valley,
                "is_front": i in answer.front,
                "is_best": each is answer.best,
            }
            for i, each in enumerate(answer.candidates)
        ]
        if axis == AT_COMPUTE:
            curve = None if answer.best is None else partial(_losses, source)
            ui.plot(
                "at_compute",
                question,
                lambda look: figures_decide.at_compute(points, curve, loss, look),
                of=of,
            )
            st.caption(
                "Line: predicted loss of every size at the compute of the best model. Points: "
                "candidates of that compute in the valley, with their prediction intervals."
            )
        else:
            column, unit = COSTS[axis]
            ui.plot(
                "pareto",
                question,
                lambda look: figures_decide.pareto(points, column, unit, loss, look),
                axis,
                of=of,
            )
    with right:
        st.subheader("Active limits")
        if answer.best is not None:
            _binding(answer)
        st.caption(
            ui.as_text(
                "Hours and days: training only. Money, energy and CO2 include serving. Board "
                f"power: {HARDWARE[asked.gpu].watts:g} W. Price: "
                f"{format_money(asked.usd_per_hour)} per GPU-hour "
                f"({'given' if asked.price else HARDWARE[asked.gpu].price_source}). Grid: "
                f"{asked.grams_per_kwh:g} g CO2-equivalent per kWh "
                f"({'given' if asked.grid else GRID_SOURCE})."
            )
        )
    candidates.show(answer, asked.hardware)


def _losses(
    source: FitReport | str, n_params: FloatArray, n_tokens: FloatArray
) -> FloatArray | None:
    """Return the predicted losses of these sizes and tokens, or None without an answer."""
    if isinstance(source, str):
        law = PUBLISHED_LAWS[source].law
        return law.loss({"n_params": n_params, "n_tokens": n_tokens})
    return surface(source, n_params, n_tokens)


def _answer_first(
    answer: Decision,
    source: FitReport | str,
    law: str,
    share: str,
    hardware: str,
    choice: Choice,
) -> None:
    """Show the best model in one sentence, the verdict, and its numbers."""
    best = answer.best
    if best is None:
        st.warning("No candidate is within the limits. Raise a limit, or enter smaller candidates.")
        return
    if isinstance(source, str):
        rows, basis, laws = None, f"By the published law {law}, which has no intervals.", ""
    else:
        rows = source.observations
        basis = basis_words(f"by the {source.forecaster.label}", source.level, answer.optimum)
        laws = laws_sentence(source.averaged)
    verdict = answer.verdict
    ui.answer(
        decision_sentence(best, rows, answer.metric.label, answer.unit, answer.optimum),
        basis,
        None if verdict is None else verdict.label,
        () if verdict is None else verdict.warnings,
        laws,
    )
    if verdict is not None and rows is not None:
        point.offer(choice, verdict.warnings, len(rows))
    _headline(best, share, answer, hardware)


def _headline(best: Candidate, share: str, answer: Decision, hardware: str) -> None:
    count, optimum = len(answer.candidates), answer.optimum
    n, d = (None, None) if optimum is None else (optimum.n_params, optimum.n_tokens)
    columns = st.columns(4)
    with columns[0]:
        ui.number(
            "parameters N",
            format_quantity(best.n_params),
            f"{_range(n, share)}best of {plural(count, 'candidate')}",
        )
    with columns[1]:
        epochs = best.costs["epochs"]
        passes = "" if epochs is None else f", {epochs:.2f} epochs"
        ui.number(
            "training tokens D",
            format_quantity(best.n_tokens),
            f"{_range(d, share)}{best.n_tokens / best.n_params:.1f} tokens per parameter{passes}",
        )
    with columns[2]:
        interval = (
            "no interval for a published law"
            if not share or best.pred_low is None
            else f"{best.pred_low:.4f} to {best.pred_high:.4f} ({share} prediction interval)"
        )
        ui.number(
            f"predicted {answer.metric.label}, {answer.unit}", f"{best.loss_nats:.4f}", interval
        )
    with columns[3]:
        ui.number(
            "cost",
            format_money(best.costs["usd"] or 0.0),
            f"{candidates.training_time(best)} on {hardware}, "
            f"{format_quantity(best.costs['gpu_hours'] or 0.0)} GPU-hours, "
            f"{format_flops(best.flops)} FLOP",
        )


def _range(size: Interval | None, share: str) -> str:
    """Return the confidence interval of the compute-optimal N or D, before other words."""
    if not limits_words(size) or size is None:
        return ""
    return f"{format_quantity(size.low)} to {format_quantity(size.high)} ({share}), "


def _binding(answer: Decision) -> None:
    if not answer.binding:
        st.markdown("None: no limit is reached.")
        return
    labels = {name: label for name, label, *_ in LIMITS}
    for name in answer.binding:
        gain = answer.relaxed.get(name)
        more = ""
        if gain is not None:
            saved = "less than 0.0001" if gain < 1e-4 else f"{gain:.4f}"
            more = f" 10 % more would lower the loss by {saved} {answer.unit}."
        st.markdown(f"**{labels[name]}** is reached.{more}")

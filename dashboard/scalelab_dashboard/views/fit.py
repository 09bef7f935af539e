"""Fit: exponents by method, other forms, bootstrap, residuals, leave-one-budget-out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from scalelab.fit.apart import CODE, apart_words
from scalelab.report import figures_fit
from scalelab.report.html import exponents
from scalelab.theory.accounting import PARAM_WORDS
from scalelab.units import plural
from scalelab_dashboard import glossary, point, ui, waiting

if TYPE_CHECKING:
    from scalelab.forecast.fit_report import FitReport
    from scalelab_dashboard.choice import Choice

MEANING = (
    "E: irreducible loss, in the unit of the metric. A and alpha, B and beta: scale and exponent "
    "of the terms in N and in D. a, b: exponents of N_opt and D_opt in C. G: N_opt = G (C/6)^a."
)
VIEWS = ("Methods", "Other forms", "Bootstrap", "Residuals", "Leave one budget out")


def show(choice: Choice) -> None:
    """Draw the page."""
    if waiting.rows(choice) is None:
        return
    report = waiting.report(choice)
    if report is None:
        return
    if report.fit.status == "not_identified":
        waiting.not_identified(report)
    view = st.segmented_control(
        "View", VIEWS, default=VIEWS[0], key="view", bind="query-params", required=True
    )
    if view == "Methods":
        _methods(report, choice)
    elif view == "Other forms":
        _forms(choice)
        return
    elif view == "Bootstrap":
        ui.plot("pairs", choice.key, lambda look: figures_fit.pairs(report, look))
        spread = report.fit.bootstrap
        st.caption(
            f"{spread.k:,} {spread.method} replicates, {spread.failed:,} failed. "
            "Orange: fitted value."
        )
    elif view == "Residuals":
        ui.plot("residuals", choice.key, lambda look: figures_fit.residuals(report, look))
        st.caption(
            "Predicted over observed. Band: the middle 90 %. A trend against N, D or C means that "
            "the form does not fit there."
        )
    else:
        table = waiting.budgets_left_out(choice)
        if table is not None:
            ui.plot("left_out", choice.key, lambda look: figures_fit.left_out(table, look))
            st.caption("If omitting a budget changes the exponent a lot, the fit depends on it.")
    ui.command(choice.words())


def _forms(choice: Choice) -> None:
    """Show how well each form and objective predicts the next budget."""
    found = waiting.comparison(choice)
    if found is not None:
        st.markdown(ui.as_text(found.verdict))
        ui.plot("forms", choice.key, lambda look: figures_fit.forms(found, look))
        st.caption(
            "Each form is fitted to the smaller budgets and predicts the next one: "
            f"{plural(found.n_predicted, 'run')} predicted. Points: mean error. Bars: 90 % "
            "interval of the difference from the best form, from paired resamples of the "
            "predicted runs. If a bar reaches the dotted line, the error of the best form, the "
            "difference is not significant."
        )
        st.dataframe(
            pd.DataFrame(
                {
                    "form and objective": [each.label for each in found.candidates],
                    "mean error, %": [100 * each.mean_relative_error for each in found.candidates],
                    "largest error, %": [
                        100 * each.max_relative_error for each in found.candidates
                    ],
                    f"inside its {100 * found.level:g} % interval, %": [
                        100 * each.covered for each in found.candidates
                    ],
                    "AICc": [each.aicc for each in found.candidates],
                }
            ),
            hide_index=True,
            alt="Forms and objectives with their errors on the next budget",
            column_config={
                name: st.column_config.NumberColumn(format="%.3f")
                for name in ("mean error, %", "largest error, %")
            }
            | {
                f"inside its {100 * found.level:g} % interval, %": st.column_config.NumberColumn(
                    format="%.0f"
                ),
                "AICc": st.column_config.NumberColumn(format="%.1f"),
            },
        )
    ui.command(choice.words("--compare"))


def _count_words(report: FitReport) -> str:
    """Return how N is counted, in words that are not the name of a law."""
    name = report.observations.param_convention
    return PARAM_WORDS.get(name, name)


def _methods(report: FitReport, choice: Choice) -> None:
    rows = exponents(report)
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.subheader(
            "Exponent a by method", help=glossary.about("Exponents a and b", "Approach 1, 2, 3")
        )
        ui.plot("forest", choice.key, lambda look: figures_fit.forest(rows, look))
        if report.disagreement is not None:
            ratio = report.disagreement.ratio
            st.markdown(
                ui.as_text(
                    f"D_opt of approach 2 / D_opt of approach 3: {ratio.value:.3f}, "
                    f"{ui.limits(ratio, choice.level, '{:.3f}')}."
                )
            )
        for words in apart_words(report.warnings):
            st.caption(ui.as_text(words))
        for number, reason in (("1", report.envelope.reason), ("2", report.isoflop.reason)):
            if reason is not None:
                st.caption(ui.as_text(f"Approach {number} has no result: {reason}."))
        others = [each for each in report.warnings if each.code != CODE]
        if report.fit.status != "not_identified" and others:
            st.subheader("Warnings")
            ui.warnings(others)
            point.offer(choice, others, len(report.observations))
    with right:
        st.subheader(
            "Parameters",
            help=glossary.about(
                "E, A, B, alpha, beta",
                "Exponents a and b",
                "G",
                "Huber loss",
                "Objective",
                glossary.LOSSES,
            ),
        )
        both = {**report.params, **report.derived}
        st.dataframe(
            pd.DataFrame(
                {
                    "parameter": list(both),
                    "value": [ui.digits(i.value) for i in both.values()],
                    f"low, {100 * choice.level:g} %": [ui.digits(i.low) for i in both.values()],
                    "high": [ui.digits(i.high) for i in both.values()],
                }
            ),
            hide_index=True,
            alt="Fitted parameters and exponents with their intervals",
        )
        objective = report.fit.objective
        st.caption(
            ui.as_text(
                f"{report.fit.form} form, {objective.loss} of the {objective.residual} residual, "
                f"objective {report.fit.value:.8g}, status "
                f"{report.fit.status.replace('_', ' ')}, N counted "
                f"{_count_words(report)}, C counted "
                f"{report.observations.flop_convention}."
            )
        )
        st.caption(ui.as_text(MEANING))
        with st.container(horizontal=True):
            st.download_button(
                "Save as CSV", report.to_csv(), "fit.csv", "text/csv", on_click="ignore"
            )
            st.download_button(
                "Save as LaTeX", report.to_tex(), "fit.tex", "text/plain", on_click="ignore"
            )

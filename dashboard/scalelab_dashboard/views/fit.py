"""Fit: the methods side by side, how sure they are, and what speaks against them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from scalelab.report import figures_fit
from scalelab.report.html import exponents
from scalelab_dashboard import queries, ui, waiting

if TYPE_CHECKING:
    from scalelab.forecast.fit_report import FitReport
    from scalelab_dashboard.state import Choice

MEANING = (
    "E: irreducible loss, nats per token. A and alpha, B and beta: scale and exponent of the terms "
    "in N and in D. a, b: exponents of N_opt and D_opt in C. G: N_opt = G (C/6)^a."
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
    look = ui.look()
    if view == "Methods":
        _methods(report, choice)
    elif view == "Other forms":
        _forms(choice)
        return
    elif view == "Bootstrap":
        ui.draw(
            queries.figure(
                "pairs", choice.key, look.name, None, lambda: figures_fit.pairs(report, look)
            ),
            "pairs",
        )
        spread = report.fit.bootstrap
        st.caption(
            f"{spread.k:,} {spread.method} replicates, {spread.failed:,} failed. "
            "Orange: the fitted value."
        )
    elif view == "Residuals":
        ui.draw(
            queries.figure(
                "residuals",
                choice.key,
                look.name,
                None,
                lambda: figures_fit.residuals(report, look),
            ),
            "residuals",
        )
        st.caption(
            "Predicted over observed; band: the middle 90 %. A trend against N, D or C says "
            "that the form is wrong there."
        )
    else:
        table = waiting.budgets_left_out(choice)
        if table is not None:
            ui.draw(figures_fit.left_out(table, look), "left_out")
            st.caption("A budget without which the exponent moves a lot decides the answer alone.")
    ui.command(choice.words())


def _forms(choice: Choice) -> None:
    """Show how forms and objectives compare at predicting the next budget."""
    found = waiting.comparison(choice)
    if found is not None:
        st.markdown(ui.as_text(found.verdict))
        ui.draw(figures_fit.forms(found, ui.look()), "forms")
        st.caption(
            f"Each form is fitted on the lower budgets and predicts the next one, "
            f"{found.n_predicted:,} runs in all. Bars: how far a form's error lies above the best "
            "one's (90 % of paired resamples of the predicted runs); where they reach the dotted "
            "line, the data cannot tell the two apart."
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


def _methods(report: FitReport, choice: Choice) -> None:
    rows = exponents(report)
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.subheader("Exponent a by method")
        look = ui.look()
        ui.draw(
            queries.figure(
                "forest", choice.key, look.name, None, lambda: figures_fit.forest(rows, look)
            ),
            "forest",
        )
        if report.disagreement is not None:
            ratio = report.disagreement.ratio
            st.markdown(
                ui.as_text(
                    f"D_opt of approach 2 over that of approach 3: {ratio.value:.3f}, "
                    f"{ui.limits(ratio, choice.level, '{:.3f}')}."
                )
            )
        for number, reason in (("1", report.envelope.reason), ("2", report.isoflop.reason)):
            if reason is not None:
                st.caption(ui.as_text(f"Approach {number} has no answer: {reason}."))
        if report.fit.status != "not_identified" and report.warnings:
            st.subheader("What to know")
            ui.warnings(report.warnings)
    with right:
        st.subheader("Parameters")
        both = {**report.params, **report.derived}
        st.dataframe(
            pd.DataFrame(
                {
                    "parameter": list(both),
                    "value": [f"{i.value:.6g}" for i in both.values()],
                    f"low, {100 * choice.level:g} %": [f"{i.low:.6g}" for i in both.values()],
                    "high": [f"{i.high:.6g}" for i in both.values()],
                }
            ),
            hide_index=True,
            alt="Fitted parameters and exponents with their intervals",
        )
        objective = report.fit.objective
        st.caption(
            ui.as_text(
                f"{report.fit.form} form, {objective.loss} of the {objective.residual} residual, "
                f"objective {report.fit.value:.8g}, status {report.fit.status}, N counted "
                f"{report.observations.param_convention}, C counted "
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

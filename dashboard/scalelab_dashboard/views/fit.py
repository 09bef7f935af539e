"""Fit: the methods side by side, how sure they are, and what speaks against them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from scalelab.report import figures_fit
from scalelab.report.html import exponents
from scalelab_dashboard import ui, waiting

if TYPE_CHECKING:
    from scalelab.fit.result import FitReport
    from scalelab_dashboard.state import Choice

VIEWS = ("Methods", "Bootstrap", "Residuals", "Leave one budget out")


def show(choice: Choice) -> None:
    """Draw the page."""
    if waiting.rows(choice) is None:
        return
    report = waiting.report(choice)
    if report is None:
        return
    if report.fit.status == "not_identified":
        waiting.not_identified(report)
    else:
        ui.warnings(report.warnings)
    view = st.segmented_control(
        "View", VIEWS, default=VIEWS[0], key="view", bind="query-params", required=True
    )
    look = ui.look()
    if view == "Methods":
        _methods(report, choice)
    elif view == "Bootstrap":
        ui.draw(figures_fit.pairs(report, look), "pairs")
        spread = report.fit.bootstrap
        st.caption(
            f"{spread.k:,} {spread.method} replicates, {spread.failed:,} failed. "
            "Orange: the fitted value."
        )
    elif view == "Residuals":
        ui.draw(figures_fit.residuals(report, look), "residuals")
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


def _methods(report: FitReport, choice: Choice) -> None:
    rows = exponents(report)
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.subheader("Exponent a by method")
        ui.draw(figures_fit.forest(rows, ui.look()), "forest")
        if report.disagreement is not None:
            ratio = report.disagreement.ratio
            st.markdown(
                f"Approach 2 puts D_opt at {100 * ratio.value:.1f} % of approach 3 "
                f"({ui.as_text(ui.limits(ratio, choice.level, '{:.3f}'))} as a ratio)."
            )
        for number, reason in (("1", report.envelope.reason), ("2", report.isoflop.reason)):
            if reason is not None:
                st.caption(ui.as_text(f"Approach {number} has no answer: {reason}."))
    with right:
        st.subheader("Parameters")
        both = {**report.params, **report.derived}
        st.dataframe(
            pd.DataFrame(
                {
                    "parameter": list(both),
                    "value": [f"{i.value:.6g}" for i in both.values()],
                    "low": [f"{i.low:.6g}" for i in both.values()],
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
        st.download_button("Save as CSV", report.to_csv(), "fit.csv", "text/csv", on_click="ignore")
        st.download_button(
            "Save as LaTeX", report.to_tex(), "fit.tex", "text/plain", on_click="ignore"
        )

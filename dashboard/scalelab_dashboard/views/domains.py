"""Domains: one valley per evaluation set, a table of exponents, and where D/N disagrees."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from scalelab.forecast.metric_comparison import RATIO
from scalelab.report import figures_metrics
from scalelab.units import format_flops
from scalelab_dashboard import ui, waiting

if TYPE_CHECKING:
    from scalelab.forecast.metric_comparison import MetricComparison
    from scalelab_dashboard.choice import Choice

NAMES = {"a": "a of N_opt", RATIO: "D/N"}
ONE_SET = (
    "These runs have one evaluation set. A sweep with more: `[data.eval]` in a sweep file, or "
    "`--eval-set NAME=PATH`. A table: columns such as `loss_code` or `bpb_code`."
)


def show(choice: Choice) -> None:
    """Draw the page."""
    if waiting.rows(choice) is None:
        return
    if len(choice.metrics) < 2:
        st.info("There is one loss, so no domains to compare.")
        st.markdown(ONE_SET)
        return
    found = waiting.metrics(choice)
    if found is None:
        return
    key = choice.key
    st.markdown(f"#### {ui.as_text(found.sentence)}")
    if found.disagreements:
        with st.expander(found.agreement):
            for pair in found.disagreements:
                st.markdown(f"- {ui.as_text(pair.sentence)}")
    st.subheader("Loss by evaluation set")
    ui.plot("valleys", key, lambda look: figures_metrics.valleys(found, look), "all")
    st.caption(
        "Runs and parabolas by budget; diamonds: minima. Without isoFLOP budgets: loss against "
        "compute. The line is the compute-optimal frontier of the forecaster."
    )
    st.subheader("Constants and exponents")
    st.dataframe(
        _table(found),
        hide_index=True,
        alt="Constants, exponents and D/N of each evaluation set with their intervals",
    )
    st.caption(
        ui.as_text(
            f"E, alpha, beta, a: {found.form} law of each set, E in its unit. D/N: by its "
            f"forecaster at C = 6 N D = {format_flops(found.flops)}. In brackets: "
            f"{100 * found.level:g} % confidence intervals."
        )
    )
    st.download_button("Save as CSV", found.to_csv(), "domains.csv", "text/csv", on_click="ignore")
    st.subheader("Compute-optimal D/N")
    ui.plot("ratios", key, lambda look: figures_metrics.ratios(found, look), "all")
    for row in found.rows:
        if row.reason:
            st.caption(ui.as_text(f"{row.metric.text}: {row.reason}."))
    words = choice.words()
    if "--metric" in words:
        at = words.index("--metric")
        words = words[:at] + words[at + 2 :]
    ui.command([*words, "--metric", "all"])


def _table(found: MetricComparison) -> pd.DataFrame:
    rows = []
    for row in found.rows:
        cells = {
            "metric": row.metric.text,
            "unit": row.metric.unit,
            "runs": "–" if row.report is None else str(row.report.fit.n_rows),
        }
        for name in found.columns:
            interval = row.interval(name)
            text = "–"
            if interval is not None:
                text = f"{interval.value:.3g}"
                if math.isfinite(interval.low + interval.high):
                    text += f" [{interval.low:.3g}, {interval.high:.3g}]"
            cells[NAMES.get(name, name)] = text
        rows.append(cells)
    return pd.DataFrame(rows)

"""Scores of the registered forecasts of the results folder, as a section of a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from scalelab.units import plural
from scalelab_dashboard import queries, ui
from scalelab_dashboard.fits import Failure

if TYPE_CHECKING:
    from scalelab.api.predictions import ScoresReport
    from scalelab_dashboard.choice import Choice

SHOWN = 200
SHARES = ("mean error, %", "CRPS, %")


def show(choice: Choice) -> None:
    """Draw the section: means by time of registration, each score, and the open forecasts."""
    st.subheader("Registered forecasts")
    report = queries.scores(choice.results, queries.stamp_of(choice.results, None))
    if isinstance(report, Failure):
        ui.failure(report)
        return
    for problem in report.problems:
        st.warning(ui.as_text(problem))
    if not report.n_forecasts:
        st.caption(
            "None yet. `scalelab predict C=1e24 --register NAME` freezes a forecast, and "
            "`scalelab sweep isoflop --largest-last` that of the largest budget. Runs that finish "
            "later score it."
        )
        return
    if report.scores:
        _means(report)
        _scores(report)
    waiting = report.waiting
    if waiting:
        names = ", ".join(f"{name} ({asked})" for name, asked in waiting[:3])
        more = ", .." if len(waiting) > 3 else ""
        st.caption(
            ui.as_text(f"{plural(len(waiting), 'forecast')} without a run yet: {names}{more}.")
        )


def _means(report: ScoresReport) -> None:
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "registered": timing,
                    "forecasts": each.n_forecasts,
                    "runs": each.n_runs,
                    "mean error, %": 100 * each.mean_relative_error,
                    "coverage": each.coverage,
                    "CRPS, %": 100 * each.crps,
                }
                for timing, each in report.overall().items()
            ]
        ),
        hide_index=True,
        alt="Mean error, coverage and CRPS of registered forecasts",
        column_config={
            **{name: st.column_config.NumberColumn(format="%.2f") for name in SHARES},
            "coverage": st.column_config.NumberColumn(format="%.2f"),
        },
    )
    st.caption(
        "Coverage: share of the runs inside their prediction interval; each forecast counts once. "
        "CRPS: score of the whole distribution, 0 is best. `after the fact`: the run had begun "
        "before the forecast was registered."
    )


def _scores(report: ScoresReport) -> None:
    frame = report.to_frame().head(SHOWN)
    level = 100 * report.scores[0].level
    st.dataframe(
        pd.DataFrame(
            {
                "forecast": frame["name"],
                "question": frame["asked"],
                "run": frame["run"],
                "source": frame["source"],
                "registered": frame["timing"],
                "metric": frame["metric"] + ", " + frame["unit"],
                "predicted": frame["predicted"],
                "observed": frame["observed"],
                "error, %": 100 * frame["relative_error"],
                f"inside its {level:g} % interval": frame["is_covered"],
                "CRPS, %": 100 * frame["crps"],
            }
        ),
        hide_index=True,
        alt="Registered forecasts and the runs at their points",
        column_config={
            **{
                name: st.column_config.NumberColumn(format="%.4f")
                for name in ("predicted", "observed")
            },
            **{
                name: st.column_config.NumberColumn(format="%.2f")
                for name in ("error, %", "CRPS, %")
            },
        },
    )
    if len(report.scores) > SHOWN:
        st.caption(f"The first {SHOWN} of {len(report.scores):,} scores.")

"""States between a question and its answer: nothing there, still running, failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import streamlit as st

from scalelab_dashboard import queries, ui
from scalelab_dashboard.fits import Failure, Job, answer

if TYPE_CHECKING:
    from scalelab.fit.isoflop import IsoflopFit
    from scalelab.fit.select import Comparison
    from scalelab.forecast.fit_report import FitReport
    from scalelab.records.types import Observations
    from scalelab_dashboard.state import Choice

FIRST_WAIT_S = 0.4
"""How long a page waits for a fit before it shows what needs none."""
SHORT_WAIT_S = 0.05
POLL_S = 0.7


def rows(choice: Choice) -> tuple[Observations, IsoflopFit] | None:
    """Return the finished runs and their valleys, or say what is missing and what to do."""
    if choice.key is None:
        nothing(choice)
        return None
    if choice.source is not None and not choice.source.counts.get("done"):
        unfinished(choice)
        return None
    found = queries.observed(choice.key)
    if isinstance(found, Failure):
        ui.failure(found)
        return None
    return found


def report(choice: Choice) -> FitReport | None:
    """Return the fit; while it runs, say so and come back by itself when it is there."""
    if choice.key is None:
        return None
    job = queries.fits().fit(choice.key)
    found = answer(job, FIRST_WAIT_S)
    if found is None:
        _poll(job, "Fitting with 1000 bootstrap replicates")
        return None
    if isinstance(found, Failure):
        ui.failure(found)
        return None
    return cast("FitReport", found)


def budgets_left_out(choice: Choice) -> list[dict[str, float]] | None:
    """Return the table of budgets left out, or None while it is made."""
    if choice.key is None:
        return None
    found = _told(
        queries.fits().budgets_left_out(choice.key), "Leaving out one budget after another"
    )
    return cast("list[dict[str, float]] | None", found)


def comparison(choice: Choice) -> Comparison | None:
    """Return other forms ranked beside the fitted one, or None while they are fitted."""
    if choice.key is None:
        return None
    found = _told(queries.fits().comparison(choice.key), "Fitting every form to every fold")
    return cast("Comparison | None", found)


def _told(job: Job, doing: str) -> object | None:
    """Return a job's answer; while it runs or where it failed, say so and return None."""
    found = answer(job, SHORT_WAIT_S)
    if found is None:
        _poll(job, doing)
    elif isinstance(found, Failure):
        ui.failure(found)
        return None
    return cast("object | None", found)


def nothing(choice: Choice) -> None:
    """Say that there is nothing to look at, and how to get something."""
    st.info("There are no results yet.")
    st.markdown(
        "Start a small sweep (a minute on this machine), bring in runs made elsewhere, or look at "
        "a table on the **Data** page:"
    )
    ui.terminal(
        ["scalelab", "sweep", "run", "sweeps/smoke.toml", "--results", choice.results],
        ["scalelab", "import", "RUNS.csv", "--results", choice.results],
        ["scalelab", "dashboard", "--from", "RUNS.csv"],
    )
    if choice.stamp == "":
        st.caption("The results folder has no snapshot; this page fills as soon as it has one.")


def unfinished(choice: Choice) -> None:
    """Say that no run is done yet, and what to do."""
    assert choice.source is not None
    counts = ", ".join(f"{count} {status}" for status, count in choice.source.counts.items())
    st.info(f"No run of this sweep is done yet: {counts}.")
    st.markdown("The page follows by itself. To go on with what was interrupted or failed:")
    ui.terminal(
        ["scalelab", "resume", choice.source.name, "--results", choice.results],
        ["scalelab", "collect", "--results", choice.results],
    )


def not_identified(found: FitReport) -> None:
    """Say that the rows do not determine the law, why, and what would."""
    st.warning("**Not identified**: these runs do not determine the law. No number is a forecast.")
    ui.warnings(found.warnings)
    st.markdown(
        "What helps: budgets at least a factor of 10 apart, five sizes or more at each, and the "
        "minimum inside the grid. `scalelab sweep isoflop --budgets LOW..HIGH` plans that."
    )


@st.fragment(run_every=POLL_S)
def _poll(job: Job, doing: str) -> None:
    if job.future.done():
        st.rerun()
    st.caption(f"{doing}: {job.elapsed_s:.0f} s so far. The page fills in by itself.")

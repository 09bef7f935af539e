"""What a view shows without an answer: no results, fit running, fit failed, not identified."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import streamlit as st

from scalelab.forecast import leave_out
from scalelab.store.public_tables import PREFIX
from scalelab_dashboard import held, queries, tables_of, ui
from scalelab_dashboard.fits import Failure, Job, answer

if TYPE_CHECKING:
    from scalelab.fit.isoflop import IsoflopFit
    from scalelab.fit.select import Comparison
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.bands import Bands
    from scalelab.forecast.fit_report import FitReport
    from scalelab.forecast.metric_comparison import MetricComparison
    from scalelab.records.types import Observations
    from scalelab.report.explorer import Explorer
    from scalelab.report.mixture_answer import MixtureAnswer
    from scalelab_dashboard.choice import Choice
    from scalelab_dashboard.fits import FitKey

FIRST_WAIT_S = 0.4
"""Wait for a fit from its start on before showing the parts that do not need it."""
SHORT_WAIT_S = 0.05
POLL_S = 0.4
SHOWN_EXAMPLES = 6


def rows(choice: Choice) -> tuple[Observations, IsoflopFit] | None:
    """Return the finished runs and their isoFLOP curves, or show what is missing and what to do."""
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


def report(choice: Choice, key: FitKey | None = None) -> FitReport | None:
    """Return the fit of the choice or of another key, or show that it runs and rerun the page."""
    key = key or choice.key
    if key is None:
        return None
    job = queries.fits().fit(key)
    found = _soon(job, FIRST_WAIT_S)
    if found is None:
        _poll(job, "Fitting with 1000 bootstrap replicates")
        return None
    if isinstance(found, Failure):
        ui.failure(found)
        return None
    return cast("FitReport", found)


def outliers(choice: Choice) -> tuple[str, ...] | None:
    """Return the runs that the fit names as outliers, or show in one line why none is known."""
    if choice.key is None or not (choice.source is None or choice.source.counts.get("done")):
        st.caption("No run is done, so no fit names outliers.")
        return None
    job = queries.fits().fit(choice.key)
    found = answer(job, max(0.0, FIRST_WAIT_S - job.elapsed_s))
    if found is None:
        _poll(job, "Looking for outliers")
        return None
    if isinstance(found, Failure):
        st.caption("These runs have no fit that could name outliers: see the **Fit** view.")
        return None
    report = cast("FitReport", found)
    return next((each.runs for each in report.warnings if each.code == leave_out.CODE), ())


def whole_report(choice: Choice) -> FitReport | None:
    """Return the fit with the excluded runs; None without any, or while it is fitted."""
    if choice.whole is None or not choice.excluded:
        return None
    found = _told(queries.fits().fit(choice.whole), "Fitting all runs, to compare")
    return cast("FitReport | None", found)


def frontier(key: FitKey) -> tuple[bool, Bands | None]:
    """Return whether the frontier of a fit is computed, and then the frontier, if it has one.

    The fit is done. The frontier is over `scalelab_dashboard.assess.span` of its runs.
    """
    job = queries.fits().frontier(key)
    found = _told(job, "Computing the frontier")
    return job.future.done(), cast("Bands | None", found)


def budgets_left_out(choice: Choice) -> list[dict[str, float]] | None:
    """Return the leave-one-budget-out table, or None while it is computed."""
    if choice.key is None:
        return None
    found = _told(queries.fits().budgets_left_out(choice.key), "Refitting without each budget")
    return cast("list[dict[str, float]] | None", found)


def comparison(choice: Choice) -> Comparison | None:
    """Return the ranking of forms, or None while it is computed."""
    if choice.key is None:
        return None
    found = _told(queries.fits().comparison(choice.key), "Fitting every form to every fold")
    return cast("Comparison | None", found)


def metrics(choice: Choice) -> MetricComparison | None:
    """Return the comparison of all metrics, or None while it is computed."""
    if choice.key is None:
        return None
    found = _told(queries.fits().metrics(choice.key), "Fitting every metric")
    return cast("MetricComparison | None", found)


def explorer(choice: Choice, forecast: Forecast | None) -> Explorer | None:
    """Return the compute slider; None while it is computed, or if there is no answer to move."""
    if choice.key is None:
        return None
    asked = None if forecast is None or forecast.flops is None else forecast.asked
    found = _told(queries.fits().explorer(choice.key, asked), "Computing the slider")
    return cast("Explorer | None", found)


def mixture(choice: Choice, target: str, n_tokens: str) -> MixtureAnswer | None:
    """Return the best weights of the sources, or None while they are computed."""
    if choice.key is None:
        return None
    job = queries.fits().mixture(choice.key, target, n_tokens)
    found = _told(job, "Fitting mixture laws with 200 bootstrap replicates")
    return cast("MixtureAnswer | None", found)


def _soon(job: Job, wait_s: float) -> object | None:
    """Return the answer of a job that ends within a time from its start; None while it runs.

    A view that opens while an earlier one has waited for the same fit does not wait again.
    """
    held.note(job)
    return cast("object | None", answer(job, max(0.0, wait_s - job.elapsed_s)))


def _told(job: Job, doing: str) -> object | None:
    """Return the answer of a job, or show that it runs or failed and return None."""
    found = _soon(job, SHORT_WAIT_S)
    if found is None and not job.future.done():
        _poll(job, doing)
    elif isinstance(found, Failure):
        ui.failure(found)
        return None
    return found


def nothing(choice: Choice) -> None:
    """Show that there are no results, and how to get some."""
    st.info("There are no results yet.")
    st.markdown(
        "Run a small sweep (about a minute), import runs from another program, or open a table in "
        "the **Data** view:"
    )
    ui.terminal(
        ["scalelab", "sweep", "run", "sweeps/smoke.toml", "--results", choice.results],
        ["scalelab", "import", "RUNS.csv", "--results", choice.results],
        ["scalelab", "dashboard", "--from", "RUNS.csv"],
    )
    examples()
    if choice.stamp == "":
        st.caption("The results folder has no snapshot yet. This page updates when there is one.")


def examples() -> None:
    """Offer the public tables of the package by name."""
    st.markdown("Or read what exists: public runs that come with scalelab.")
    tables = queries.public_tables()
    with st.container(horizontal=True):
        for table in tables[:SHOWN_EXAMPLES]:
            name = f"{PREFIX}{table.name}"
            st.button(
                f"{table.name} ({table.rows:,} runs)",
                key=f"open_{table.name}",
                help=f"{table.title}. {table.cite}",
                on_click=tables_of.open_example,
                args=(name,),
            )
    st.caption(
        f"{len(tables)} tables are in the sidebar under **Sweep or table**; `scalelab tables` "
        "lists them with their sources."
    )


def unfinished(choice: Choice) -> None:
    """Show that no run is done yet, and what to do; the Overview shows the progress itself."""
    assert choice.source is not None
    if choice.source.counts.get("running"):
        st.info("No run of this sweep is done yet. This page updates by itself.")
        return
    counts = ", ".join(f"{count} {status}" for status, count in choice.source.counts.items())
    st.info(f"No run of this sweep is done yet: {counts}.")
    st.markdown("This page updates by itself. If no process launches this sweep, resume it:")
    ui.terminal(
        ["scalelab", "resume", choice.source.name, "--results", choice.results],
        ["scalelab", "collect", "--results", choice.results],
    )


def not_identified(found: FitReport) -> None:
    """Show that the runs do not determine the law, why, and what to add."""
    st.warning("**Not identified**: these runs do not determine the law. Do not use its numbers.")
    ui.warnings(found.warnings)
    st.markdown(
        "Add runs: budgets that span a factor of 10 or more, at least five sizes per budget, and "
        "the minimum inside the grid. `scalelab sweep isoflop --budgets LOW..HIGH` plans them."
    )


@st.fragment(run_every=POLL_S)
def _poll(job: Job, doing: str) -> None:
    if job.future.done():
        st.rerun()
    st.caption(f"{doing}: {job.elapsed_s:.0f} s so far. This view updates when it is done.")

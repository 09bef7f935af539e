"""Cached queries and calls of `scalelab.api`, shared by all sessions.

The cache key has the state of the file, so a new snapshot is read at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from scalelab.api import metrics as api_metrics
from scalelab.api import predictions as api_predictions
from scalelab.api.comparisons import source_of
from scalelab.api.forecasts import forecasts
from scalelab.api.laws import load_law
from scalelab.fit.isoflop import fit_isoflop
from scalelab.forecast.bands import bands_between
from scalelab.forecast.comparing import compare_sources
from scalelab.forecast.headline import NextCommand
from scalelab.forecast.headline import headline as make_headline
from scalelab.records.notes import Note, read_notes
from scalelab.records.sweep_words import sweep_words
from scalelab.report.stamp import line_of
from scalelab.store.public_tables import list_public_tables, table_path
from scalelab.store.status import read_status
from scalelab_dashboard import assess, data, drawn_once
from scalelab_dashboard.fits import Failure, FitKey, Fits, attempt

if TYPE_CHECKING:
    import pandas as pd

    from scalelab.api.predictions import ScoresReport
    from scalelab.fit.isoflop import IsoflopFit
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.bands import Bands
    from scalelab.forecast.comparing import Source as Compared
    from scalelab.forecast.comparing import SourceComparison
    from scalelab.forecast.fit_report import FitReport
    from scalelab.forecast.headline import Headline
    from scalelab.records.types import Observations
    from scalelab.store.public_tables import PublicTable
    from scalelab.store.reading import Reading
    from scalelab.store.status import SweepStatus
    from scalelab_dashboard.data import Rates, Source

FIRST = ("failed", "diverged", "pruned", "running", "queued", "preempted", "cancelled", "planned")


@st.cache_resource(show_spinner=False)
def fits() -> Fits:
    """Return the fit worker."""
    return Fits()


@st.cache_resource(show_spinner=False)
def public_tables() -> tuple[PublicTable, ...]:
    """Return the public tables of the package."""
    return list_public_tables()


@st.cache_resource(max_entries=8, show_spinner=False)
def sources(results: str, stamp: str) -> list[Source] | Failure:
    """Return the sweeps of a snapshot, or why it cannot be read."""
    return attempt(lambda: data.sources(results)) if stamp else []


def source_now(results: str, name: str | None) -> Source | None:
    """Return a sweep as the newest snapshot has it; None if it is not there."""
    found = sources(results, stamp_of(results, None))
    if isinstance(found, Failure):
        return None
    return next((source for source in found if source.name == name), None)


@st.cache_resource(max_entries=16, show_spinner=False)
def metrics(
    results: str,
    stamp: str,
    file: str | None,
    sweep: str | None,
    mapping: tuple[tuple[str, str], ...],
    reading: Reading,
) -> tuple[str, ...]:
    """Return every metric of a table or a sweep; none if it cannot be read."""
    if not stamp:
        return ()
    found = attempt(
        lambda: api_metrics.list_metrics(
            file, sweep=sweep, results=results, mapping=dict(mapping), reading=reading
        )
    )
    return () if isinstance(found, Failure) else tuple(each.text for each in found)


@st.cache_resource(max_entries=4, show_spinner=False)
def runs(results: str, sweep: str, stamp: str) -> pd.DataFrame:
    """Return all runs of a sweep, failed ones first. Do not change the frame: it is shared."""
    table = data.runs(results, sweep)
    order = table["status"].map({status: i for i, status in enumerate(FIRST)}).fillna(len(FIRST))
    return table.iloc[order.to_numpy().argsort(kind="stable")]


def notes(results: str, about: tuple[str, ...]) -> tuple[Note, ...]:
    """Return the notes about some runs and sweeps; they change without a new snapshot."""
    return read_notes(Path(results), about)


@st.cache_resource(max_entries=4, show_spinner=False)
def status(results: str, sweep: str, stamp: str, tick: int) -> SweepStatus | Failure:
    """Return the status of a sweep from its run folders, read again at each snapshot and tick."""
    return attempt(lambda: read_status(Path(results), sweep))


@st.cache_resource(max_entries=32, show_spinner=False)
def curves(results: str, run_ids: tuple[str, ...], stamp: str) -> pd.DataFrame:
    """Return training curves."""
    return data.curves(results, run_ids)


@st.cache_resource(max_entries=8, show_spinner=False)
def costs(results: str, sweep: str, stamp: str, rates: Rates) -> pd.DataFrame:
    """Return costs by budget."""
    return data.costs(runs(results, sweep, stamp), rates)


@st.cache_resource(max_entries=4, show_spinner=False)
def observed(key: FitKey) -> tuple[Observations, IsoflopFit] | Failure:
    """Return the rows and their isoFLOP curves, without a fit."""
    rows = _rows(replace(key, level=0.0, form=""))
    if isinstance(rows, Failure):
        return rows
    return attempt(lambda: (rows, fit_isoflop(rows, level=key.level)))


@st.cache_resource(max_entries=4, show_spinner=False)
def _rows(key: FitKey) -> Observations | Failure:
    """Return the rows of a fit, which are read once for all levels and laws."""
    asked = {name: value for name, value in key.arguments().items() if name != "level"}
    return attempt(lambda: assess.used_rows(**asked))


@st.cache_resource(max_entries=2, ttl=60, show_spinner=False)
def scores(results: str, stamp: str) -> ScoresReport | Failure:
    """Return the scores of registered forecasts; a new file is read within a minute."""
    return attempt(lambda: api_predictions.scores(results))


@st.cache_resource(max_entries=32, show_spinner=False)
def bands(key: FitKey, low: float, high: float, _report: FitReport) -> Bands | None:
    """Return the frontier between two compute budgets."""
    return bands_between(_report, low, high)


@st.cache_resource(max_entries=8, show_spinner=False)
def law_bands(key: FitKey, low: float, high: float, _report: FitReport) -> Bands | None:
    """Return the frontier of the fitted law, beside which published models are drawn."""
    return _report.law_forecaster.bands(np.geomspace(low, high, 60))


@st.cache_resource(max_entries=8, show_spinner=False)
def against_published(key: FitKey, _report: FitReport) -> pd.DataFrame:
    """Return published models compared with a fit."""
    return assess.against_published(_report)


@st.cache_resource(max_entries=64, show_spinner=False)
def forecast(key: FitKey, asked: str, _report: FitReport) -> Forecast | Failure:
    """Return one forecast: the answer that ``scalelab fit --predict`` prints."""
    return attempt(lambda: forecasts(_report, asked)[0])


@st.cache_resource(max_entries=64, show_spinner=False)
def headline(
    key: FitKey, runs: tuple[str, ...], asked: str, _report: FitReport, _forecast: Forecast | None
) -> Headline:
    """Return the headline of a fit, about a forecast if one was asked for."""
    command = NextCommand(runs=runs, stored=partial(sweep_words, Path(key.results)))
    return make_headline(_report, command, _forecast)


@st.cache_resource(max_entries=48, show_spinner=False)
def figure(
    name: str, key: object, look: str, more: object, is_clicked: bool, _draw: Callable[[], Any]
) -> Any:
    """Return a figure, drawn once per content and theme.

    Parameters
    ----------
    name : str
        Name of the figure.
    key : FitKey, or a tuple or dataclass of plain values
        What it shows.
    look : str
        Name of the `scalelab.report.look.Look`.
    more : hashable
        What else it depends on.
    is_clicked : bool
        Whether its points can be selected.
    """
    return drawn_once.prepare(_draw(), is_clicked=is_clicked)


@st.cache_resource(max_entries=8, show_spinner=False)
def comparison(
    names: tuple[str, ...],
    keys: tuple[FitKey, ...],
    flops: float | None,
    level: float,
    _reports: dict[str, FitReport],
) -> SourceComparison | Failure:
    """Return fits and published laws over one another; the first is the reference."""

    def source(name: str) -> Compared:
        if name in _reports:
            return source_of(name, _reports[name], level)
        law = name.removeprefix("law ")
        return source_of(law, load_law(law), level)

    return attempt(lambda: compare_sources([source(n) for n in names], flops=flops, level=level))


def source_line(key: object) -> str:
    """Return what a figure says about its source: runs, law, level and date, or text and date."""
    if isinstance(key, str):
        return f"{key}, {date.today().isoformat()}"
    found = observed(key) if isinstance(key, FitKey) else None
    if found is None or isinstance(found, Failure) or not isinstance(key, FitKey):
        return date.today().isoformat()
    return line_of(found[0], fits().done(key), key.level)


def held_out(key: FitKey, report: FitReport) -> Observations | None:
    """Return the held-out rows of a fit."""
    if key.holdout is None:
        return None
    every = observed(replace(key, holdout=None))
    return None if isinstance(every, Failure) else assess.held_out(report, every[0])


def stamp_of(results: str, file: str | None) -> str:
    """Return the state of the snapshot or file."""
    return data.file_stamp(table_path(Path(file))) if file else data.stamp(results)


@st.cache_resource(max_entries=8, show_spinner=False)
def has_weights(path: str, stamp: str, reading: Reading) -> bool:
    """Return whether a table has the weights of several sources."""
    return attempt(lambda: data.has_weights(path, reading)) is True


def read_file(path: str, stamp: str, mapping: dict[str, str], reading: Reading) -> Any:
    """Return the content of a table under a mapping, or why it cannot be read."""
    return attempt(lambda: data.read(path, mapping, reading))


@st.cache_resource(max_entries=8, show_spinner=False)
def head(path: str, stamp: str, reading: Reading) -> Any:
    """Return the first rows of a table, or why it cannot be read."""
    return attempt(lambda: data.head(path, reading))

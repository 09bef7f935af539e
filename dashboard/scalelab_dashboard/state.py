"""The sidebar: which runs, counting conventions, law and level. Its state is in the URL.

Widgets are bound to query parameters under short keys. Tables opened by hand exist only in the
session.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import streamlit as st

from scalelab.errors import UsageError
from scalelab.records.metric import HELDOUT, parse_metric
from scalelab.store.reading import Reading
from scalelab_dashboard import glossary, point, queries, tables_of, ui
from scalelab_dashboard.choice import EXPERT_FORMS, FORMS, LEVELS, Choice
from scalelab_dashboard.fits import Failure, FitKey, attempt
from scalelab_dashboard.tables_of import Table

if TYPE_CHECKING:
    from scalelab_dashboard.data import Source

RESULTS_VARIABLE = "SCALELAB_RESULTS"
METRIC_VARIABLE = "SCALELAB_DASHBOARD_METRIC"
EXCLUDE_VARIABLE = "SCALELAB_DASHBOARD_EXCLUDE"
VALID_HOLDOUT = "last_valid_holdout"
GONE = "sweep_of_a_link_that_is_not_here"


def choose() -> Choice:
    """Draw the sidebar and return the choice."""
    results = os.environ.get(RESULTS_VARIABLE, "results")
    tables = {table.label: table for table in tables_of.opened()}
    stamp = queries.stamp_of(results, None)
    stored = queries.sources(results, stamp)
    if isinstance(stored, Failure):
        # An older snapshot, for example. Tables can be shown all the same.
        with st.sidebar:
            ui.failure(stored)
        stored = []
    found = {source.name: source for source in stored}
    own = (*tables, *found)
    examples = {name: table for name, table in tables_of.examples().items() if name not in own}
    tables |= examples
    labels = (*own, *examples)
    with st.sidebar:
        if not own and _asked_for() not in labels:
            tables_of.choose_example(labels)
            return Choice(results=results, stamp=stamp)
        ready = [name for name in own if _has_results(name, tables, found)]
        latest = ready[0] if ready else labels[0]
        if "sweep" in st.session_state:
            # A page that was empty before has the key without a value; the widget sets the URL.
            if st.session_state["sweep"] is None:
                st.session_state["sweep"] = latest
        elif st.query_params.get("sweep") not in labels:
            # Set in the URL, so that a link keeps showing this sweep after later launches.
            if (asked := st.query_params.get("sweep")) is not None:
                st.session_state[GONE] = asked
            st.query_params["sweep"] = st.session_state["sweep"] = latest
        name = (
            st.selectbox(
                "Sweep or table",
                labels,
                index=None,
                key="sweep",
                bind="query-params",
                help="Sweeps and imports of the results folder, latest first; then the public "
                "tables of the package.",
                on_change=_forget_runs,
            )
            or latest
        )
        if GONE in st.session_state:
            st.warning(tables_of.gone_words(str(st.session_state[GONE]), name))
        if name in tables:
            tables[name] = tables_of.as_in_address(tables[name])
        table, source = tables.get(name), found.get(name)
        reading = table.reading if table is not None else Reading()
        mapping = dict(table.mapping) if table is not None else {}
        if table is not None:
            stamp = queries.stamp_of(results, table.path)
        metric, metrics = _metric(results, stamp, table, source, tuple(sorted(mapping.items())))
        params, flops = _conventions(source)
        form = st.selectbox(
            "Law",
            (*FORMS, *EXPERT_FORMS) if source is not None and source.has_experts else FORMS,
            key="form",
            bind="query-params",
            help="Form of the loss law that approach 3 fits.\n\n"
            + glossary.about("Form", glossary.FORMS, "Approach 1, 2, 3", "E, A, B, alpha, beta"),
        )
        percent = st.selectbox(
            "Level of the intervals, %",
            LEVELS,
            index=1,
            key="level",
            bind="query-params",
            help=glossary.about("Level", "Confidence interval", "Prediction interval"),
        )
        holdout = st.text_input(
            "Hold out runs (SQL condition)",
            key="holdout",
            bind="query-params",
            placeholder="n_params > 1e9",
            help="These runs are not fitted. The Extrapolate view scores the fit on them.",
        )
        below_holdout = st.container()
        excluded_field = st.container()
    level = percent / 100
    if params is not None:
        mapping["n_params"] = f"n_params_{params}"
    if flops is not None:
        mapping["flops"] = f"flops_{flops}"
    whole = FitKey(
        stamp=stamp if source is None or table is not None else source.rows_stamp,
        results=results,
        file=table.path if table is not None else None,
        sweep=source.name if source is not None else None,
        mapping=tuple(sorted(mapping.items())),
        holdout=holdout.strip() or None if holdout else None,
        reading=replace(reading, metric=metric),
        form=form,
        level=level,
    )
    if whole.holdout is not None:
        with below_holdout:
            whole = _usable(whole)
    with excluded_field:
        key, excluded = _excluded(whole)
    return Choice(
        results=results,
        stamp=stamp,
        source=source,
        table=table,
        param_convention=params,
        flop_convention=flops,
        form=form,
        level=level,
        key=key,
        metrics=metrics,
        whole=whole,
        excluded=excluded,
        labels=labels,
        keys={
            **{
                label: FitKey(
                    stamp=found[label].rows_stamp
                    if label in found
                    else queries.stamp_of(results, tables[label].path),
                    results=results,
                    file=tables[label].path if label in tables else None,
                    sweep=label if label in found else None,
                    mapping=tables[label].mapping if label in tables else (),
                    reading=tables[label].reading if label in tables else Reading(),
                    form=form,
                    level=level,
                )
                for label in labels
                if _has_results(label, tables, found)
            },
            name: key,
        },
    )


def _excluded(whole: FitKey) -> tuple[FitKey, tuple[str, ...]]:
    """Draw the field of excluded runs; return the fit without them, and their names.

    Names that are wrong are told at the field, and nothing is left out.
    """
    if point.EXCLUDE not in st.session_state and point.EXCLUDE not in st.query_params:
        st.session_state[point.EXCLUDE] = os.environ.get(EXCLUDE_VARIABLE, "")
    text = st.text_input(
        "Exclude runs",
        key=point.EXCLUDE,
        bind="query-params",
        placeholder="click a point, or type names",
        help="run_ids, or runs or lines of a table, with commas: scalelab fit --exclude.",
    )
    names = attempt(lambda: point.parsed(text))
    if isinstance(names, Failure):
        ui.failure(names)
        return whole, ()
    if not names:
        return whole, ()
    key = replace(whole, reading=replace(whole.reading, exclude=names))
    found = queries.observed(key)
    if isinstance(found, Failure) and not isinstance(queries.observed(whole), Failure):
        ui.failure(found)
        return whole, ()
    return key, names


def _forget_runs() -> None:
    """Forget what named runs and columns of another sweep."""
    tables_of.forget_reading()
    st.session_state.pop(GONE, None)
    st.session_state[point.EXCLUDE] = ""
    st.query_params.pop(point.RUN, None)


def _usable(key: FitKey) -> FitKey:
    """Return the fit with the last valid condition if this one is not; the error is drawn here."""
    found = queries.observed(key)
    if not isinstance(found, Failure):
        st.session_state[VALID_HOLDOUT] = (key.results, key.file, key.sweep, key.holdout)
        return key
    if not isinstance(queries.observed(replace(key, holdout=None)), Failure):
        ui.field_error(found)
        *where, holdout = st.session_state.get(VALID_HOLDOUT, (None,) * 4)
        is_same = where == [key.results, key.file, key.sweep]
        return replace(key, holdout=holdout if is_same else None)
    return key


def _asked_for() -> str | None:
    """Return the sweep or table that the session or the address names."""
    return st.session_state.get("sweep") or st.query_params.get("sweep")


def _has_results(name: str, tables: dict[str, Table], found: dict[str, Source]) -> bool:
    return name in tables or found[name].counts.get("done", 0) > 0


def _metric(
    results: str,
    stamp: str,
    table: Table | None,
    source: Source | None,
    mapping: tuple[tuple[str, str], ...],
) -> tuple[str | None, tuple[str, ...]]:
    """Draw the choice of the metric, where there are several; return it and all metrics."""
    found = queries.metrics(
        results,
        stamp,
        None if table is None else table.path,
        None if source is None or table is not None else source.name,
        mapping,
        Reading() if table is None else table.reading,
    )
    given = os.environ.get(METRIC_VARIABLE) or None
    if "metric" not in st.session_state and given and "metric" not in st.query_params:
        st.query_params["metric"] = st.session_state["metric"] = given
    asked = st.session_state.get("metric") or st.query_params.get("metric")
    names = tuple(dict.fromkeys((*found, *([asked] if asked else []))))
    if len(names) < 2:
        return (None if not names or names[0] == HELDOUT.text else names[0]), found
    name = st.selectbox(
        "Loss (metric)",
        names,
        index=None if asked else 0,
        key="metric",
        bind="query-params",
        accept_new_options=True,
        help="An evaluation set, bpb:SET for bits per byte, task:NAME, or a mean such as "
        "0.7*code+0.3*web. Every view shows this loss.",
    )
    try:
        return parse_metric(name or names[0]).text, found
    except UsageError as error:
        st.warning(ui.as_text(str(error)))
        return None, found


def _conventions(source: Source | None) -> tuple[str | None, str | None]:
    """Draw the choice of counting conventions, which only sweeps have."""
    from scalelab.theory.accounting import (
        DEFAULT_FLOP_CONVENTION,
        DEFAULT_PARAM_CONVENTION,
        FLOP_CONVENTIONS,
        PARAM_CONVENTIONS,
        PARAM_WORDS,
    )

    if source is None or source.kind == "import":
        return None, None
    # The names of the command line are those of laws too; the page has words.
    if (old := st.query_params.get("count_n")) in PARAM_WORDS:
        st.query_params["count_n"] = st.session_state["count_n"] = PARAM_WORDS[old]
    usual = "active" if source.has_experts else DEFAULT_PARAM_CONVENTION
    words = list(PARAM_WORDS.values())
    chosen = st.selectbox(
        "Count N as",
        words,
        index=words.index(PARAM_WORDS[usual]),
        key="count_n",
        bind="query-params",
        help="; ".join(f"{word}: {PARAM_CONVENTIONS[name]}" for name, word in PARAM_WORDS.items())
        + "\n\n"
        + glossary.about("Convention"),
    )
    params = next(name for name, word in PARAM_WORDS.items() if word == chosen)
    names = list(FLOP_CONVENTIONS)
    flops = st.selectbox(
        "Count C as",
        names,
        index=names.index(DEFAULT_FLOP_CONVENTION),
        key="count_c",
        bind="query-params",
        help="; ".join(f"{name}: {what}" for name, what in FLOP_CONVENTIONS.items())
        + "\n\n"
        + glossary.about("C", "Convention"),
    )
    # Without a choice, a fit takes the active parameters where runs have experts.
    is_default = params == DEFAULT_PARAM_CONVENTION and not source.has_experts
    return (
        None if is_default else params,
        flops if flops != DEFAULT_FLOP_CONVENTION else None,
    )

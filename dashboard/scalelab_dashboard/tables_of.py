"""Tables that the page can show: those opened by hand, the one of the command line, public ones.

Tables opened by hand exist only in the session.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import streamlit as st

from scalelab.store.public_tables import PREFIX
from scalelab.store.reading import Reading, reading_of_texts
from scalelab_dashboard import queries, ui
from scalelab_dashboard.fits import Failure, attempt

FILE_VARIABLE = "SCALELAB_DASHBOARD_FILE"
MAP_VARIABLE = "SCALELAB_DASHBOARD_MAP"
READING_VARIABLE = "SCALELAB_DASHBOARD_READING"
TABLES = "opened_tables"
OF = ("last_of", "best_of", "mean_of")
"""Which rows of a table are kept, in the address: names of columns with commas."""
OPENED = " (opened here)"
"""End of the label of an uploaded file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """An opened file: path, label, mapping of its columns, and how it is read."""

    path: str
    label: str
    mapping: tuple[tuple[str, str], ...] = ()
    reading: Reading = field(default_factory=Reading)


def open_example(name: str) -> None:
    """Choose a public table of the package, and show the Overview."""
    forget_reading()
    st.session_state["sweep"] = name
    st.session_state["page"] = "Overview"


def examples() -> dict[str, Table]:
    """Return the public tables of the package by their name."""
    names = (f"{PREFIX}{table.name}" for table in queries.public_tables())
    return {name: Table(path=name, label=name) for name in names}


def choose_example(labels: tuple[str, ...]) -> None:
    """Draw the choice of a page that has no runs of its own."""
    st.selectbox(
        "Sweep or table",
        labels,
        index=None,
        key="sweep",
        bind="query-params",
        placeholder="Open an example",
        help="This results folder has no runs yet. These are the public tables of the package.",
    )


def gone_words(asked: str, shown: str) -> str:
    """Return why the sweep or table of a link is not shown."""
    if asked.endswith(OPENED):
        file = asked.removesuffix(OPENED)
        return (
            f"The link shows the uploaded file **{ui.as_text(file)}**, which was only in the "
            "memory of that page. Upload it again in the **Data** view, or import it once to make "
            f"a link that works. Showing **{ui.as_text(shown)}**."
        )
    return (
        f"The linked sweep **{ui.as_text(asked)}** is not in this results folder. "
        f"Showing **{ui.as_text(shown)}**."
    )


def open_table(table: Table) -> None:
    """Add a table that this visitor opened."""
    kept = [each for each in st.session_state.get(TABLES, []) if each.label != table.label]
    st.session_state[TABLES] = [table, *kept]


def forget_reading() -> None:
    """Remove from the address which rows are kept, when another table is chosen."""
    for name in OF:
        st.query_params.pop(name, None)


def keep_rows(reading: Reading) -> None:
    """Put into the address which rows are kept, so that a reload and a link keep them."""
    given = reading.as_dict()
    for name in OF:
        value = given.get(name)
        if value is None:
            st.query_params.pop(name, None)
        else:
            st.query_params[name] = ",".join(value) if isinstance(value, list) else str(value)


def as_in_address(table: Table) -> Table:
    """Return a table with the kept rows of the address; a wrong one is told and not used."""
    asked = {name: st.query_params[name] for name in OF if st.query_params.get(name)}
    if not asked:
        return table
    found = attempt(
        lambda: reading_of_texts(
            last_of=asked.get("last_of"),
            best_of=asked.get("best_of"),
            mean_of=asked.get("mean_of"),
        )
    )
    if isinstance(found, Failure):
        ui.failure(found)
        return table
    kept = {name: getattr(found, name) for name in asked}
    return replace(table, reading=replace(table.reading, **kept))


def opened() -> list[Table]:
    """Return the tables that this visitor opened, and the one of the command line."""
    found: list[Table] = list(st.session_state.get(TABLES, []))
    given = os.environ.get(FILE_VARIABLE)
    if given and all(table.path != given for table in found):
        from scalelab.store.read_options import parse_map

        mapping = parse_map([os.environ.get(MAP_VARIABLE, "")]) if _has_map() else {}
        found.append(
            Table(
                path=given,
                label=Path(given).name,
                mapping=tuple(sorted(mapping.items())),
                reading=_given_reading(),
            )
        )
    return found


def _given_reading() -> Reading:
    """Return how the file of the command line is read."""
    content: dict[str, Any] = json.loads(os.environ.get(READING_VARIABLE) or "{}")
    lists = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
    return Reading(**{**content, **lists})


def _has_map() -> bool:
    return bool(os.environ.get(MAP_VARIABLE))

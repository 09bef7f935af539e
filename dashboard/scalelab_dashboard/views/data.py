"""Data: open a table, map its columns, and see which rows cannot be used.

The table is only in the memory of the page. The page shows the ``scalelab import`` command that
saves it.
"""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from scalelab.logs.registry import TABLE
from scalelab.store.excluded import name_column
from scalelab.store.reading import Reading, reading_of_texts
from scalelab.theory.accounting import PARAM_WORDS
from scalelab.units import plural
from scalelab_dashboard import point, queries, tables_of, ui
from scalelab_dashboard.fits import Failure, attempt
from scalelab_dashboard.views import runs

if TYPE_CHECKING:
    import pandas as pd

    from scalelab_dashboard.choice import Choice

OURS = {
    "n_params": "parameters N",
    "n_tokens": "tokens D",
    "loss_nats": "loss",
    "flops": "compute C",
    "budget": "isoFLOP budget",
    "cluster": "run (rows that share noise)",
}
NONE = "(none)"
AUTOMATIC = "recognised"
NAMES = ("id", "seed", "hash", "name", "date")
"""Ends of the names of columns that are shown as they are written."""
GUESSES = {
    "n_params": ("n_params", "params", "parameters", "n", "model_size"),
    "n_tokens": ("n_tokens", "tokens", "training_tokens", "d"),
    "loss_nats": ("loss_nats", "loss", "val_loss", "eval_loss"),
    "flops": ("flops", "compute", "c", "training_flop"),
    "budget": ("budget", "isoflop_budget", "flops_budget", "isoflop"),
    "cluster": ("cluster", "run_id", "run"),
}


def show(choice: Choice) -> None:
    """Draw the page."""
    st.markdown(
        "Open a table or run log of finished runs: CSV, JSON, Parquet, Arrow, Excel, or a log of "
        "another trainer. It stays in the memory of this page until you close the tab; nothing is "
        "saved."
    )
    uploaded = st.file_uploader("Table or run log", key="upload")
    table = choice.table
    if uploaded is not None:
        path = _spooled(uploaded.name, uploaded.getvalue())
        table = tables_of.Table(path=str(path), label=f"{uploaded.name}{tables_of.OPENED}")
        st.caption(
            "A link to this page cannot restore an uploaded file. For a link that works, save the "
            "table with the command below, or start the page with `--from FILE`."
        )
    if table is None:
        st.info(
            "No table is open. Upload a file above, or run `scalelab dashboard --from FILE.csv`."
        )
        return
    stamp = queries.stamp_of(choice.results, table.path)
    reading = _reading(table.reading)
    if isinstance(reading, Failure):
        ui.failure(reading)
        return
    head = queries.head(table.path, stamp, reading)
    if isinstance(head, Failure):
        ui.failure(head)
        return
    frame, count = head
    st.subheader("Rows")
    numbers = [name for name in frame.columns if not str(name).lower().endswith(NAMES)]
    shown = frame.assign(**{name: frame[name].map(ui.short_number) for name in numbers})
    rows, marks = st.container(), {}
    if table == choice.table and reading == table.reading:
        # Of another file or another reading, the fit says nothing.
        marks = point.marks(choice)
    with rows:
        st.dataframe(marked(shown, marks), height=240, alt=f"First rows of {count} in the table")
        st.caption(
            f"{plural(count, 'row')}; showing the first {len(frame):,}, long numbers rounded."
        )
    st.subheader("Columns")
    mapping = _mapping(list(frame.columns), dict(table.mapping))
    read = queries.read_file(table.path, stamp, mapping, reading)
    if isinstance(read, Failure):
        ui.failure(read)
        return
    _show_read(read)
    chosen = tables_of.Table(
        path=table.path,
        label=table.label,
        mapping=tuple(sorted(mapping.items())),
        reading=reading,
    )
    st.button(
        "Use this table in all views",
        type="primary",
        on_click=_choose,
        args=(chosen,),
        help="Selects this table in the sidebar, with these columns, and shows the Overview.",
    )
    words = ["scalelab", "import", Path(table.label.removesuffix(tables_of.OPENED)).name]
    if mapping:
        words += ["--map", ",".join(f"{ours}={theirs}" for ours, theirs in mapping.items())]
    words += reading.words()
    ui.command([*words, "--results", choice.results], "To save it in the results folder:")


def marked(frame: pd.DataFrame, marks: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows with what the fit says about them in the first column.

    Parameters
    ----------
    frame : DataFrame
        Its index is the line of each row.
    marks : Mapping[str, str]
        Of runs or lines, by name.
    """
    if not marks:
        return frame
    column = name_column(dict.fromkeys(frame.columns, "VARCHAR"))
    names = frame.index.astype(str) if column is None else frame[column].astype(str)
    found = [
        marks.get(name) or marks.get(str(line), "")
        for name, line in zip(names, frame.index, strict=True)
    ]
    shown = frame.copy()
    shown.insert(0, runs.MARK, found, allow_duplicates=True)
    return shown


def guess(ours: str, columns: list[str]) -> str:
    """Return the column that most likely matches ours, or `NONE`."""
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in GUESSES[ours] if name in lower), NONE)


def _reading(given: Reading) -> Reading | Failure:
    """Draw how the file is read, and return it or why it is not valid."""
    from scalelab.logs.losses import LOSS_UNITS
    from scalelab.logs.registry import FORMATS

    formats, units = [AUTOMATIC, TABLE, *FORMATS], [AUTOMATIC, *LOSS_UNITS]
    with st.expander("How the file is read", expanded=given != Reading()):
        left, right = st.columns(2)
        format = left.selectbox(
            "Format", formats, index=formats.index(given.format or AUTOMATIC), key="read_format"
        )
        unit = right.selectbox(
            "Unit of the losses",
            units,
            index=units.index(given.loss_unit or AUTOMATIC),
            key="read_unit",
        )
        best = left.text_input(
            "Best of",
            ",".join(given.best_of),
            key="read_best",
            placeholder="lr,batch",
            help="Of rows that differ only in these columns, keep the one of lowest loss.",
        )
        mean = right.text_input(
            "Mean of",
            ",".join(given.mean_of),
            key="read_mean",
            placeholder="seed",
            help="Average the losses of rows that differ only in these columns.",
        )
        last = left.text_input(
            "Last of",
            given.last_of or "",
            key="read_last",
            placeholder="run",
            help="Column that names the run: keep the last checkpoint of each run.",
        )
        unfinished = right.checkbox(
            "Keep unfinished runs",
            given.includes_unfinished,
            key="read_unfinished",
            help="Keep runs that failed or did not reach their planned end.",
        )
    return attempt(
        lambda: reading_of_texts(
            format=None if format == AUTOMATIC else format,
            loss_unit=None if unit == AUTOMATIC else unit,
            includes_unfinished=unfinished,
            best_of=best.strip() or None,
            mean_of=mean.strip() or None,
            last_of=last.strip() or None,
        )
    )


def _mapping(columns: list[str], given: dict[str, str]) -> dict[str, str]:
    mapping = {}
    places = st.columns(3)
    for i, (ours, words) in enumerate(OURS.items()):
        options = [NONE, *columns]
        expected = given.get(ours) if given.get(ours) in columns else guess(ours, columns)
        with places[i % 3]:
            theirs = st.selectbox(
                f"{words} = {ours}",
                options,
                index=options.index(expected or NONE),
                key=f"map_{ours}",
                bind="query-params",
            )
        if theirs != NONE and theirs.lower() != ours:
            mapping[ours] = theirs
    return mapping


def _show_read(read: dict[str, Any]) -> None:
    rows, rejects = read["rows"], read["rejects"]
    count, flops = str(read["param_convention"]), read["flop_convention"]
    st.markdown(
        f"**{plural(len(rows), 'usable row')}, {len(rejects):,} unusable.** N counted "
        f"{ui.as_text(PARAM_WORDS.get(count, count))}, C counted {ui.as_text(flops)}."
    )
    if "unstated" in (read["param_convention"], read["flop_convention"]):
        st.caption(
            "The table does not state its counting convention, which alone can change the exponent "
            "a from 0.37 to 0.70. State it when you import the table."
        )
    for note in read["notes"].values():
        st.caption(ui.as_text(note))
    if len(rejects):
        st.dataframe(
            rejects.astype(str),
            hide_index=True,
            height=200,
            alt="Rows that cannot be used, and why",
        )


def _choose(table: tables_of.Table) -> None:
    tables_of.open_table(table)
    tables_of.keep_rows(table.reading)
    st.session_state["sweep"] = table.label
    st.session_state["page"] = "Overview"


@st.cache_resource(show_spinner=False)
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="scalelab-dashboard-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _spooled(name: str, content: bytes) -> Path:
    """Write an uploaded file to a temporary folder; the same content is written once."""
    # Readers look at the name of a log, so only the folder is named by the content.
    path = _folder() / hashlib.sha256(content).hexdigest()[:16] / _file_name(name)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return path


def _file_name(name: str) -> str:
    """Return the name of an uploaded file without folders and leading dots."""
    return Path(name).name.lstrip(".") or "table.csv"

"""From a point of a figure to its run and back: the chosen run, its panel, and excluded runs.

The chosen run and the excluded ones are in the address.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from scalelab.errors import ScalelabError
from scalelab.forecast.headline import exponents, headline, loss_words
from scalelab.forecast.leave_out import CONDITION, offer_words, outliers_to_exclude
from scalelab.records.names import names_of_text, text_of_names
from scalelab.report import overlay
from scalelab.units import format_flops, format_quantity, plural
from scalelab_dashboard import queries, ui, waiting
from scalelab_dashboard.fits import Failure

if TYPE_CHECKING:
    from scalelab.fit.outcome import FitWarning
    from scalelab.forecast.fit_report import FitReport
    from scalelab.records.types import Observations
    from scalelab_dashboard.choice import Choice

RUN, EXCLUDE = "run", "exclude"
OUTLIER, EXCLUDED = "outlier", "excluded"
SOME = 4
"""Names in a line."""
NAMED = 3
"""Length from which the custom data of a point end with the name of its run."""


def chosen() -> str | None:
    """Return the run in the address."""
    return st.query_params.get(RUN)


def clicks(choice: Choice) -> Callable[[str], None]:
    """Return what puts the clicked run of a figure into the address; curves are no runs."""

    def take(key: str) -> None:
        points = st.session_state[key]["selection"]["points"]
        clicked = [str(point["customdata"][-1]) for point in points if _is_run(point)]
        if not clicked or choice.whole is None:
            return
        found = queries.observed(replace(choice.whole, holdout=None))
        if isinstance(found, Failure) or found[0].names is None:
            return
        known = set(map(str, found[0].names))
        if names := [name for name in clicked if name in known]:
            st.query_params[RUN] = names[-1]

    return take


def whole_rows(choice: Choice) -> Observations | None:
    """Return the rows of a choice with the excluded ones."""
    found = None if choice.whole is None else queries.observed(choice.whole)
    return None if found is None or isinstance(found, Failure) else found[0]


def overlaid(figure: Any, choice: Choice, look: Any, old: Any) -> Any:
    """Draw the chosen and the excluded runs, and the old frontier, over the isoFLOP figure."""
    rows = whole_rows(choice)
    if rows is not None:
        if choice.excluded:
            overlay.left_out(figure, rows.take(overlay.positions(rows, choice.excluded)), look)
        if (name := chosen()) is not None:
            overlay.mark(figure, rows, name, look)
    if old is not None:
        overlay.ghost(figure, old, look)
    return figure


def change(choice: Choice, report: FitReport, old: FitReport | None) -> None:
    """Say what leaving out the excluded runs changed."""
    words = f"Without {plural(len(choice.excluded), 'excluded run')}: {_numbers(report)}."
    if old is not None:
        words += f" With all runs: {_numbers(old)}."
    left, right = st.columns([5, 1], vertical_alignment="center")
    with left:
        st.markdown(f"**{ui.as_text(words)}**")
    with right:
        st.button("Include all", on_click=_set_excluded, args=((),), key="include_all")


def marks(choice: Choice) -> dict[str, str]:
    """Return what the fit says about runs or lines by name: ``outlier`` or ``excluded``.

    One line is drawn in every case, also while the runs are fitted: rows below it do not move when
    the fit is done.
    """
    found = waiting.outliers(choice)
    if found is not None:
        words = f"Outliers of the fit: {_some(found)}."
        if choice.excluded:
            words += f" Left out of it: {_some(choice.excluded)}."
        st.caption(ui.as_text(words))
    return {**dict.fromkeys(found or (), OUTLIER), **dict.fromkeys(choice.excluded, EXCLUDED)}


def _some(names: Sequence[str]) -> str:
    """Return names for one line: the first ones, and how many more there are."""
    more = len(names) - SOME
    return ", ".join(names[:SOME]) + (f" and {more:,} more" if more > 0 else "") or "none"


def offer(choice: Choice, warnings: Sequence[FitWarning], n_rows: int) -> None:
    """Offer to leave out the outliers that a warning names, in one click."""
    names = outliers_to_exclude(warnings, n_rows)
    if not names:
        return
    st.button(
        offer_words(names).capitalize(),
        on_click=_set_excluded,
        args=((*choice.excluded, *names),),
        key="exclude_outliers",
        help=ui.as_text(f"--exclude {text_of_names(names)}."),
    )
    st.caption(CONDITION)


def panel(choice: Choice, report: FitReport | None) -> None:
    """Show the chosen run: its numbers, what the fit predicts, its settings, curve and faults."""
    name, rows = chosen(), whole_rows(choice)
    if name is None or rows is None:
        return
    at = overlay.positions(rows, (name,))
    with st.container(border=True):
        what = "Line" if rows.names is not None and rows.names.dtype.kind == "i" else "Run"
        st.markdown(f"#### {what} {ui.as_text(name)}")
        if not len(at):
            st.caption("This run is not among the fitted rows.")
        else:
            _numbers_of(rows.take(at[-1:]), report)
        _settings(choice, name, rows, at)
        ui.notes(queries.notes(choice.results, (name,)))
        _buttons(choice, name, is_fitted=bool(len(at)))


def to_overview(name: str) -> None:
    """Open the Overview with a run marked."""
    st.session_state["page"] = "Overview"
    st.query_params[RUN] = name


def exclude_button(choice: Choice, name: str) -> bool:
    """Draw the button that leaves a run out of the fit, or takes it in again; True if clicked."""
    if name in choice.excluded:
        words, names = "Include it again", tuple(x for x in choice.excluded if x != name)
    else:
        words, names = "Exclude it and refit", (*choice.excluded, name)
    return st.button(words, on_click=_set_excluded, args=(names,), key="exclude_one")


def parsed(text: str | None) -> tuple[str, ...]:
    """Return the names of the exclude field; UsageError if it is malformed."""
    return names_of_text(text) if text and text.strip() else ()


def _set_excluded(names: tuple[str, ...]) -> None:
    st.session_state[EXCLUDE] = text_of_names(names) if names else ""


def _close() -> None:
    st.query_params.pop(RUN, None)


def _to_runs(name: str) -> None:
    st.session_state["page"] = "Runs"
    st.session_state["find"] = name


def _is_run(point: dict[str, Any]) -> bool:
    data = point.get("customdata")
    return isinstance(data, (list, tuple)) and len(data) >= NAMED


def _numbers(report: FitReport) -> str:
    """Return exponent and answer of a fit in a few words."""
    found = exponents(report)
    head = headline(report)
    parts = [] if found is None else [f"a = {found[0].value:.3f}"]
    if head.forecast is not None and head.forecast.n_params is not None:
        loss = loss_words(head.forecast.loss_nats, head.forecast.pred_low, head.forecast.pred_high)
        parts.append(
            f"{format_quantity(head.forecast.n_params.value)} parameters and loss {loss} at "
            f"{format_flops(head.flops)} FLOP"
        )
    return ", ".join(parts) or "no answer"


def _compute(row: Observations) -> float:
    """Return the compute of a run, by the name that its budget has elsewhere on the page."""
    budget = math.nan if row.budget is None else float(row.budget[0])
    return budget if math.isfinite(budget) else float(row.flops[0])


def _numbers_of(row: Observations, report: FitReport | None) -> None:
    loss = float(row.loss_nats[0])
    parts = [
        f"N {format_quantity(float(row.n_params[0]))}",
        f"D {format_quantity(float(row.n_tokens[0]))}",
        f"C {format_flops(_compute(row))} FLOP",
        f"loss {loss:.4f} {row.metric.unit}",
    ]
    st.markdown(ui.as_text(", ".join(parts)))
    if report is None or not report.has_answer:
        return
    at = {"n_params": row.n_params, "n_tokens": row.n_tokens}
    try:
        found = report.forecaster.predict(at, report.level)
    except ScalelabError:
        return
    value, low, high = (float(x[0]) for x in (found.value, found.pred_low, found.pred_high))
    inside = "inside" if low <= loss <= high else "outside"
    st.markdown(
        ui.as_text(
            f"The fit says {value:.4f} there: this run is {100 * (loss / value - 1):+.2f} % off, "
            f"{inside} the {100 * report.level:g} % prediction interval of a new run ({low:.4f} to "
            f"{high:.4f})."
        )
    )


def _settings(choice: Choice, name: str, rows: Observations, at: Any) -> None:
    """Show the settings of the run, its error, and its training curve."""
    from scalelab_dashboard.views import runs

    source = choice.source
    if source is None or source.kind == "import":
        extra = {key: column[at[-1]] for key, column in rows.extra.items()} if len(at) else {}
        words = [f"{key} {_short(value)}" for key, value in extra.items()]
        if words:
            st.caption(ui.as_text(", ".join(words)))
        return
    table = queries.runs(choice.results, source.name, choice.stamp)
    found = table[table["run_id"] == name]
    if not len(found):
        return
    row = found.iloc[0]
    known = [key for key in (*runs.COLUMNS, *runs.varying(table)) if key in row.index]
    words = [
        f"{key} {_short(row[key])}"
        for key in dict.fromkeys(known)
        if key not in ("run_id", "reason") and row[key] is not None and row[key] == row[key]
    ]
    st.caption(ui.as_text(", ".join(words)))
    if isinstance(row.get("reason"), str):
        st.warning(ui.as_text(row["reason"]))
    runs.curves(choice, (name,), is_chosen=True)


def _buttons(choice: Choice, name: str, *, is_fitted: bool) -> None:
    if choice.source is not None and choice.source.kind != "import":
        words = ["scalelab", "note", name, "what you saw", "--results", choice.results]
        ui.command(words, "To write a note about it")
    with st.container(horizontal=True):
        if is_fitted:
            exclude_button(choice, name)
        if choice.source is not None and choice.source.kind != "import":
            st.button("Open in Runs", on_click=_to_runs, args=(name,), key="to_runs")
        st.button("Close", on_click=_close, key="close_run")


def _short(value: Any) -> str:
    """Return a number in four digits, other values as text."""
    if isinstance(value, (int, float, np.number)):
        number = float(value)
        return format_quantity(number) if abs(number) >= 10_000 else f"{number:.4g}"
    return str(value)

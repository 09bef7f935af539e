"""Widgets of the dashboard: escaped text, numbers with intervals, figures, errors, commands."""

from __future__ import annotations

import html
import math
import re
import shlex
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import streamlit as st

from scalelab.forecast import headline, more_runs
from scalelab.forecast.verdict import NOT_IDENTIFIED, SOUND, WITH_WARNINGS
from scalelab.report.look import DARK, LIGHT, Look
from scalelab.report.stamp import stamp
from scalelab.units import format_flops, format_quantity
from scalelab_dashboard import glossary, queries
from scalelab_dashboard.fits import Failure, attempt

if TYPE_CHECKING:
    import pandas as pd

    from scalelab.fit.intervals import Interval
    from scalelab.fit.outcome import FitWarning
    from scalelab.records.notes import Note
    from scalelab.records.types import Observations

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>$:~&@/=^\"'])")
COLOURS = {
    SOUND: "green",
    WITH_WARNINGS: "orange",
    NOT_IDENTIFIED: "red",
}
"""Colour of the badge of each verdict."""
COMPUTE = "max_flops"
"""The compute in the address, one for all views: Extrapolate, Decide (its limit) and Compare."""
CONFIG = {
    "displaylogo": False,
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
    "toImageButtonOptions": {"format": "svg"},
}


def as_text(text: object) -> str:
    """Return text with Markdown and HTML escaped."""
    return _MARKDOWN.sub(r"\\\1", str(text)).replace("\n", " ")


def prose(text: object) -> str:
    """Return escaped text in which parts in backticks are code."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:
        return as_text(text)
    return "".join(
        f"`{part}`" if i % 2 and part.strip() else as_text(part) for i, part in enumerate(parts)
    )


def look() -> Look:
    """Return the colours of the chosen theme."""
    return DARK if st.context.theme.type == "dark" else LIGHT


def draw(figure: Any, key: str, on_click: Callable[[str], None] | None = None) -> None:
    """Show a figure with its alternative text; ``on_click`` is told the key when a point is."""
    alt = str(figure.layout.meta["alt"])
    if on_click is None:
        st.plotly_chart(figure, key=key, theme=None, config=CONFIG, alt=alt)
        return
    st.plotly_chart(
        figure,
        key=key,
        theme=None,
        config=CONFIG,
        alt=alt,
        selection_mode="points",
        on_select=lambda: on_click(key),
    )


def plot(
    name: str,
    key: object,
    drawn: Callable[[Look], Any],
    more: object = None,
    on_click: Callable[[str], None] | None = None,
    of: object = None,
) -> None:
    """Show a figure, drawn once per key, theme and ``more``, what else it depends on.

    ``of`` is its source, a fit or text; default: the key.
    """
    colours, line = look(), queries.source_line(of or key)

    def stamped() -> Any:
        return stamp(drawn(colours), name, line, colours)

    is_clicked = on_click is not None
    found = queries.figure(name, key, colours.name, (more, line), is_clicked, stamped)
    draw(found, name, on_click)


def number(label: str, value: str, limits: str, help_text: str | None = None) -> None:
    """Show a headline number with its interval below, without truncation."""
    with st.container(border=True, height="stretch"):
        st.caption(label, help=help_text)
        st.markdown(f"### {as_text(value)}")
        st.caption(as_text(limits))


def next_compute(rows: Observations) -> str:
    """Return ten times the compute of the largest run, the default target."""
    return format_flops(headline.next_compute(rows))


def answer(
    sentence: str,
    basis: str,
    verdict: str | None,
    found: Sequence[FitWarning],
    laws: str = "",
) -> None:
    """Show the answer in one sentence, then the verdict with its warnings.

    Parameters
    ----------
    sentence, basis : str
        The answer; what its limits are and what predicts.
    verdict : str or None
        `SOUND`, `WITH_WARNINGS` or `NOT_IDENTIFIED` of `scalelab.forecast.verdict`; None: the law
        has no fit that could be assessed.
    found : sequence of FitWarning
        Most serious first.
    laws : str
        The laws of the average with their weights, as help beside the basis.
    """
    st.markdown(f"#### {prose(sentence)}")
    if basis:
        words = ("Confidence interval", "Prediction interval")
        st.caption(as_text(basis), help=f"{as_text(laws)}\n\n{glossary.about(*words)}")
    if verdict is None:
        return
    names = ", ".join(dict.fromkeys(each.code.replace("_", " ") for each in found))
    st.markdown(
        f":{COLOURS[verdict]}-badge[{as_text(verdict)}]"
        + (f" {as_text(names)}" if names else " no warnings"),
        help=glossary.about(glossary.VERDICT),
    )
    if found:
        with st.expander(f"What the warnings say ({len(found)})"):
            warnings(found)


def notes(found: Sequence[Note]) -> None:
    """Show notes of people, with the name that each is about."""
    for note in found:
        st.markdown(f":material/sticky_note_2: **{as_text(note.about)}**: {as_text(note.text)}")


def next_step(head: headline.Headline, rows: Observations, level: float) -> None:
    """Show the next command and what it does, and which runs to add."""
    if head.is_apart:
        command(list(head.command), f"Next: {head.purpose}")
    if head.to_add:
        runs_to_add(head.to_add, level)
        return
    words = headline.more_runs(headline.next_compute(rows))
    if words != head.command and math.isfinite(head.flops):
        command(list(words), "To narrow the answer: plans runs for this law at larger budgets")


def runs_to_add(budgets: tuple[more_runs.AddedBudget, ...], level: float) -> None:
    """Show the runs to add, of at least one budget, and how to plan those that come first."""
    lines = [more_runs.HEADS, ("---",) * len(more_runs.HEADS)]
    lines += [tuple(_unbroken(as_text(cell)) for cell in each.cells()) for each in budgets]
    st.caption(as_text(more_runs.caption_of(budgets, level)))
    st.markdown("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    for i, (words, rows) in enumerate(more_runs.plans(budgets)):
        if i == 0:
            st.caption(as_text(words))
        # The view is long: the second plan opens on a click.
        with st.expander(as_text(words)) if i else nullcontext():
            terminal(*(list(each.command) for each in rows))


def _unbroken(text: str) -> str:
    """Return text whose signs stay with their numbers when a narrow cell wraps."""
    return text.replace("± ", "±\u00a0").replace(" %", "\u00a0%")


def exponent(interval: Interval | None, level: float) -> tuple[str, str]:
    """Return an exponent and its interval as text."""
    if interval is None or not math.isfinite(interval.value):
        return "–", "not determined"
    return f"{interval.value:.3f}", limits(interval, level, "{:.3f}")


def with_limits(interval: Interval, form: Callable[[float], str]) -> str:
    """Return a value with its limits in brackets, if it has any."""
    if not math.isfinite(interval.low + interval.high) or interval.low == interval.high:
        return form(interval.value)
    return f"{form(interval.value)} [{form(interval.low)}, {form(interval.high)}]"


def digits(value: float) -> str:
    """Return six significant digits, four of far powers of ten, or a dash for no limit."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.6g}" if value == 0 or 1e-3 <= abs(value) < 1e6 else format_quantity(value, 4)


def short_number(text: str) -> str:
    """Return the text of a number with at most six digits, such as 6.796B; other text as it is."""
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value) or len(text) < 7:
        return text
    if abs(value) >= 1e6 or 0 < abs(value) < 1e-3:
        return format_quantity(value, 4)
    return f"{value:.6g}"


def limits(interval: Interval, level: float, form: str) -> str:
    """Return the interval of a value as text."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "no interval"
    return f"{form.format(interval.low)} to {form.format(interval.high)} ({100 * level:g} %)"


def failure(found: Failure) -> None:
    """Show an error: what is wrong, what is accepted, what to do."""
    st.warning(f"**Got** {as_text(found.given)}.")
    st.markdown(f"Expected {as_text(found.allowed)}. **{prose(found.do)}**")


def field_error(found: Failure) -> None:
    """Show an error below the field that it is about; the figure stays."""
    st.markdown(
        f":red[**Got** {as_text(found.given)}. Expected {as_text(found.allowed)}.] "
        f"{prose(found.do)}"
    )


def checked_input(label: str, key: str, check: Callable[[str], object], **options: Any) -> str:
    """Draw a text field and return its text; of a wrong one, the last valid text with the error.

    Parameters
    ----------
    label, key : str
        The label; the key in the session and the address.
    check : callable
        Raises `scalelab.errors.ScalelabError` for text that is not valid.
    **options
        Of `st.text_input`.
    """
    text = (st.text_input(label, key=key, bind="query-params", **options) or "").strip()
    if not text:
        return ""
    found = attempt(lambda: check(text))
    if isinstance(found, Failure):
        field_error(found)
        return str(st.session_state.get(f"valid_{key}", ""))
    st.session_state[f"valid_{key}"] = text
    return text


def warnings(found: Any) -> None:
    """Show the warnings of a fit, most serious first."""
    for warning in found:
        title = as_text(warning.code.replace("_", " ").capitalize())
        st.markdown(f"**{title}**: {prose(warning.message)}")


def command(words: list[str], note: str = "The same on the command line") -> None:
    """Show the command that gives the same answer as the page."""
    st.caption(note)
    terminal(words)


def terminal(*commands: list[str]) -> None:
    """Show commands, each given as a list of words; one click selects all.

    Not `st.code`: it makes the browser load and compile 1.6 MB of syntax highlighting.
    """
    text = html.escape("\n".join(map(shlex.join, commands)))
    st.html(f'<pre class="terminal" tabindex="0" title="one click selects all">{text}</pre>')


def scaled(table: pd.DataFrame, column: str) -> tuple[pd.Series, str]:
    """Return a column of FLOPs in a unit that the browser's tables can show, and its new name.

    The tables cannot show numbers from 1e18, so the header states a power of ten.
    """
    values = table[column].astype(float)
    middle = values[values > 0].median()
    power = 3 * int(math.log10(middle) // 3) if middle > 0 else 0
    return values / 10**power, f"C, 1e{power} FLOP" if power else "C, FLOP"

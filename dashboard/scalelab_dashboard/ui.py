"""How things are said on the page: text as text, numbers with intervals, states with advice."""

from __future__ import annotations

import html
import math
import re
import shlex
from typing import TYPE_CHECKING, Any

import streamlit as st

from scalelab.report.look import DARK, LIGHT, Look
from scalelab.units import format_flops

if TYPE_CHECKING:
    import pandas as pd

    from scalelab.fit.outcome import Interval
    from scalelab.records.types import Observations
    from scalelab_dashboard.fits import Failure

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>$:~&@/=^\"'])")
CONFIG = {
    "displaylogo": False,
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
    "toImageButtonOptions": {"format": "svg"},
}


def as_text(text: object) -> str:
    """Return text whose Markdown, HTML and directives are shown and not obeyed."""
    return _MARKDOWN.sub(r"\\\1", str(text)).replace("\n", " ")


def prose(text: object) -> str:
    """Return a sentence of ours as text, with what stands in backticks as code."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:
        return as_text(text)
    return "".join(
        f"`{part}`" if i % 2 and part.strip() else as_text(part) for i, part in enumerate(parts)
    )


def look() -> Look:
    """Return the colours of the theme that the person has chosen."""
    return DARK if st.context.theme.type == "dark" else LIGHT


def draw(figure: Any, key: str) -> None:
    """Show a figure with its alternative text."""
    st.plotly_chart(figure, key=key, theme=None, config=CONFIG, alt=str(figure.layout.meta["alt"]))


def number(label: str, value: str, limits: str, help_text: str | None = None) -> None:
    """Show one headline number with its interval under it; nothing is cut off."""
    with st.container(border=True, height="stretch"):
        st.caption(label, help=help_text)
        st.markdown(f"### {as_text(value)}")
        st.caption(as_text(limits))


def next_compute(rows: Observations) -> str:
    """Return ten times the compute of the largest run: where to look where nothing was asked."""
    return format_flops(float(f"{10 * rows.flops.max():.0e}"))


def exponent(interval: Interval | None, level: float) -> tuple[str, str]:
    """Return an exponent and its interval as texts."""
    if interval is None or not math.isfinite(interval.value):
        return "–", "not determined"
    return f"{interval.value:.3f}", limits(interval, level, "{:.3f}")


def limits(interval: Interval, level: float, form: str) -> str:
    """Return the interval of a value in words."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "no interval (no replicates)"
    return f"{form.format(interval.low)} to {form.format(interval.high)} ({100 * level:g} %)"


def failure(found: Failure) -> None:
    """Say what went wrong and what to do next."""
    st.warning(f"**Got** {as_text(found.given)}.")
    st.markdown(f"Expected {as_text(found.allowed)}. **{prose(found.do)}**")


def warnings(found: Any) -> None:
    """Show the warnings of a fit in words, the most serious first."""
    for warning in found:
        title = as_text(warning.code.replace("_", " ").capitalize())
        st.markdown(f"**{title}**: {prose(warning.message)}")


def command(words: list[str], note: str = "The same on the command line") -> None:
    """Show the command that says the same as the page."""
    st.caption(note)
    terminal(words)


def terminal(*commands: list[str]) -> None:
    """Show commands as they are typed, each as a list of words; one click selects them all.

    `st.code` would make the browser load and compile 1.6 MB of colours for all languages first.
    """
    text = html.escape("\n".join(map(shlex.join, commands)))
    st.html(f'<pre class="terminal" tabindex="0" title="one click selects all">{text}</pre>')


def scaled(table: pd.DataFrame, column: str) -> tuple[pd.Series, str]:
    """Return a column of FLOPs in units that the browser's tables can show, and its new name.

    Their numbers break from 1e18 on, so the power of ten of the middle moves into the header.
    """
    values = table[column].astype(float)
    middle = values[values > 0].median()
    power = 3 * int(math.log10(middle) // 3) if middle > 0 else 0
    return values / 10**power, f"C, 1e{power} FLOP" if power else "C, FLOP"

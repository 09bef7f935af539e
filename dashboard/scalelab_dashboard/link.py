"""Parameters of a link that the page does not use: unknown names, and values that are not valid."""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st

from scalelab.errors import did_you_mean, listed
from scalelab.forecast.published_laws import PUBLISHED_LAWS
from scalelab.theory.accounting import FLOP_CONVENTIONS, PARAM_WORDS
from scalelab.theory.hardware import HARDWARE
from scalelab_dashboard import point, tables_of, ui
from scalelab_dashboard.asked import LIMITS
from scalelab_dashboard.choice import EXPERT_FORMS, FORMS, LEVELS
from scalelab_dashboard.views import cost, decide, extrapolate, fit, runs
from scalelab_dashboard.views.data import OURS

ASKED = "parameters_of_the_link"
WRONG = "wrong_values_of_the_link"
TARGET = "target"
KNOWN = (
    *("page", "sweep", "metric", "count_n", "count_c", "form", "level", "holdout", "view"),
    *(point.RUN, point.EXCLUDE, *tables_of.OF, ui.COMPUTE, "with"),
    *("by", TARGET, "gpu", "mfu"),
    *("law", "device", "use", "price", "serve", "gpus", "grid_co2", "named", "axis", "all_columns"),
    *(f"max_{name}" for name, *_ in LIMITS),
    *("status", "find", "order", "part", "against"),
    *("usd", "watts", "grid", "cost"),
    *(f"map_{ours}" for ours in OURS),
    *("mix_target", "mix_tokens"),
)
"""Every parameter of the page."""
MEANT = {
    "at": ui.COMPUTE,
    "budget": ui.COMPUTE,
    "compute": ui.COMPUTE,
    "flops": ui.COMPUTE,
    "c": ui.COMPUTE,
    "table": "sweep",
    "from": "sweep",
    "predict": ui.COMPUTE,
}
"""Names that links use for a parameter of another name."""
# A wrong page or sweep has its own line; free text is checked at its field.
TOLD_ELSEWHERE = ("page", "sweep", "metric", point.EXCLUDE, "count_n")


def remember() -> None:
    """Keep the parameters of the link, before any widget is drawn."""
    if ASKED not in st.session_state:
        st.session_state[ASKED] = {name: st.query_params.get_all(name) for name in st.query_params}
        st.session_state[WRONG] = {}


def tell(title: str, shown_elsewhere: str | None) -> None:
    """Name the parameters that have no effect; called after the view is drawn.

    Parameters
    ----------
    title : str
        The view.
    shown_elsewhere : str or None
        A wrong name of a view that the page names already.
    """
    asked, wrong = st.session_state[ASKED], st.session_state[WRONG]
    for name in [name for name in asked if name in KNOWN and name in st.session_state]:
        texts, value = asked.pop(name), st.session_state[name]
        is_told = name in TOLD_ELSEWHERE or shown_elsewhere in texts
        if not is_told and not is_same(texts, value):
            wrong[name] = (", ".join(texts), value)
    for name in [name for name in wrong if st.session_state.get(name) != wrong[name][1]]:
        if name in st.session_state:
            del wrong[name]  # the reader chose another value
    lines = [unknown_words(name) for name in st.query_params if name not in KNOWN]
    lines += [wrong_words(name, text) for name, (text, _) in wrong.items()]
    if (
        title == "Extrapolate"
        and TARGET in asked
        and st.session_state.get("by") == extrapolate.BY[0]
    ):
        lines.append(
            f"**{TARGET}** is used only with **by**, for example by=Parameters N; a compute is "
            f"**{ui.COMPUTE}**."
        )
    if lines:
        st.warning("The link has parameters that are not used. " + " ".join(lines))


def is_same(texts: Iterable[str], value: object) -> bool:
    """Return whether the value of a widget is that of the link."""
    texts = list(texts)
    if isinstance(value, list | tuple):
        return set(texts) == {str(each) for each in value}
    text = texts[-1] if texts else ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == float(value)
        except ValueError:
            return False
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    return text == ("" if value is None else str(value))


def unknown_words(name: str) -> str:
    """Return that a name is no parameter of the page, with the most similar one."""
    meant = MEANT.get(name.lower())
    near = f"Did you mean {meant}? " if meant else did_you_mean(name, KNOWN)
    return ui.as_text(f"There is no parameter {name}. {near}".strip())


def wrong_words(name: str, text: str) -> str:
    """Return that a value is not valid, with the most similar one and the valid ones."""
    valid = [str(each) for each in choices(name)]
    expected = f"Expected: {listed(valid, text)}." if valid else ""
    said = f"{name}={text} is not valid here. {did_you_mean(text, valid)}{expected}"
    return ui.as_text(said.strip())


def choices(name: str) -> Iterable[object]:
    """Return the valid values of a parameter that is one of a list; empty for the others."""
    return {
        "form": (*FORMS, *EXPERT_FORMS),
        "level": LEVELS,
        "count_n": tuple(PARAM_WORDS.values()),
        "count_c": tuple(FLOP_CONVENTIONS),
        "view": fit.VIEWS,
        "by": extrapolate.BY,
        "gpu": tuple(HARDWARE),
        "device": tuple(HARDWARE),
        "law": (decide.OWN, *PUBLISHED_LAWS),
        "axis": (decide.AT_COMPUTE, *decide.COSTS),
        "order": tuple(runs.ORDERS),
        "cost": tuple(cost.UNITS),
    }.get(name, ())

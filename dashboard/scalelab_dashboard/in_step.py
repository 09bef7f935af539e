"""The page in step with the snapshot and the browser: new rows, choices not drawn, the address."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.state import get_session_state

from scalelab_dashboard import held, point, queries

if TYPE_CHECKING:
    from scalelab_dashboard.choice import Choice

LIVE_S = 1.0
WIDGETS = (
    "page",
    "sweep",
    "metric",
    "count_n",
    "count_c",
    "form",
    "level",
    "holdout",
    point.EXCLUDE,
)
"""Keys of the widgets that choose what is shown."""
CHECKED = "asked_at_the_last_check"


def asked() -> dict[str, str | None]:
    """Return what the sidebar and the address ask for, by key."""
    widgets = {key: st.session_state.get(key) for key in WIDGETS}
    return {**widgets, point.RUN: point.chosen()}


@st.fragment(run_every=LIVE_S)
def follow(choice: Choice, drawn: dict[str, str | None]) -> None:
    """Check every second for a new snapshot, and for a choice that the page does not show.

    The browser sends its state with each check. A check that it sends before it hears what a
    button has set undoes that choice here, not there. So the next checks bring the choice back:
    one that two checks in a row ask for is drawn.
    """
    file = choice.table.path if choice.table is not None else None
    if queries.stamp_of(choice.results, file) != choice.stamp and not held.is_held():
        st.rerun()
    now = asked()
    before, st.session_state[CHECKED] = st.session_state.get(CHECKED), now
    if now == before != drawn:
        st.rerun()


def keep_address() -> None:
    """Keep the choices of hidden views in the URL; called last.

    Streamlit removes the parameters of widgets that were not drawn, so a reload would lose them.
    Parameters of unbound widgets stay, and the widgets start from them.
    """
    context = get_script_run_ctx()
    if context is None:
        return
    drawn = context.shared.widget_ids_this_run.snapshot()
    with get_session_state().query_params() as address:
        for name in address:
            binding = address.get_binding_for_param(name)
            if binding is not None and binding.widget_id not in drawn:
                address.unbind_widget(binding.widget_id)

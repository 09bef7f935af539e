"""The Streamlit app of ``scalelab dashboard``: a sidebar with the data choice, and its views.

The view is a query parameter, not a path: with ``/fit``, the browser would look for Streamlit's
files under that path and report each as missing.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable

import streamlit as st

from scalelab_dashboard import glossary, held, in_step, link, share, state, ui
from scalelab_dashboard.choice import Choice
from scalelab_dashboard.views import (
    compare,
    cost,
    data,
    decide,
    domains,
    extrapolate,
    fit,
    mixture,
    overview,
    runs,
)

VIEWS: dict[str, Callable[[Choice], None]] = {
    "Overview": overview.show,
    "Fit": fit.show,
    "Domains": domains.show,
    "Extrapolate": extrapolate.show,
    "Decide": decide.show,
    "Compare": compare.show,
    "Runs": runs.show,
    "Cost and energy": cost.show,
    "Data": data.show,
    "Glossary": glossary.show,
}
# Views that a table does not have: it has no training curves and no cost. (A comment, because
# Streamlit would show a text after an assignment on the page.)
OF_SWEEPS = ("Runs", "Cost and energy")
# Of runs that mix sources of text, and of tables with their weights. Not a docstring, which
# Streamlit would write on the page.
MIXTURE = "Mixture"
UNKNOWN = "view_of_a_link_that_is_not_here"
STYLE = """
<style>
.block-container {padding-top: 2.4rem; padding-bottom: 3rem;}
[data-testid="stSidebarHeader"] {height: 1.5rem;}
h2 {padding-top: 0.2rem;}
[data-testid="stMain"] h3 {font-size: 1.3rem !important;}
[data-testid="stSidebar"] [role="radiogroup"] > label {padding: 0.1rem 0; width: 100%;}
[data-testid="stSidebar"] [role="radiogroup"] p {font-size: 1rem;}
[data-testid="stMain"] [data-testid="stMarkdownContainer"] table {
  display: block; overflow-x: auto;
}
[data-testid="stMain"] [data-testid="stMarkdownContainer"] :is(td, th) {
  padding: 0.25rem 0.45rem !important;
}
[data-testid="stMain"] :is(.dvn-scroller, [data-testid="stMarkdownContainer"] table) {
  scrollbar-color: rgba(128, 128, 128, 0.6) transparent;  /* else only below the pointer */
}
.terminal {
  user-select: all; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0;
  padding: 0.8rem 1rem; border-radius: 0.5rem; background: rgba(128, 128, 128, 0.12);
  font-size: 0.875rem;
}
@media (max-width: 1100px) {
  [data-testid="stMainBlockContainer"] {
    padding-left: clamp(1rem, 4vw, 2rem); padding-right: clamp(1rem, 4vw, 2rem);
  }
  [data-testid="stMain"] h4 {font-size: 1.2rem !important; line-height: 1.35;}
  [data-testid="stMain"] [data-testid="stMarkdownContainer"] table {font-size: 0.875rem;}
  [data-testid="stMain"] [data-testid="stHorizontalBlock"] {flex-wrap: wrap;}
  [data-testid="stMain"] [data-testid="stColumn"] {min-width: 11rem;}
  [data-testid="stHorizontalBlock"]:has([data-testid="stPlotlyChart"], [data-testid="stDataFrame"])
    > [data-testid="stColumn"] {min-width: 100%;}
}
</style>
"""


def main() -> None:
    """Draw the page; Streamlit calls this after every change."""
    st.set_page_config(page_title="scalelab", page_icon="📉", layout="wide")
    st.html(STYLE)
    link.remember()
    held.begin()
    with st.sidebar:
        st.markdown("#### scalelab")
        navigation = st.container()
        st.divider()
    choice = state.choose()
    shown = views_of(choice)
    views = list(shown)
    _named_view(views)
    if _asked_view() not in views:
        # a link or the view before showed what this table does not have
        st.session_state["page"] = views[0]
    with navigation:
        title = st.radio(
            "View",
            views,
            key="page",
            bind="query-params",
            label_visibility="collapsed",
            on_change=lambda: st.session_state.pop(UNKNOWN, None),
        )
    in_step.follow(choice, in_step.asked())
    st.header(title)
    of_link = st.container()
    if UNKNOWN in st.session_state:
        of_link.warning(
            f"There is no view **{ui.as_text(st.session_state[UNKNOWN])}** of "
            f"{ui.as_text(choice.shown)}. Views: {', '.join(views)}."
        )
    shown[title](choice)
    with of_link:
        link.tell(title, st.session_state.get(UNKNOWN))
    glossary.words(title)
    share.show(choice)
    in_step.keep_address()
    settle(title)


def _named_view(views: list[str]) -> None:
    """Choose the view that a link names, in any case; keep a name that is no view, to tell it.

    ``view`` is the tab of the Fit view; where it names a page, the page is meant.
    """
    if "page" in st.session_state:
        return
    known = {view.lower(): view for view in views}
    asked, tab = st.query_params.get("page"), st.query_params.get("view", "")
    if asked is None and tab.lower() in known:
        asked = tab
        del st.query_params["view"]
    if asked is None:
        if tab and tab not in fit.VIEWS:
            st.session_state[UNKNOWN] = tab
    elif (found := known.get(asked.lower())) is not None:
        st.query_params["page"] = st.session_state["page"] = found
    else:
        st.session_state[UNKNOWN] = asked


def _asked_view() -> str:
    """Return the view that the session or the address names; default the first."""
    first = next(iter(VIEWS))
    return st.session_state.get("page") or st.query_params.get("page") or first


def views_of(choice: Choice) -> dict[str, Callable[[Choice], None]]:
    """Return the views of a choice by title.

    Mixture is there only if the runs mix sources, and what only sweeps have is not for a table.
    """
    views: dict[str, Callable[[Choice], None]] = {}
    for view, show in VIEWS.items():
        if choice.table is None or view not in OF_SWEEPS:
            views[view] = show
        if len(views) == 1 and choice.has_mixture:
            views[MIXTURE] = mixture.show
    return views


@st.cache_resource(show_spinner=False)
def settle(view: str) -> None:
    """Exclude the current objects from garbage collection, once per view.

    Streamlit collects after every run of the script. Modules and figures, which live as long as
    the server, would cost 0.1 s each time.
    """
    gc.collect()
    gc.freeze()
    # C++ libraries check for leaks at exit
    atexit.register(gc.unfreeze)


# The fit worker imports this file under another name and must not draw it.
if __name__ == "__main__":
    main()

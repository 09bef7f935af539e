"""The compute slider on a page: computed in the fit worker, moved in the browser."""

from __future__ import annotations

import shlex
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import streamlit as st

from scalelab.report import explorer
from scalelab_dashboard import ui, waiting

if TYPE_CHECKING:
    from scalelab.forecast.allocate import Forecast
    from scalelab_dashboard.choice import Choice

HTML = '<div class="explorer"></div>'
MOUNT = """
export default function ({ data, parentElement }) {
  return explore(parentElement.querySelector(".explorer"), data);
}
"""


def show(choice: Choice, forecast: Forecast | None = None) -> None:
    """Draw the slider, which starts at a forecast or at ten times the largest compute."""
    found = waiting.explorer(choice, forecast)
    if found is not None:
        st.subheader("Move the compute")
        data = found.data(ui.look(), shlex.join(choice.words()))
        _component()(data=data, key="explorer")


@lru_cache(maxsize=1)
def _component() -> Any:
    """Register the component, once per server."""
    return st.components.v2.component(
        "scalelab_explorer", html=HTML, css=explorer.style(), js=explorer.script() + MOUNT
    )

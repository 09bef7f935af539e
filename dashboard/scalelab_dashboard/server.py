"""The ASGI application that ``scalelab dashboard`` serves: the page, with compressed files."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path

from starlette.middleware import Middleware
from starlette.responses import FileResponse
from starlette.routing import Route
from streamlit.starlette import App

from scalelab_dashboard import PDF_SCRIPT, in_order
from scalelab_dashboard.at_once import lifespan
from scalelab_dashboard.compressed import Compressed

USED = (
    *("scalelab_dashboard.app", "duckdb", "scalelab.store.tables", "scalelab.api.reports"),
    *("plotly.graph_objects", "plotly.io", "plotly.subplots", "plotly.graph_objs.contour"),
)
"""Modules of the first view. They load while the browser starts, not when it asks."""


def _load() -> None:
    for name in USED:
        importlib.import_module(name)


in_order.install()
threading.Thread(target=_load, daemon=True).start()
app = App(
    Path(__file__).with_name("app.py"),
    lifespan=lifespan,
    middleware=[Middleware(Compressed)],
    # The script that writes PDFs loads when a figure is saved as one.
    routes=[Route(f"/{PDF_SCRIPT.name}", lambda _: FileResponse(PDF_SCRIPT))],
)

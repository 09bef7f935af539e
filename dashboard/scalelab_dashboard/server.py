"""The ASGI application that ``scalelab dashboard`` serves: the page, with compressed files."""

from __future__ import annotations

from pathlib import Path

from starlette.middleware import Middleware
from streamlit.starlette import App

from scalelab_dashboard.compressed import Compressed

app = App(Path(__file__).with_name("app.py"), middleware=[Middleware(Compressed)])

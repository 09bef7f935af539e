"""The first visit: its bytes, and its time over that of an empty Streamlit app in the same run."""

from __future__ import annotations

import base64
import statistics
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.browser.test_speed import SCREEN, empty_words, first_figure, keep

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]

ROUNDS = 5
LIMITS = {"over_empty_s": 3.0, "reload_s": 1.2, "first_view_mb": 2.5}


def on_the_wire(event: dict[str, Any]) -> float:
    """Return the bytes of a message, compressed by itself; the browser reports it unpacked."""
    text = event["response"]["payloadData"]
    is_binary = event["response"]["opcode"] == 2
    return len(zlib.compress(base64.b64decode(text) if is_binary else text.encode(), 6))


def visit_once(
    context: BrowserContext, url: str, wait: Callable[[Page], None]
) -> tuple[float, float, float]:
    """Return seconds of a first visit and of a reload, and the megabytes of the first visit."""
    page = context.new_page()
    page.set_viewport_size(SCREEN)
    line, received = context.new_cdp_session(page), [0.0]

    def add(count: float) -> None:
        received[0] += count

    line.send("Network.enable")
    line.on("Network.loadingFinished", lambda event: add(event["encodedDataLength"]))
    line.on("Network.webSocketFrameReceived", lambda event: add(on_the_wire(event)))
    started = time.perf_counter()
    page.goto(url, wait_until="commit")
    wait(page)
    first, megabytes = time.perf_counter() - started, received[0] / 1e6
    started = time.perf_counter()
    page.reload(wait_until="commit")
    wait(page)
    again = time.perf_counter() - started
    context.close()
    return first, again, megabytes


def test_the_first_visit(
    serve: Callable[..., Any],
    stores: ModuleType,
    profile: Callable[[], BrowserContext],
    empty_app: str,
    tmp_path: Path,
) -> None:
    stores.generated(tmp_path / "results", 120)
    server = serve(tmp_path / "results")

    visit_once(profile(), server.url, first_figure)  # the first fit
    page, empty = [], []
    for _ in range(ROUNDS):
        empty.append(visit_once(profile(), empty_app, empty_words))
        page.append(visit_once(profile(), server.url, first_figure))
    median = [
        [statistics.median(part) for part in zip(*each, strict=True)] for each in (page, empty)
    ]
    figures = {
        "over_empty_s": median[0][0] - median[1][0],
        "first_view_s": median[0][0],
        "empty_s": median[1][0],
        "reload_s": median[0][1],
        "first_view_mb": median[0][2],
        "empty_mb": median[1][2],
    }
    keep("first visit, 120 runs", figures, LIMITS)

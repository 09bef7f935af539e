"""A real server and a real browser: the system's Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "results" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
START_S = 180
SETTLE_MS = 120_000


@dataclass
class Seen:
    """What the browser noticed besides the page itself."""

    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class Server:
    """A running ``scalelab dashboard``."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def at(self, **query: str) -> str:
        """Return the address of a view with its choices."""
        return f"{self.url}/?{urlencode(query)}"


@pytest.fixture(scope="session")
def stores() -> ModuleType:
    """Return the maker of published snapshots, shared with the page's other tests."""
    path = ROOT / "tests" / "dashboard" / "stores.py"
    spec = importlib.util.spec_from_file_location("stores", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Return the system's Chromium; without one, skip outside CI and fail within."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        message = f"no browser: none of {', '.join(NAMES)} is installed (`make system` does it)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Return a starter of the real command; every server ends with the session."""
    servers: dict[tuple[str, ...], Server] = {}

    def start(*words: str) -> Server:
        if words in servers:
            return servers[words]
        port = _free_port()
        log = tmp_path_factory.mktemp("server") / "log.txt"
        command = [sys.executable, "-c", "from scalelab.cli.main import run; run()", "dashboard"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, "--port", str(port), *words], stdout=out, stderr=subprocess.STDOUT
            )
        server = Server(url=f"http://127.0.0.1:{port}", process=process, log=log)
        servers[words] = server
        _wait_for(server)
        return server

    yield start
    for server in servers.values():
        server.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(10)
        server.process.kill()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., tuple[Page, Seen]]]:
    """Return an opener of a page in a fresh context that records foreign requests and errors."""
    contexts = []

    def open_page(url: str, *, theme: str = "light") -> tuple[Page, Seen]:
        context = browser.new_context(
            viewport={"width": 1440, "height": 1000},
            color_scheme=theme,  # type: ignore[arg-type]
            accept_downloads=True,
        )
        contexts.append(context)
        page, seen = context.new_page(), Seen()
        own = url.split("/?")[0]
        page.on(
            "request",
            lambda r: (
                None
                if r.url.startswith((own, "data:", "blob:", own.replace("http", "ws")))
                else seen.foreign.append(r.url)
            ),
        )
        page.on("console", lambda m: seen.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.goto(url)
        return page, seen

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def settle() -> Callable[[Page, str], None]:
    """Return a waiter for a view to be whole: its heading there, its fit ended, nothing running."""

    def wait(page: Page, view: str) -> None:
        page.get_by_role("heading", name=view, exact=True, level=2).wait_for(timeout=SETTLE_MS)
        page.wait_for_function(
            "() => document.querySelector('[data-testid=stApp]')"
            ".getAttribute('data-test-script-state') === 'notRunning'"
            " && !document.body.innerText.includes('fills in by itself')",
            timeout=SETTLE_MS,
        )
        page.wait_for_timeout(400)

    return wait


@pytest.fixture(scope="session")
def picture() -> Callable[[Page, str], Path]:
    """Return a photographer of a whole view, into ``results/screenshots``."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def take(page: Page, name: str) -> Path:
        height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
        page.set_viewport_size({"width": 1440, "height": min(3600, max(900, height + 40))})
        page.wait_for_timeout(500)
        path = SCREENSHOTS / f"{name}.png"
        page.screenshot(path=path)
        page.set_viewport_size({"width": 1440, "height": 1000})
        return path

    return take


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(server: Server) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert server.process.poll() is None, server.log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.url}/_stcore/health"):
            return
        time.sleep(0.1)
    raise AssertionError(f"no server after {START_S} s: {server.log.read_text()}")

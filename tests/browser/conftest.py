"""A real server and a real browser: the system's Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import importlib.util
import random
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
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    TimeoutError,
    expect,
    sync_playwright,
)

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
PORTS = (20_000, 32_000)
"""Below those from which the system takes one for each connection."""
START_S = 180
HARMLESS = ("Cannot send rerun backMessage when disconnected from server.",)
"""What Streamlit reports as an error where a part that updates by itself asks while the page is
left or the line is down for a moment: it asks again at its next turn."""
PATIENCE_MS = 300_000
"""How long to wait for anything: what is asserted must not depend on the machine's speed."""
WIDTH, HEIGHT = 1440, 2600
WHOLE = """view => {
  const app = document.querySelector('[data-testid=stApp]');
  const charts = [...document.querySelectorAll('[data-testid=stPlotlyChart]')];
  return app !== null
    && app.getAttribute('data-test-script-state') === 'notRunning'
    && [...document.querySelectorAll('h2')].some(e => e.textContent.trim() === view)
    && !document.querySelector('[data-testid=stSkeleton], [data-stale=true]')
    && charts.every(e => e.querySelector('.main-svg'))
    && document.fonts.status === 'loaded'
    && !document.body.innerText.includes('updates when it is done');
}"""
MISSING = """view => {
  const all = selector => [...document.querySelectorAll(selector)];
  const app = document.querySelector('[data-testid=stApp]');
  return {
    script: app && app.getAttribute('data-test-script-state'),
    headings: all('h2').map(e => e.textContent.trim()),
    skeletons: all('[data-testid=stSkeleton]').length,
    stale: all('[data-stale=true]').map(e => e.innerText.slice(0, 80)),
    fonts: document.fonts.status,
    not_drawn: all('[data-testid=stPlotlyChart]').filter(e => !e.querySelector('.main-svg')).length,
    waiting: document.body.innerText.split('\\n').filter(e => e.includes('when it is done')),
  };
}"""
"""What of `WHOLE` does not hold."""


@dataclass
class Seen:
    """What the browser recorded: foreign requests, errors, dialogs."""

    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class Server:
    """A running ``scalelab dashboard``."""

    url: str
    results: Path
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
def browser(give_up: Callable[[str], None]) -> Iterator[Browser]:
    """Return the system's Chromium; without one, skip with the reason (see `give_up`)."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        give_up(f"no browser: none of {', '.join(NAMES)} is installed (`make system` does it)")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path, args=list(FLAGS), timeout=PATIENCE_MS
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Return a starter of the real command; every server ends with the session."""
    servers: list[Server] = []

    def start(results: Path, *words: str) -> Server:
        port = _free_port()
        log = tmp_path_factory.mktemp("server") / "log.txt"
        command = [sys.executable, "-c", "from scalelab.cli.main import run; run()", "dashboard"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, "--results", str(results), "--port", str(port), *words],
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        server = Server(url=f"http://127.0.0.1:{port}", results=results, process=process, log=log)
        servers.append(server)
        _wait_for(server)
        return server

    yield start
    for server in servers:
        server.process.terminate()
    for server in servers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(10)
        server.process.kill()


@pytest.fixture(scope="session")
def empty_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of an empty Streamlit app, the yardstick of the page's times."""
    app = tmp_path_factory.mktemp("empty") / "empty.py"
    app.write_text("import streamlit as st\nst.write('an empty app')\n")
    port = _free_port()
    words = ["--server.address", "127.0.0.1", "--server.port", str(port)]
    words += ["--server.headless", "true", "--server.fileWatcherType", "none"]
    words += ["--browser.gatherUsageStats", "false"]
    server = subprocess.Popen([sys.executable, "-m", "streamlit", "run", str(app), *words])
    url = f"http://127.0.0.1:{port}"
    for _ in range(10 * START_S):
        try:
            urllib.request.urlopen(f"{url}/_stcore/health")
            break
        except OSError:
            time.sleep(0.1)
    yield url
    server.terminate()
    server.wait(10)


@pytest.fixture(scope="session")
def address(
    serve: Callable[..., Server],
    stores: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Callable[[str], Server]:
    """Return a finder of the server for each kind of store; the sweeps share one folder."""
    made: dict[str, Server] = {}

    def find(kind: str) -> Server:
        name = kind if kind in ("empty", "table") else "sweeps"
        if name not in made:
            results = tmp_path_factory.mktemp(name)
            words: tuple[str, ...] = ()
            if name == "table":
                tables = request.getfixturevalue("tables")
                words = ("--from", str(tables / "chinchilla" / "data.csv"))
            elif name == "sweeps":
                stores.generated(results, 10_000)
                stores.generated(results, 40, name=stores.HOSTILE_NAME, is_added=True)
                stores.running(results, is_added=True)
                stores.generated(results, 120, name="demo", is_added=True)
            made[name] = serve(results, *words)
        return made[name]

    return find


@pytest.fixture(scope="session")
def contexts(browser: Browser) -> Iterator[Callable[[str], BrowserContext]]:
    """Return a maker of one browser profile a theme: its cache serves every test."""
    made: dict[str, BrowserContext] = {}

    def get(theme: str) -> BrowserContext:
        if theme not in made:
            made[theme] = new_context(browser, theme)
        return made[theme]

    yield get
    for context in made.values():
        context.close()


@pytest.fixture(scope="session")
def profile(browser: Browser) -> Callable[[], BrowserContext]:
    """Return a maker of fresh browser profiles; the caller closes them."""
    return lambda: new_context(browser, "light")


@pytest.fixture
def visit(contexts: Callable[[str], BrowserContext]) -> Iterator[Callable[..., tuple[Page, Seen]]]:
    """Return an opener of a page that records foreign requests, errors and dialogs."""
    pages: list[Page] = []

    def open_page(url: str, *, theme: str = "light") -> tuple[Page, Seen]:
        page, seen = contexts(theme).new_page(), Seen()
        pages.append(page)
        watch(page, seen, url.split("/?")[0])
        page.goto(url)
        return page, seen

    yield open_page
    for page in pages:
        page.close()


@pytest.fixture
def open_offline(browser: Browser) -> Iterator[Callable[[Path], tuple[Page, list[str], list[str]]]]:
    """Return an opener of a file with the network off; it keeps a picture, requests and errors."""
    context = new_context(browser, "light")
    context.set_offline(True)

    def open_file(path: Path) -> tuple[Page, list[str], list[str]]:
        asked: list[str] = []
        errors: list[str] = []
        page = context.new_page()
        page.on("request", lambda r: asked.append(r.url) if not r.url.startswith("data:") else None)
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message) or dialog.dismiss())
        page.goto(path.as_uri())
        return page, asked, errors

    yield open_file
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for page in context.pages:
        page.screenshot(path=SCREENSHOTS / "report.png", full_page=True)
    context.close()


def new_context(browser: Browser, theme: str) -> BrowserContext:
    """Return a fresh browser profile, tall enough for a whole view."""
    context = browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT},
        color_scheme=theme,  # type: ignore[arg-type]
        accept_downloads=True,
    )
    context.set_default_timeout(PATIENCE_MS)
    return context


def watch(page: Page, seen: Seen, own: str) -> None:
    """Record what a page asks of any other host, its errors, and dialogs that it opens."""
    allowed = (f"{own}/", "data:", "blob:", f"{own}/".replace("http", "ws", 1))

    def ask(url: str) -> None:
        if not url.startswith(allowed):
            seen.foreign.append(url)

    def warn(dialog: Dialog) -> None:
        seen.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("request", lambda request: ask(request.url))
    page.on("websocket", lambda socket: ask(socket.url))

    def hear(message: ConsoleMessage) -> None:
        if message.type == "error" and message.text not in HARMLESS:
            seen.errors.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("dialog", warn)


@pytest.fixture(scope="session")
def settle() -> Callable[[Page, str], None]:
    """Return a waiter for a view to be whole: heading, fit, figures and fonts; nothing moves."""

    def wait(page: Page, view: str) -> None:
        try:
            page.wait_for_function(WHOLE, arg=view, timeout=PATIENCE_MS)
        except TimeoutError as error:
            raise AssertionError(f"{view} is not whole: {page.evaluate(MISSING)}") from error

    return wait


@pytest.fixture(scope="session")
def picture() -> Callable[[Page, str], Path]:
    """Return a photographer of a whole view, into ``results/screenshots``."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def take(page: Page, name: str) -> Path:
        height = page.get_by_test_id("stMainBlockContainer").evaluate("e => e.offsetHeight")
        path = SCREENSHOTS / f"{name}.png"
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": min(HEIGHT, max(600, height))}
        page.screenshot(path=path, clip=clip)  # type: ignore[arg-type]
        return path

    return take


def _free_port() -> int:
    """Return a port that no connection of the browser takes before the server starts."""
    while True:
        port = random.randrange(*PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _wait_for(server: Server) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert server.process.poll() is None, server.log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.url}/_stcore/health"):
            return
        time.sleep(0.1)
    raise AssertionError(f"no server after {START_S} s: {server.log.read_text()}")

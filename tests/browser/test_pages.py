"""Every view in the browser: no exception, no console error, no request to any other host."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import Page

from scalelab.sweep.spec import sweep_from_mapping
from scalelab.units import format_quantity

VIEWS = ("Overview", "Fit", "Extrapolate", "Decide", "Runs", "Cost and energy", "Data")
KINDS = ("empty", "demo", "running", "10k", "table")


@pytest.fixture(scope="session")
def address(
    serve: Callable[..., Any],
    stores: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Path | None], Any]:
    """Return a starter of the server for each kind of store."""
    made: dict[str, tuple[str, ...]] = {}

    def start(kind: str, shared: Path | None = None) -> Any:
        if kind not in made:
            results = tmp_path_factory.mktemp(kind)
            makers = {
                "demo": lambda: stores.generated(results, 120, name="demo"),
                "running": lambda: stores.running(results),
                "10k": lambda: stores.generated(results, 10_000),
            }
            makers.get(kind, lambda: None)()
            words = ["--results", str(results)]
            if kind == "table":
                assert shared is not None
                words += ["--from", str(shared / "chinchilla_svg" / "data.csv")]
            made[kind] = tuple(words)
        return serve(*made[kind])

    return start


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_every_view_renders_clean(
    kind: str,
    address: Callable[..., Any],
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
    picture: Callable[[Page, str], Path],
    request: pytest.FixtureRequest,
) -> None:
    server = address(kind, request.getfixturevalue("shared_data") if kind == "table" else None)
    theme = "dark" if kind == "running" else "light"
    for view in VIEWS:
        page, seen = visit(server.at(page=view), theme=theme)
        settle(page, view)
        assert page.get_by_test_id("stException").count() == 0, view
        assert seen.errors == [], view
        assert seen.foreign == [], view
        figures = page.get_by_test_id("stPlotlyChart")
        for i in range(figures.count()):
            label = figures.nth(i).evaluate(
                "e => e.getAttribute('aria-label') || "
                "(e.querySelector('[aria-label]') || {getAttribute: () => ''})"
                ".getAttribute('aria-label')"
            )
            assert label, f"figure {i} of {view} has no alternative text"
        picture(page, f"{kind}-{view.split()[0].lower()}")
        page.context.close()


def test_a_person_reads_a_decision_by_clicks(
    address: Callable[..., Any],
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
    stores: ModuleType,
    tmp_path: Path,
) -> None:
    server = address("demo")
    page, seen = visit(server.url)
    settle(page, "Overview")
    assert page.get_by_text("demo", exact=False).count()
    assert page.get_by_test_id("stPlotlyChart").count() >= 2
    page.get_by_test_id("stSidebar").get_by_text("Extrapolate", exact=True).click()
    settle(page, "Extrapolate")
    target = page.get_by_label("Target", exact=True)
    target.fill("2e24")
    target.press("Enter")
    page.get_by_text("--predict").first.wait_for()
    page.wait_for_function("() => document.body.innerText.includes('C=2e24')")
    settle(page, "Extrapolate")
    command = page.get_by_test_id("stCode").first.inner_text().split()
    told = json.loads(
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from scalelab.cli.main import run; run()",
                *command[1:],
                "--json",
            ],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
    )["predictions"][0]
    text = page.get_by_test_id("stMain").inner_text()
    for name in ("n_params", "n_tokens"):
        value, low, high = (format_quantity(told[name + end]) for end in ("", "_low", "_high"))
        assert re.search(rf"{re.escape(value)}\s+{re.escape(low)} to {re.escape(high)}", text)
    assert f"{told['loss_nats']:.4f}" in text
    assert f"{told['pred_low']:.4f} to {told['pred_high']:.4f}" in text
    with page.expect_download() as download:
        page.get_by_role("button", name="Save this run as a sweep file").click()
    saved = tmp_path / "target.toml"
    download.value.save_as(saved)
    spec = sweep_from_mapping(tomllib.loads(saved.read_text()), source="the saved file")
    assert spec.n_params == pytest.approx((told["n_params"],), rel=1e-5)
    assert seen.errors == []
    assert seen.foreign == []


def test_a_link_carries_every_choice_and_reload_keeps_it(
    address: Callable[..., Any],
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
) -> None:
    server = address("demo")
    choices = {"page": "Extrapolate", "target": "7B", "by": "Parameters N", "level": "0.95"}
    page, _ = visit(server.at(**choices))
    settle(page, "Extrapolate")
    assert page.get_by_label("Target", exact=True).input_value() == "7B"
    assert "--predict N=7B" in page.get_by_test_id("stCode").first.inner_text()
    assert "--level 0.95" in page.get_by_test_id("stCode").first.inner_text()
    page.reload()
    settle(page, "Extrapolate")
    assert page.get_by_label("Target", exact=True).input_value() == "7B"
    page.get_by_test_id("stSidebar").get_by_text("Fit", exact=True).click()
    settle(page, "Fit")
    page.get_by_role("radio", name="Residuals").or_(page.get_by_text("Residuals")).first.click()
    page.wait_for_function("() => location.search.includes('view=Residuals')")
    page.get_by_test_id("stSidebar").get_by_text("Extrapolate", exact=True).click()
    settle(page, "Extrapolate")
    assert page.get_by_label("Target", exact=True).input_value() == "7B"
    found = parse_qs(urlparse(page.url).query)
    assert {name: values[0] for name, values in found.items()}.items() >= choices.items()


def test_a_new_snapshot_appears_without_a_reload(
    serve: Callable[..., Any],
    stores: ModuleType,
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
    tmp_path: Path,
) -> None:
    stores.running(tmp_path)
    server = serve("--results", str(tmp_path))
    page, seen = visit(server.at(page="Runs", find="0000000000"))
    settle(page, "Runs")
    page.get_by_text("80 of 80 runs").wait_for()
    stores.generated(tmp_path, 60, name="under-way")
    page.get_by_text("60 of 60 runs").wait_for(timeout=20_000)
    assert page.get_by_label("Find").input_value() == "0000000000"
    assert seen.errors == []


def test_hostile_names_change_nothing(
    serve: Callable[..., Any],
    stores: ModuleType,
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
    tmp_path: Path,
) -> None:
    table = tmp_path / "hostile.csv"
    table.write_text(
        'n_params,n_tokens,loss,"<img src=x onerror=alert(1)>"\n'
        + "".join(
            f"{n:.0f},{d:.0f},{2 + 400 / n**0.34 + 400 / d**0.28:.5f},[x](javascript:alert(1))\n"
            for n in (1e7, 3e7, 1e8)
            for d in (1e9, 3e9, 1e10)
        )
        + "x,y,<script>alert(1)</script>,z\n"
    )
    server = serve("--results", str(tmp_path / "none"), "--from", str(table))
    page, seen = visit(server.at(page="Data"))
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    settle(page, "Data")
    page.get_by_text("9 rows can be used, 1 cannot").wait_for()
    assert page.locator("[data-testid=stMain] img[src='x']").count() == 0
    assert page.locator("a[href^='javascript']").count() == 0
    assert dialogs == []
    assert seen.errors == []


def test_only_this_machine_is_served(address: Callable[..., Any]) -> None:
    server = address("demo")
    assert b" 403 " in _handshake(server.url, "evil.example")
    assert b" 101 " in _handshake(server.url, "127.0.0.1")
    listening = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True, check=True)
    port = f"{int(server.url.rsplit(':', 1)[1]):04X}"
    hosts = {
        line.split()[1].split(":")[0]
        for line in listening.stdout.splitlines()[1:]
        if line.split()[1].endswith(f":{port}") and line.split()[3] == "0A"
    }
    assert hosts == {"0100007F"}


def _handshake(url: str, host: str) -> bytes:
    """Return the status line of a WebSocket handshake that names this host."""
    import socket

    port = int(url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(
            f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        return connection.recv(200).split(b"\r\n")[0]

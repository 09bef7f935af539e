"""Every view in the browser: no exception, no console error, no request to any other host."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect
from scalelab_dashboard.app import OF_SWEEPS
from scalelab_dashboard.held import HELD_S
from streamlit.proto.BackMsg_pb2 import BackMsg

pytestmark = pytest.mark.timeout(1200)

# What each view is opened with, the widget that shows it, and what it then says.
CHOICES: dict[str, tuple[dict[str, str], str, str]] = {
    "Overview": ({"level": "80"}, "Level of the intervals, %", "80"),
    "Fit": ({"form": "tied"}, "Law", "tied"),
    "Extrapolate": ({"target": "7B", "by": "Parameters N"}, "Target", "7B"),
    "Decide": ({"max_usd": "2M"}, "Money, US dollars", "2M"),
    "Compare": ({"max_flops": "1e20"}, "At compute, FLOP", "1e20"),
    "Runs": ({"find": "a"}, "Find", "a"),
    "Cost and energy": ({"cost": "Energy"}, "Show", "Energy"),
    "Data": ({"holdout": "n_params > 1e9"}, "Hold out runs (SQL condition)", "n_params > 1e9"),
}
LAST_MINIMUM = """() => {
  const plot = document.querySelector('.js-plotly-plot');
  const trace = plot._fullData.find(each => each.name.startsWith('minimum'));
  const {xaxis, yaxis} = plot._fullLayout;
  const box = plot.getBoundingClientRect();
  return [
    box.left + xaxis._offset + xaxis.d2p(trace.x.at(-1)),
    box.top + yaxis._offset + yaxis.d2p(trace.y.at(-1)),
  ];
}"""
SWEEPS = {"demo": "demo", "running": "half-done", "10k": "generated"}
PLACE = """() => {
  const frame = document.querySelector('[data-testid=stMain]');
  const below = [...frame.querySelectorAll('[data-testid=stDataFrame], h3')].map(
    e => Math.round(e.getBoundingClientRect().top));
  return [frame.scrollTop, ...below];
}"""
"""How far the reader has scrolled, and where tables and headings are in the window."""
WATCH_WAITS = """() => {
  const frame = document.querySelector('[data-testid=stMain]');
  const started = performance.now();
  window.waits = [];
  const look = () => {
    const found = frame.innerText.match(/.*updates when it is done.*/);
    if (found) window.waits.push([(performance.now() - started) / 1000, found[0]]);
  };
  new MutationObserver(look).observe(frame, {childList: true, subtree: true, characterData: true});
}"""
KINDS = ("empty", "demo", "running", "10k", "table")


@pytest.mark.parametrize("kind", KINDS)
def test_every_view_renders_clean_from_a_link(
    kind: str,
    address: Callable[[str], Any],
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
    picture: Callable[[Page, str], Path],
) -> None:
    server = address(kind)
    theme = "dark" if kind == "running" else "light"
    sweep = {"sweep": SWEEPS[kind]} if kind in SWEEPS else {}
    page, seen = visit(server.url, theme=theme)
    for view, (query, label, text) in CHOICES.items():
        if kind == "table" and view in OF_SWEEPS:
            continue
        if kind != "demo":
            # The state that most people see, the one to keep a picture of, and one fit for all.
            query = {}
        page.goto(server.at(page=view, **sweep, **query))
        settle(page, view)
        assert page.get_by_test_id("stException").count() == 0, view
        assert seen.errors == [], view
        assert seen.foreign == [], view
        for i, figure in enumerate(page.get_by_test_id("stPlotlyChart").all()):
            said = figure.locator("[aria-label]").or_(figure).first.get_attribute("aria-label")
            assert said, f"figure {i} of {view} has no alternative text"
        widget = page.get_by_label(label, exact=True)
        if query and widget.count():
            expect(widget.first).to_have_value(text)
        picture(page, f"{kind}-{view.split()[0].lower()}")


def test_what_a_person_changes_survives_reload_and_navigation(
    address: Callable[[str], Any], visit: Callable[..., Any], settle: Callable[[Page, str], None]
) -> None:
    page, seen = visit(address("demo").at(page="Extrapolate"))
    settle(page, "Extrapolate")
    page.get_by_label("Level of the intervals, %", exact=True).click()
    page.get_by_role("option", name="95").click()
    target = page.get_by_label("Target", exact=True)
    target.fill("3e23")
    target.press("Enter")
    page.wait_for_function(
        "() => location.search.includes('max_flops=3e23') && location.search.includes('level=95')"
    )
    command = page.locator(".terminal").first
    expect(command).to_contain_text("--predict C=3e23")
    expect(command).to_contain_text("--level 0.95")
    page.reload()
    settle(page, "Extrapolate")
    expect(command).to_contain_text("--predict C=3e23")
    sidebar = page.get_by_test_id("stSidebar")
    sidebar.get_by_text("Fit", exact=True).click()
    settle(page, "Fit")
    page.get_by_test_id("stMain").get_by_text("Residuals", exact=True).click()
    page.wait_for_function("() => location.search.includes('view=Residuals')")
    for view in ("Runs", "Overview", "Decide"):
        sidebar.get_by_text(view, exact=True).click()
        settle(page, view)
    # Choices of views that are not shown stay in the address: a reload here loses none of them.
    page.reload()
    settle(page, "Decide")
    link = page.url
    for kept in ("sweep=demo", "level=95", "max_flops=3e23", "view=Residuals"):
        assert kept in link
    again, _ = visit(link)
    settle(again, "Decide")
    for shown in (page, again):
        expect(shown.get_by_label("Level of the intervals, %", exact=True)).to_have_value("95")
        shown.get_by_test_id("stSidebar").get_by_text("Fit", exact=True).click()
        settle(shown, "Fit")
        main = shown.get_by_test_id("stMain")
        expect(main.get_by_text("Predicted over observed")).to_be_visible()
        shown.get_by_test_id("stSidebar").get_by_text("Extrapolate", exact=True).click()
        settle(shown, "Extrapolate")
        expect(shown.get_by_label("Target", exact=True)).to_have_value("3e23")
    assert seen.errors == []
    assert seen.foreign == []


def test_a_new_snapshot_appears_without_a_reload_and_nobody_loses_their_place(
    address: Callable[[str], Any],
    stores: ModuleType,
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
) -> None:
    server = address("empty")
    page, seen = visit(server.at(page="Runs"))
    settle(page, "Runs")
    expect(page.get_by_text("There are no results yet.")).to_be_visible()
    try:
        stores.running(server.results)
        page.get_by_text("80 of 80 runs").wait_for()
        page.get_by_label("Find", exact=True).fill("<img")
        page.get_by_label("Find", exact=True).press("Enter")
        page.get_by_text("2 of 80 runs").wait_for()
        settle(page, "Runs")
        place = scrolled(page, 120)
        stores.running(server.results, n_runs=4_000)  # whose fit takes longer than the table
        page.get_by_text("2 of 4,000 runs").wait_for()
        assert page.evaluate(PLACE) == place
        settle(page, "Runs")
        assert page.evaluate(PLACE) == place
        expect(page.get_by_label("Find", exact=True)).to_have_value("<img")
    finally:
        stores.withdraw(server.results)
    assert seen.errors == []


@pytest.mark.parametrize("view", ["Overview", "Extrapolate"])
def test_answers_stay_until_those_about_new_runs_are_there(
    view: str,
    address: Callable[[str], Any],
    stores: ModuleType,
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
) -> None:
    server = address("empty")
    stores.running(server.results)
    try:
        page, seen = visit(server.at(page=view))
        settle(page, view)
        place = scrolled(page, 400)
        page.evaluate(WATCH_WAITS)
        stores.running(server.results, n_runs=60)
        page.locator(".gtitle", has_text="46 runs from sweep half-done").first.wait_for()
        settle(page, view)
        waits = page.evaluate("window.waits")
        assert [words for after_s, words in waits if after_s < HELD_S] == []
        if not waits:
            # What stands higher on the page may have grown: these runs have a warning.
            assert page.evaluate(PLACE)[0] == place[0]
    finally:
        stores.withdraw(server.results)
    assert seen.errors == []


def scrolled(page: Page, pixels: int) -> list[float]:
    """Scroll a window that is lower than the view, and return the place that the reader is at."""
    page.set_viewport_size({"width": 1440, "height": 500})
    page.wait_for_function("() => innerHeight === 500")
    page.get_by_test_id("stMain").evaluate("(e, by) => e.scrollTop = by", pixels)
    place: list[float] = page.evaluate(PLACE)
    assert place[0] == pixels
    return place


def test_a_search_that_arrives_when_the_fit_is_done_is_obeyed(
    address: Callable[[str], Any],
    stores: ModuleType,
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
) -> None:
    """The browser asks for the part of the page that it shows, which the server redraws then."""
    server = address("empty")
    page, _ = visit("about:blank")
    held: list[bytes] = []
    servers: list[WebSocketRoute] = []

    def connect(route: WebSocketRoute) -> None:
        to_server = route.connect_to_server()
        servers.append(to_server)

        def forward(data: str | bytes) -> None:
            message = BackMsg.FromString(data if isinstance(data, bytes) else data.encode())
            found = [
                each
                for each in message.rerun_script.widget_states.widgets
                if each.id.endswith("-find") and each.string_value
            ]
            if found and not message.rerun_script.is_auto_rerun:
                held.append(message.SerializeToString())
                return
            for each in found:
                each.string_value = ""  # a check that left before the search
            to_server.send(message.SerializeToString())

        route.on_message(forward)

    page.route_web_socket("**/_stcore/stream*", connect)
    try:
        stores.generated(server.results, 4_001)
        page.goto(server.at(page="Runs"))
        waits = page.get_by_text("Looking for outliers")
        waits.wait_for()
        page.get_by_label("Find", exact=True).fill("no run has this name")
        page.get_by_label("Find", exact=True).press("Enter")
        waits.wait_for(state="detached")
        settle(page, "Runs")
        assert len(held) == 1
        servers[-1].send(held[0])
        page.get_by_text("0 of 4,001 runs").wait_for(timeout=60_000)
    finally:
        stores.withdraw(server.results)


def test_hostile_text_is_shown_and_never_obeyed(
    address: Callable[[str], Any],
    stores: ModuleType,
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
    tmp_path: Path,
) -> None:
    header = "<img src=x onerror=alert(1)>"
    file = tmp_path / "a**b**$x^2$<i>.csv"
    rows = [
        f"{n:.0f},{d:.0f},{2 + 400 / n**0.34 + 400 / d**0.28:.5f},[x](javascript:alert(1)) $x^2$\n"
        for n in (1e7, 3e7, 1e8)
        for d in (1e9, 3e9, 1e10)
    ]
    wrong = "x,y,<script>alert(1)</script>,'; DROP TABLE runs; --\n"
    file.write_text(f'n_params,n_tokens,loss,"{header}"\n' + "".join(rows) + wrong)
    server = address("demo")
    page, seen = visit(server.at(page="Data"))
    settle(page, "Data")
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_text("9 usable rows, 1 unusable").wait_for()
    settle(page, "Data")
    page.get_by_role("button", name="Use this table in all views").click()
    settle(page, "Overview")
    for view in CHOICES:
        if view in OF_SWEEPS:
            continue
        page.get_by_test_id("stSidebar").get_by_text(view, exact=True).click()
        settle(page, view)
        assert_inert(page, seen)
    for view in ("Overview", "Fit", "Runs", "Cost and energy"):
        page.goto(server.at(page=view, sweep=stores.HOSTILE_NAME))
        settle(page, view)
        sweep = page.get_by_role("combobox", name="Sweep or table")
        expect(sweep).to_have_value(stores.HOSTILE_NAME)
        assert_inert(page, seen)
    page.goto(server.at(page="Runs", sweep="half-done", find="DROP TABLE"))
    settle(page, "Runs")
    page.get_by_text("2 of 80 runs").wait_for()
    assert_inert(page, seen)
    for view in ("Overview", "Fit", "Extrapolate"):
        page.goto(
            server.at(page=view, sweep="demo", holdout="1); DROP TABLE runs; -- <b>$x^2$</b>")
        )
        settle(page, view)
        expect(page.get_by_text("Got", exact=False).first).to_be_visible()
        assert_inert(page, seen)


def assert_inert(page: Page, seen: Any) -> None:
    """Assert that no text of a file became an element, a link, a formula or a dialog."""
    main = page.get_by_test_id("stMain")
    assert main.locator("img[src='x'], script, a[href^='javascript'], main i, main b").count() == 0
    formulas = main.locator(".katex").all_inner_texts()
    assert not [text for text in formulas if "x" in text], formulas
    assert page.get_by_test_id("stException").count() == 0
    assert seen.errors == []
    assert seen.foreign == []


def test_a_pointer_reads_b_and_the_keyboard_reaches_everything(
    address: Callable[[str], Any], visit: Callable[..., Any], settle: Callable[[Page, str], None]
) -> None:
    page, seen = visit(address("demo").at(page="Overview", sweep="demo"))
    settle(page, "Overview")
    x, y = page.evaluate(LAST_MINIMUM)
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    hover = page.locator(".hoverlayer text").first
    expect(hover).to_contain_text("B")
    assert "G" not in (hover.text_content() or "")
    # Sidebar by keyboard: the chosen view has the focus, arrows go to the next.
    page.get_by_role("radio", name="Overview").focus()
    page.keyboard.press("ArrowDown")
    settle(page, "Fit")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "() => document.activeElement.getAttribute('aria-label')"
                " || document.activeElement.innerText || document.activeElement.role"
            )
        )
    for wanted in ("Sweep or table", "Law", "Save as CSV", "Save as LaTeX"):
        assert any(wanted in str(name) for name in reached), (wanted, reached)
    assert seen.errors == []


def test_only_this_machine_is_served(address: Callable[[str], Any]) -> None:
    server = address("demo")
    assert b" 403 " in _handshake(server.url, "evil.example")
    assert b" 101 " in _handshake(server.url, "127.0.0.1")
    port = f"{int(server.url.rsplit(':', 1)[1]):04X}"
    rows = [
        line.split()
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
    ]
    listening = {
        row[1].split(":")[0] for row in rows if row[1].endswith(f":{port}") and row[3] == "0A"
    }
    assert listening == {"0100007F"}
    assert "gatherUsageStats=false" in Path(f"/proc/{server.process.pid}/cmdline").read_text()


def _handshake(url: str, host: str) -> bytes:
    """Return the status line of a WebSocket handshake that names this host."""
    port = int(url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(
            f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        with connection.makefile("rb") as answer:
            return answer.readline()

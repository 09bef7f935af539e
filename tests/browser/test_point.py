"""From a point to its run, out of the fit and back; from a run to its point."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect
from streamlit.proto.BackMsg_pb2 import BackMsg

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE_S = 300
FIRST_RUN = """() => {
  const plot = document.querySelector('.js-plotly-plot');
  const runs = plot._fullData.find(e => e.mode === 'markers' && e.customdata?.[0].length >= 3);
  const {xaxis, yaxis} = plot._fullLayout;
  const box = plot.getBoundingClientRect();
  return [
    box.left + xaxis._offset + xaxis.d2p(runs.x[0]),
    box.top + yaxis._offset + yaxis.d2p(runs.y[0]),
    runs.customdata[0].at(-1),
  ];
}"""
CHECKS = 3
"""The page draws what two checks in a row ask for."""
ASKS = "([name, value]) => new URLSearchParams(location.search).get(name) === value"
TRACES = "() => document.querySelector('.js-plotly-plot')._fullData.map(each => each.name)"


def wait_for_more(page: Page, checks: list[bytes], count: int) -> None:
    """Wait until the browser has sent more checks."""
    before, deadline = len(checks), time.monotonic() + PATIENCE_S
    while len(checks) < before + count:
        assert time.monotonic() < deadline, f"{len(checks) - before} of {count} checks"
        page.wait_for_timeout(100)


def test_a_clicked_run_is_shown_left_out_and_taken_in_again(
    address: Callable[[str], Any],
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
    picture: Callable[[Page, str], Path],
) -> None:
    server = address("demo")
    page, seen = visit(server.at(sweep="demo"))
    settle(page, "Overview")
    x, y, name = page.evaluate(FIRST_RUN)
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    main = page.get_by_test_id("stMain")
    expect(main.get_by_role("heading", name=f"Run {name}")).to_be_visible()
    page.wait_for_function(ASKS, arg=["run", name])
    expect(main.get_by_text("interval of a new run").first).to_be_visible()
    expect(main.get_by_role("heading", name="Training curves")).to_be_visible()
    settle(page, "Overview")
    page.get_by_role("button", name="Exclude it and refit").click()
    expect(main.get_by_text("With all runs: a =")).to_be_visible()
    settle(page, "Overview")
    page.wait_for_function(ASKS, arg=["exclude", name])
    assert {"excluded", "with the excluded runs"} <= set(page.evaluate(TRACES))
    expect(main.get_by_text(f"--exclude {name}").first).to_be_visible()
    picture(page, "point-excluded")
    page.reload()
    settle(page, "Overview")
    expect(main.get_by_role("heading", name=f"Run {name}")).to_be_visible()
    page.get_by_role("button", name="Include it again").click()
    expect(main.get_by_text("With all runs: a =")).to_have_count(0)
    settle(page, "Overview")
    page.get_by_role("button", name="Open in Runs").click()
    expect(page.get_by_label("Find", exact=True)).to_have_value(name)
    settle(page, "Runs")
    assert seen.errors == []


def test_a_run_leads_to_its_point_and_a_wrong_name_is_told_at_the_field(
    address: Callable[[str], Any], visit: Callable[..., Any], settle: Callable[[Page, str], None]
) -> None:
    server = address("demo")
    page, _ = visit(server.at(sweep="demo"))
    settle(page, "Overview")
    name = page.evaluate(FIRST_RUN)[-1]
    page.goto(server.at(sweep="demo", run=name, exclude=f"{name}x"))
    settle(page, "Overview")
    assert f"run {name}" in page.evaluate(TRACES)
    side = page.get_by_test_id("stSidebar")
    expect(side.get_by_text(f"Did you mean {name}?")).to_be_visible()
    expect(page.get_by_role("heading", name="IsoFLOP curves")).to_be_visible()


def test_a_check_that_the_browser_sends_before_the_answer_does_not_undo_a_click(
    address: Callable[[str], Any], visit: Callable[..., Any], settle: Callable[[Page, str], None]
) -> None:
    """A check carries the state of the browser, which does not yet know what the click has set."""
    server = address("demo")
    page, _ = visit("about:blank")
    checks: list[bytes] = []

    def connect(route: WebSocketRoute) -> None:
        to_server = route.connect_to_server()

        def forward(data: str | bytes) -> None:
            to_server.send(data)
            message = BackMsg.FromString(data if isinstance(data, bytes) else data.encode())
            rerun = message.rerun_script
            if rerun.is_auto_rerun:
                checks.append(message.SerializeToString())
            elif any(each.id.endswith("-exclude_one") for each in rerun.widget_states.widgets):
                to_server.send(checks[-1])

        route.on_message(forward)

    page.route_web_socket("**/_stcore/stream*", connect)
    page.goto(server.at(sweep="demo"))
    settle(page, "Overview")
    x, y, name = page.evaluate(FIRST_RUN)
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    main = page.get_by_test_id("stMain")
    expect(main.get_by_role("heading", name=f"Run {name}")).to_be_visible()
    settle(page, "Overview")
    wait_for_more(page, checks, 1)
    page.get_by_role("button", name="Exclude it and refit").click()
    expect(main.get_by_text("With all runs: a =")).to_be_visible()
    settle(page, "Overview")
    wait_for_more(page, checks, CHECKS)
    settle(page, "Overview")
    expect(main.get_by_text("With all runs: a =")).to_be_visible()
    page.wait_for_function(ASKS, arg=["exclude", name])

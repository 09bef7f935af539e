"""How fast the page is, in one run on one machine: medians, the worker's share left out.

``make bench`` runs it; the limits hold on two quiet cores. The figures go to
``results/bench/dashboard.json`` beside the machine's load, so that a noisy run can be told.
"""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from playwright.sync_api import Page

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]

ROUNDS = 5
SESSIONS = 20
MINUTE_S = 60.0
OUT = Path(__file__).resolve().parents[2] / "results" / "bench"


@pytest.fixture(scope="session")
def store(stores: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a maker of stores of so many runs."""

    def make(n_runs: int) -> Path:
        results: Path = tmp_path_factory.mktemp(f"runs{n_runs}")
        stores.generated(results, n_runs)
        return results

    return make


def seconds(work: Callable[[], None], rounds: int = ROUNDS) -> float:
    """Return the median time of some rounds."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def first_view(page: Page) -> None:
    """Wait for the first figure to be drawn."""
    page.locator("[data-testid=stPlotlyChart] .main-svg").first.wait_for(timeout=120_000)


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no memory of {pid}")


def keep(name: str, figures: dict[str, float], limits: dict[str, float]) -> None:
    """Write the figures down, and hold them to their limits."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "dashboard.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    told[name] = {**figures, "limits": limits, "load_1min": os.getloadavg()[0]}
    path.write_text(json.dumps(told, indent=1))
    over = {key: figures[key] for key, limit in limits.items() if figures[key] >= limit}
    assert not over, f"over the limit (load {os.getloadavg()[0]:.1f}): {over} of {limits}"


def test_ten_thousand_runs(
    store: Callable[[int], Path],
    serve: Callable[..., Any],
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
) -> None:
    server = serve("--results", str(store(10_000)))
    page, _ = visit(server.url)
    settle(page, "Overview")

    def fresh() -> None:
        opened, _ = visit(server.url)
        first_view(opened)
        opened.context.close()

    def reload() -> None:
        page.reload()
        first_view(page)

    levels = iter(["80 %", "95 %", "90 %"] * ROUNDS)

    def select() -> None:
        wanted = next(levels)
        page.get_by_label("Level of the intervals").click()
        page.get_by_role("option", name=wanted).click()
        page.wait_for_function(
            "want => document.querySelector('[data-testid=stMain]').innerText.includes(want)",
            arg=f"({wanted.replace(' ', ' ')})",
            timeout=120_000,
        )

    figures = {"first_view_s": seconds(fresh), "reload_s": seconds(reload)}
    for _ in range(3):
        select()
        settle(page, "Overview")
    figures["select_s"] = seconds(select)
    runs, _ = visit(server.at(page="Runs"))
    settle(runs, "Runs")
    sides = iter(["flops", "tokens"] * ROUNDS)

    def fragment() -> None:
        wanted = next(sides)
        runs.get_by_role("button", name=wanted).or_(runs.get_by_role("radio", name=wanted)).click()
        title = "training compute" if wanted == "flops" else "training tokens"
        runs.locator(".main-svg text", has_text=title).first.wait_for()

    figures["fragment_s"] = seconds(fragment)
    keep(
        "10,000 runs",
        figures,
        {"first_view_s": 4.0, "reload_s": 2.0, "select_s": 1.0, "fragment_s": 0.3},
    )


def test_a_warm_script_and_its_payload(
    store: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from scalelab_dashboard import app
    from streamlit.testing.v1 import AppTest

    monkeypatch.setenv("SCALELAB_RESULTS", str(store(10_000)))
    test = AppTest.from_file(str(Path(app.__file__)), default_timeout=120).run()
    while any("fills in by itself" in caption.value for caption in test.caption):
        time.sleep(1)
        test.run()
    charts = [len(chart.proto.spec) for chart in test.get("plotly_chart")]
    assert charts
    figures = {"warm_script_s": seconds(lambda: test.run()), "chart_mb": max(charts) / 1e6}
    keep("warm script, 10,000 runs", figures, {"warm_script_s": 0.15, "chart_mb": 0.5})


def test_a_hundred_thousand_runs(
    store: Callable[[int], Path], serve: Callable[..., Any], visit: Callable[..., Any]
) -> None:
    server = serve("--results", str(store(100_000)))

    def overview() -> None:
        page, _ = visit(server.at(page="Overview"))
        first_view(page)
        page.context.close()

    def table() -> None:
        page, _ = visit(server.at(page="Runs"))
        page.get_by_text("100,000 of 100,000 runs").wait_for(timeout=120_000)
        page.context.close()

    overview()
    figures = {"overview_s": seconds(overview, 3), "table_s": seconds(table, 3)}
    keep("100,000 runs", figures, {"overview_s": 4.0, "table_s": 2.0})


def test_twenty_sessions_for_a_minute(
    store: Callable[[int], Path], serve: Callable[..., Any]
) -> None:
    """Sessions speak Streamlit's own protocol: a rerun each second, as twenty people would."""
    from websockets.sync.client import connect

    server = serve("--results", str(store(10_000)))
    before = memory_mb(server.process.pid)
    taken: list[float] = []
    faults: list[str] = []

    def person() -> None:
        from streamlit.proto.BackMsg_pb2 import BackMsg
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        try:
            url = server.url.replace("http", "ws") + "/_stcore/stream"
            with connect(url, subprotocols=["streamlit"], max_size=None, origin=server.url) as line:
                ends = time.monotonic() + MINUTE_S
                while time.monotonic() < ends:
                    message = BackMsg()
                    message.rerun_script.query_string = ""
                    started = time.perf_counter()
                    line.send(message.SerializeToString())
                    while True:
                        answer = ForwardMsg()
                        answer.ParseFromString(line.recv(timeout=60))
                        if answer.delta.new_element.HasField("exception"):
                            faults.append(answer.delta.new_element.exception.message)
                        if answer.WhichOneof("type") == "script_finished":
                            break
                    taken.append(time.perf_counter() - started)
                    time.sleep(1)
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")

    people = [threading.Thread(target=person) for _ in range(SESSIONS)]
    for each in people:
        each.start()
    time.sleep(MINUTE_S - 5)
    during = memory_mb(server.process.pid)
    for each in people:
        each.join()
    time.sleep(20)
    after = memory_mb(server.process.pid)
    assert faults == []
    figures = {
        "p95_rerun_s": statistics.quantiles(taken, n=20)[-1],
        "mb_per_session": (during - before) / SESSIONS,
        "mb_kept_per_session": (after - before) / SESSIONS,
        "reruns": float(len(taken)),
    }
    keep("20 sessions", figures, {"p95_rerun_s": 3.0, "mb_per_session": 10.0})

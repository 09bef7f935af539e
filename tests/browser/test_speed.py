"""How fast the page is, in one run on one machine: medians, the first fit left out.

``make bench`` runs it; the limits hold on two quiet cores. The figures go to
``results/bench/dashboard.json`` beside the machine's load, so that a noisy run can be recognised.
"""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]

ROUNDS = 5
SCREEN = {"width": 1440, "height": 900}
"""What a person has; the tall window of the other tests is for pictures."""
SESSIONS = 20
MINUTE_S = 60.0
QUIET_S = 150.0
"""After the sessions: Streamlit forgets one 120 s after it was left."""
OUT = Path(__file__).resolve().parents[2] / "results" / "bench"
VIEWS = ("Overview", "Fit", "Extrapolate", "Decide", "Runs", "Cost and energy", "Data")


@pytest.fixture(scope="session")
def serve_runs(
    serve: Callable[..., Any], stores: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Any]:
    """Return a function that starts a server on a sweep with a number of runs, one per number."""
    made: dict[int, Any] = {}

    def start(n_runs: int) -> Any:
        if n_runs not in made:
            results = tmp_path_factory.mktemp(f"runs{n_runs}")
            stores.generated(results, n_runs)
            made[n_runs] = serve(results)
        return made[n_runs]

    return start


@pytest.fixture
def fresh(profile: Callable[[], BrowserContext]) -> Callable[..., float]:
    """Return a timer of an address in a profile without a cache, up to what is waited for."""

    def measure(url: str, wait: Callable[[Page], None]) -> float:
        context = profile()
        page = context.new_page()
        page.set_viewport_size(SCREEN)
        started = time.perf_counter()
        page.goto(url, wait_until="commit")
        wait(page)
        taken = time.perf_counter() - started
        context.close()
        return taken

    return measure


def median(work: Callable[[], float | None], rounds: int = ROUNDS) -> float:
    """Return the median time of some rounds: what the work says, else how long it took."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        said = work()
        taken.append(time.perf_counter() - started if said is None else said)
    return statistics.median(taken)


def first_figure(page: Page) -> None:
    """Wait for the first figure to be drawn."""
    page.locator("[data-testid=stPlotlyChart] .main-svg").first.wait_for()


def empty_words(page: Page) -> None:
    """Wait for the empty app to be drawn."""
    page.get_by_text("an empty app").first.wait_for()


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
    measured = json.loads(path.read_text()) if path.exists() else {}
    measured[name] = {**figures, "limits": limits, "load_1min": os.getloadavg()[0]}
    path.write_text(json.dumps(measured, indent=1))
    print(f"\n{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    over = {key: figures[key] for key, limit in limits.items() if figures[key] >= limit}
    assert not over, f"over the limit (load {os.getloadavg()[0]:.1f}): {over} of {limits}"


def test_ten_thousand_runs(
    serve_runs: Callable[[int], Any],
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
    fresh: Callable[..., float],
    empty_app: str,
) -> None:
    server = serve_runs(10_000)
    page, _ = visit(server.url)
    page.set_viewport_size(SCREEN)
    settle(page, "Overview")

    def reload() -> None:
        page.reload(wait_until="commit")
        first_figure(page)

    levels = cycle(["80", "95", "90"])

    def select() -> float:
        wanted = next(levels)
        page.get_by_label("Level of the intervals, %", exact=True).click()
        option = page.get_by_role("option", name=wanted, exact=True)
        option.wait_for()
        started = time.perf_counter()
        option.click()
        page.get_by_test_id("stMain").get_by_text(f"({wanted} %)").first.wait_for()
        return time.perf_counter() - started

    figures = {
        "empty_s": median(lambda: fresh(empty_app, empty_words)),
        "first_view_s": median(lambda: fresh(server.url, first_figure)),
        "reload_s": median(reload),
    }
    for _ in range(3):
        select()
        settle(page, "Overview")
    figures["select_s"] = median(select)
    page.goto(server.at(page="Runs"))
    settle(page, "Runs")
    sides = cycle(["flops", "tokens"])

    def fragment() -> None:
        wanted = next(sides)
        page.get_by_test_id("stMain").get_by_text(wanted, exact=True).click()
        title = "training compute" if wanted == "flops" else "training tokens"
        page.locator(".main-svg text", has_text=title).first.wait_for()

    figures["fragment_s"] = median(fragment)
    limits = {"first_view_s": 4.0, "reload_s": 2.0, "select_s": 1.0, "fragment_s": 0.3}
    keep("10,000 runs", figures, limits)


def test_a_warm_script_and_its_payload(
    serve_runs: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from scalelab_dashboard import app
    from streamlit.testing.v1 import AppTest

    monkeypatch.setenv("SCALELAB_RESULTS", str(serve_runs(10_000).results))
    figures: dict[str, float] = {}
    payload = 0
    for view in VIEWS:
        test = AppTest.from_file(str(Path(app.__file__)), default_timeout=120)
        test.query_params["page"] = view
        test.run()
        while any("updates when it is done" in caption.value for caption in test.caption):
            time.sleep(0.5)
            test.run()
        figures[view] = median(lambda test=test: test.run() and None)  # type: ignore[misc]
        payload = max([payload, *(len(chart.proto.spec) for chart in test.get("plotly_chart"))])
    figures |= {"slowest_s": max(figures.values()), "chart_mb": payload / 1e6}
    keep("warm script, 10,000 runs", figures, {"slowest_s": 0.15, "chart_mb": 0.5})


def test_a_hundred_thousand_runs(
    serve_runs: Callable[[int], Any], fresh: Callable[..., float], empty_app: str
) -> None:
    server = serve_runs(100_000)

    def table(page: Page) -> None:
        page.get_by_text("100,000 of 100,000 runs").wait_for()

    first = {
        "first_overview_s": fresh(server.url, first_figure),
        "first_table_s": fresh(server.at(page="Runs"), table),
    }
    figures = {
        "empty_s": median(lambda: fresh(empty_app, empty_words), 3),
        "overview_s": median(lambda: fresh(server.url, first_figure), 3),
        "table_s": median(lambda: fresh(server.at(page="Runs"), table), 3),
    }
    keep("100,000 runs", first | figures, {"overview_s": 4.0, "table_s": 2.0})


def test_twenty_sessions_for_a_minute(serve_runs: Callable[[int], Any]) -> None:
    """Sessions speak Streamlit's own protocol: a view each second, as twenty people would."""
    from streamlit.proto.BackMsg_pb2 import BackMsg
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
    from websockets.sync.client import connect

    server = serve_runs(10_000)
    taken: list[float] = []
    faults: list[str] = []

    def person(seconds: float) -> None:
        try:
            url = server.url.replace("http", "ws") + "/_stcore/stream"
            with connect(url, subprotocols=["streamlit"], max_size=None, origin=server.url) as line:
                ends = time.monotonic() + seconds
                for view in cycle(VIEWS):
                    message = BackMsg()
                    message.rerun_script.query_string = f"page={view.replace(' ', '+')}"
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
                    if time.monotonic() > ends:
                        return
                    time.sleep(1)
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")

    # One session first, so that shared caches do not count as memory of a session.
    person(15.0)
    taken.clear()
    before = memory_mb(server.process.pid)
    people = [threading.Thread(target=person, args=(MINUTE_S,)) for _ in range(SESSIONS)]
    for each in people:
        each.start()
    peak = before
    while any(each.is_alive() for each in people):
        peak = max(peak, memory_mb(server.process.pid))
        time.sleep(0.5)
    time.sleep(QUIET_S)
    after = memory_mb(server.process.pid)
    assert faults == []
    figures = {
        "reruns": float(len(taken)),
        "median_rerun_s": statistics.median(taken),
        "p95_rerun_s": statistics.quantiles(taken, n=20)[-1],
        "mb_per_session": (peak - before) / SESSIONS,
        "mb_kept_per_session": (after - before) / SESSIONS,
    }
    limits = {"p95_rerun_s": 3.0, "mb_per_session": 10.0, "mb_kept_per_session": 2.0}
    keep("20 sessions", figures, limits)


def test_pictures_for_a_paper(stores: ModuleType, tmp_path: Path) -> None:
    from scalelab import api
    from scalelab.report.plots import draw_fit

    stores.generated(tmp_path, 120)
    report = api.fit(results=tmp_path)
    draw_fit(report, tmp_path / "first.png")
    figures = {
        f"{suffix}_s": median(lambda s=suffix: draw_fit(report, tmp_path / f"fit.{s}"))  # type: ignore[misc]
        for suffix in ("png", "svg", "pdf")
    }
    keep("pictures", figures, dict.fromkeys(figures, 1.0))

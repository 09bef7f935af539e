"""The HTML report in the browser, from the file system, with the network off."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from playwright.sync_api import Browser

from scalelab.cli.main import main


def test_the_report_opens_offline(browser: Browser, stores: ModuleType, tmp_path: Path) -> None:
    stores.generated(tmp_path, 120, name="demo")
    out = tmp_path / "report.html"
    words = ["report", "--results", str(tmp_path), "--out", str(out), "--predict", "C=1e24"]
    assert main(words) == 0
    context = browser.new_context(offline=True, viewport={"width": 1200, "height": 1000})
    page = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if not r.url.startswith("data:") else None)
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(out.as_uri())
    page.wait_for_function("() => document.querySelectorAll('.main-svg').length >= 8")
    drawn = page.locator("[role=img]")
    assert drawn.count() == 8
    assert all(drawn.nth(i).locator(".main-svg").count() for i in range(drawn.count()))
    assert asked == [out.as_uri()]
    assert errors == []
    folder = Path(__file__).resolve().parents[2] / "results" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / "report.png", full_page=True)
    context.close()

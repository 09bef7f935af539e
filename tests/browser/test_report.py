"""The HTML report in the browser, from the file system, with the network off."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scalelab.cli.main import main
from scalelab.units import format_quantity

FIGURES = (
    "isoflop",
    "optima",
    "contours",
    "extrapolation",
    "published_n_tokens",
    "published_flops",
    "forest",
    "residuals",
    "pairs",
)
MAX_BYTES = 2_500_000
OVERLAPS = """() => [...document.querySelectorAll('[role=img]:has(.main-svg)')].flatMap(plot => {
  const boxes = [...plot.querySelectorAll('.annotation')]
    .filter(e => getComputedStyle(e).visibility === 'visible')
    .map(e => [e.textContent, e.getBoundingClientRect()]);
  return boxes.flatMap(([name, a], i) => boxes.slice(i + 1)
    .filter(([, b]) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
    .map(([other]) => [plot.id, name, other]));
})"""


def test_the_report_opens_offline_and_says_what_fit_prints(
    open_offline: Callable[[Path], tuple[Any, list[str], list[str]]],
    stores: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stores.generated(tmp_path, 120, name=stores.HOSTILE_NAME)
    out = tmp_path / "report.html"
    words = ["--results", str(tmp_path), "--predict", "C=1e24"]
    assert main(["report", "--out", str(out), *words]) == 0
    capsys.readouterr()
    assert main(["fit", "--json", *words]) == 0
    printed = json.loads(capsys.readouterr().out)
    page, asked, errors = open_offline(out)
    page.wait_for_function(
        "n => document.querySelectorAll('[role=img]:has(.main-svg)').length === n", arg=len(FIGURES)
    )
    for name in FIGURES:
        assert page.locator(f"#{name}[role=img]").get_attribute("aria-label")
    text = page.locator("main").inner_text()
    forecast = printed["predictions"][0]
    for name in ("n_params", "n_tokens"):
        value, low, high = (format_quantity(forecast[name + end]) for end in ("", "_low", "_high"))
        assert value in text
        assert f"{low} to {high}" in text
    assert f"{forecast['loss_nats']:.4f}" in text
    assert stores.HOSTILE_NAME in text
    assert page.locator("img[src='x'], a:not(nav a)").count() == 0
    assert asked == [out.as_uri()]
    assert out.stat().st_size <= MAX_BYTES
    for link in page.locator("nav a").all():
        heading = page.locator(link.get_attribute("href"))
        assert heading.inner_text() == link.inner_text()
    assert page.locator("nav a").count() >= len(FIGURES)
    assert re.search(r"fingerprint [0-9a-f]{12}:", text)
    assert page.locator("figcaption").count() >= len(FIGURES)
    for name in FIGURES:
        title = page.locator(f"#{name} .gtitle").text_content()
        assert "90 % intervals" in title
        assert date.today().isoformat()[:7] in title
    page.set_viewport_size({"width": 420, "height": 900})
    page.reload()
    page.wait_for_function(
        "n => document.querySelectorAll('[role=img]:has(.main-svg)').length === n", arg=len(FIGURES)
    )
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 420
    assert errors == []

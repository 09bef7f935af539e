"""What leaves the page: pictures and tables of its figures, the fit as PDF, and the link."""

from __future__ import annotations

import csv
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_every_figure_leaves_with_its_source_and_its_data(
    address: Callable[[str], Any],
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
    tmp_path: Path,
) -> None:
    server = address("table")
    page, seen = visit(server.at(level="80"))
    settle(page, "Overview")
    page.get_by_text("Share this view").click()
    saved = {}
    for kind in ("PNG", "SVG", "CSV"):
        button = page.get_by_role("button", name=f"{kind} of Loss against parameters")
        with page.expect_download() as download:
            button.click()
        saved[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[kind])
    assert saved["PNG"].name == "loss-against-parameters-at-fixed-compute.png"
    assert saved["PNG"].read_bytes().startswith(b"\x89PNG")
    words = saved["SVG"].read_text()
    for part in ("runs from data.csv", "chinchilla law", "80 % intervals", f"{date.today():%Y-%m}"):
        assert part in words.replace("</tspan>", " "), part
    with saved["CSV"].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 245
    assert {"x", "y", "series", "x_minus"} <= set(rows[0])
    with page.expect_download() as download:
        page.get_by_role("button", name="PDF of the fit").click()
    assert Path(download.value.path()).read_bytes().startswith(b"%PDF")
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator(".share output")).not_to_be_empty()
    assert seen.errors == []
    assert seen.foreign == []

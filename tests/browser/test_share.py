"""What leaves the page: pictures, PDFs and tables of its figures, the fit, and the link."""

from __future__ import annotations

import csv
import re
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
    # The script that writes PDFs is not part of the first view.
    assert not any(url.endswith("pdf.js") for url in _loaded(page))
    for kind in ("PNG", "SVG", "PDF", "CSV"):
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
    content = saved["PDF"].read_bytes()
    _check_pdf(content)
    assert b"/Title (Loss against parameters at fixed compute)" in content
    shown = b"".join(
        bytes.fromhex(each.decode()) + b" " for each in re.findall(rb"<([0-9a-f]+)> Tj", content)
    )
    for part in (b"runs from data.csv", b"80 % intervals", b"parameters N", b"6e18"):
        assert part in shown, part
    n_circles = page.locator(".js-plotly-plot").first.locator(".points path[d*=A]").count()
    assert n_circles > 100
    assert content.count(b" c\n") >= 4 * n_circles
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


def _loaded(page: Page) -> list[str]:
    names: list[str] = page.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
    return names


def _check_pdf(content: bytes) -> None:
    """Check the places of all objects of a PDF, and that its commands are of known kinds."""
    assert content.startswith(b"%PDF-1.4")
    assert content.endswith(b"%%EOF\n")
    table = int(content.split(b"startxref\n")[1].split()[0])
    assert content[table:].startswith(b"xref\n0 ")
    places = [int(each) for each in re.findall(rb"(\d{10}) 00000 n ", content[table:])]
    assert len(places) >= 8
    for number, place in enumerate(places, 1):
        assert content[place:].startswith(b"%d 0 obj\n" % number)
    length, rest = content.split(b"/Length ", 1)[1].split(b" >>\nstream\n", 1)
    commands = rest[: int(length)]
    assert rest[int(length) :].startswith(b"\nendstream")
    assert commands.count(b"q\n") == commands.count(b"Q\n") + commands.endswith(b"Q")
    assert not re.search(rb"NaN|Infinity|undefined", commands)

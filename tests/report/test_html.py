"""The HTML report: whole, escaped, and silent on the network."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from scalelab.api import fit
from scalelab.cli.main import main
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.forecast.headline import headline
from scalelab.records.types import Observations
from scalelab.report.html import render
from scalelab.store.table_read import TableRead


class Outline(HTMLParser):
    """Collect tags, and what they would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.labels: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and not (value or "").startswith(("data:", "#")):
                self.fetched.append(value or "")
            # The contents of the page have a label, too.
            if name == "aria-label" and ("role", "img") in attrs:
                self.labels.append(value or "")


@pytest.fixture(scope="module")
def text(isoflop_runs: Callable[..., Observations]) -> str:
    """Return the report of simulated runs whose source is hostile."""
    from dataclasses import replace

    rows = replace(isoflop_runs(noise=0.003), source="<script>alert(1)</script>")
    table = TableRead(observations=rows, lines=np.arange(len(rows)))
    found = fit(table, bootstrap=BootstrapSpec(k=100), predict=["C=1e23"])
    return render(found, "scalelab report --out '<b>'", headline(found))


def test_nothing_is_fetched_and_every_figure_is_described(text: str) -> None:
    outline = Outline()
    outline.feed(text)
    assert outline.fetched == []
    assert len(outline.labels) == 9
    assert all(len(label) > 40 for label in outline.labels)
    assert "link" in outline.tags


def test_text_from_outside_is_escaped(text: str) -> None:
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "&lt;b&gt;" in text


@pytest.mark.slow
def test_the_command_writes_html_pictures_tex_and_csv(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "report.html"
    words = [
        "report",
        "--from",
        str(tables / "chinchilla" / "data.csv"),
        "--out",
        str(out),
    ]
    words += ["--svg", str(tmp_path), "--pdf", str(tmp_path), "--png", str(tmp_path)]
    assert main([*words, "--tex", "--csv", "--predict", "C=1e24"]) == 0
    assert out.stat().st_size > 1_000_000
    for path in (out.with_suffix(".tex"), out.with_suffix(".csv")):
        assert path.stat().st_size > 100
    for suffix, magic in ((".svg", b"<?xml"), (".pdf", b"%PDF"), (".png", b"\x89PNG")):
        assert (tmp_path / f"fit{suffix}").read_bytes().startswith(magic)
    assert len(re.findall("written: ", capsys.readouterr().out)) == 6


@pytest.mark.parametrize(
    ("name", "options"),
    [("runs.csv", []), ("runs.html", ["--csv"]), ("r.pdf", []), ("runs.tex", ["--tex"])],
)
def test_what_is_written_never_replaces_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, options: list[str]
) -> None:
    runs = tmp_path / "runs.csv"
    runs.write_text("n_params,n_tokens,loss\n1e6,1e7,3\n")
    before = runs.read_text()
    words = ["report", "--from", str(runs), "--out", str(tmp_path / name), *options]
    assert main(words) == 2
    assert "--out" in capsys.readouterr().err
    assert runs.read_text() == before
    assert list(tmp_path.iterdir()) == [runs]

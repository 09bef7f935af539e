"""The documentation site builds without warnings, its links lead somewhere, nothing is remote."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]


class _Page(HTMLParser):
    """Collect what a page links to, what it loads, and the anchors that it offers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if "src" in found:
            self.loads.append(found["src"])
        if tag == "link" and found.get("rel") in {"stylesheet", "icon", "preload", "preconnect"}:
            self.loads.append(found["href"])


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[Path, _Page]:
    """Return every page of a fresh build, by its path."""
    site = tmp_path_factory.mktemp("site")
    answer = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "WARNING" not in answer.stderr
    return {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_internal_link_and_anchor_exists(pages):
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links start at the server's root
            continue
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or link in {"", "#", ".."}:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                broken.append((path.name, link))
            elif url.fragment and target.suffix == ".html":
                anchors = pages[target].anchors
                if unquote(url.fragment) not in anchors | {"__skip"}:
                    broken.append((path.name, link))
    assert not broken
    assert sum(len(page.links) for page in pages.values()) > 100


def test_pages_load_nothing_from_the_network(pages):
    remote = {
        (path.name, load)
        for path, page in pages.items()
        for load in page.loads
        if urlsplit(load).netloc
    }
    assert not remote


def test_every_page_is_in_the_navigation_and_has_text(pages):
    assert len(pages) > 20
    for path, page in pages.items():
        assert path.name == "404.html" or path.stat().st_size > 2_000, path
        assert page.anchors, path

"""Stores for the page's tests, and the app under Streamlit's own test runner."""

from __future__ import annotations

import html
import importlib.util
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from scalelab_dashboard import app
from streamlit.testing.v1 import AppTest

HERE = Path(__file__).parent
FIT_S = 240.0
POLL_S = 0.3


@pytest.fixture(scope="session")
def stores() -> ModuleType:
    """Return the maker of published snapshots."""
    spec = importlib.util.spec_from_file_location("stores", HERE / "stores.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small_store(stores: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a results folder with a finished sweep of 100 runs."""
    results: Path = tmp_path_factory.mktemp("small")
    stores.generated(results, 100)
    return results


@pytest.fixture(scope="session")
def settle() -> Callable[[AppTest], None]:
    """Return a waiter for the fits of a page, which asks for them again as the browser does."""

    def wait(test: AppTest) -> None:
        deadline = time.monotonic() + FIT_S
        while any("updates when it is done" in caption.value for caption in test.caption):
            assert time.monotonic() < deadline, f"the fit did not end in {FIT_S} s"
            time.sleep(POLL_S)
            test.run()

    return wait


@pytest.fixture
def page(
    monkeypatch: pytest.MonkeyPatch, settle: Callable[[AppTest], None]
) -> Iterator[Callable[..., AppTest]]:
    """Return an opener of the app on a results folder, its fit awaited."""

    def open_page(results: Path, file: Path | None = None, **query: str) -> AppTest:
        monkeypatch.setenv("SCALELAB_RESULTS", str(results))
        if file is None:
            monkeypatch.delenv("SCALELAB_DASHBOARD_FILE", raising=False)
        else:
            monkeypatch.setenv("SCALELAB_DASHBOARD_FILE", str(file))
        test = AppTest.from_file(str(Path(app.__file__)), default_timeout=FIT_S)
        for name, value in query.items():
            test.query_params[name] = value
        test.run()
        settle(test)
        return test

    return open_page


@pytest.fixture(scope="session")
def said() -> Callable[[AppTest], str]:
    """Return a reader of all text of the page, escapes undone."""

    def read(test: AppTest) -> str:
        kinds = ("markdown", "caption", "info", "warning")
        parts = [element.value for kind in kinds for element in test.get(kind)]
        return re.sub(r"\\(.)", r"\1", "\n".join(parts))

    return read


@pytest.fixture(scope="session")
def commands() -> Callable[[AppTest], list[str]]:
    """Return a reader of the commands that the page shows, one text a block."""

    def read(test: AppTest) -> list[str]:
        bodies = [element.proto.body for element in test.get("html")]
        found = [re.fullmatch(r'<pre class="terminal"[^>]*>(.*)</pre>', b, re.S) for b in bodies]
        return [html.unescape(match.group(1)) for match in found if match]

    return read

"""Stores for the page's tests, and the app under Streamlit's own test runner."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from scalelab_dashboard import app
from streamlit.testing.v1 import AppTest

HERE = Path(__file__).parent


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


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., AppTest]]:
    """Return an opener of the app on a results folder, with query parameters."""

    def open_page(results: Path, file: Path | None = None, **query: str) -> AppTest:
        monkeypatch.setenv("SCALELAB_RESULTS", str(results))
        if file is None:
            monkeypatch.delenv("SCALELAB_DASHBOARD_FILE", raising=False)
        else:
            monkeypatch.setenv("SCALELAB_DASHBOARD_FILE", str(file))
        test = AppTest.from_file(str(Path(app.__file__)), default_timeout=60)
        for name, value in query.items():
            test.query_params[name] = value
        return test.run()

    return open_page

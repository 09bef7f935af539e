"""A small real text for tunings."""

import shutil
import sysconfig
from pathlib import Path

import pytest


@pytest.fixture
def own_cache(cache_home, monkeypatch):
    """Keep speed measurements out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    source = Path(sysconfig.get_path("stdlib")) / "asyncio"
    for file in source.glob("*.py"):
        shutil.copy(file, folder)
    return folder

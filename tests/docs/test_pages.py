"""The tutorial, the README and the notebooks show what the commands and cells really give."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_output_in_the_tutorial_and_the_readme_is_current(cache_home):
    answer = subprocess.run(
        [sys.executable, DOCS / "tutorial.py", "--check"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "XDG_CACHE_HOME": str(cache_home)},
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_check_of_the_tutorial_sees_other_words_and_other_numbers():
    differences = script("tutorial").differences
    page = "A  301.1637  [138.35, 621.03]\nN 244K on D 6.84M tokens\n"
    assert not differences(page, page.replace("301.1637", "301.1640"))
    assert not differences("here: 9.8 min\n", "here: 2 s\n")
    assert differences(page, page.replace("301.1637", "371.1637"))
    assert differences(page, page.replace("244K", "244M"))
    assert differences(page, page.replace("tokens", "words"))
    assert differences(page, page + "one more line\n")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_every_cell_shows_something(path):
    shown = json.loads(path.read_text(encoding="utf-8"))
    ran = script("notebooks").run(path)
    for cell, now in zip(shown["cells"], ran["cells"], strict=True):
        if cell["cell_type"] == "code":
            assert now["outputs"]
            kinds = [output["output_type"] for output in now["outputs"]]
            assert [output["output_type"] for output in cell["outputs"]] == kinds, "stale notebook"


def test_every_picture_is_shown_and_drawn_by_the_script():
    drawn = {f"{draw.__name__}.svg" for draw in script("figures").FIGURES} | {"demo.png"}
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    assert set(re.findall(r"images/(\w+\.\w+)", pages)) == drawn
    assert {path.name for path in (DOCS / "images").iterdir()} == drawn

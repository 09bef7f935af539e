"""The tutorial, the README and the notebooks show what the commands and cells really give."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

from scalelab.cli.main import app as cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
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
        timeout=800,
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


def test_the_check_of_the_reference_sees_another_page(monkeypatch):
    generate = script("generate")
    monkeypatch.setitem(generate.PAGES, "environment.md", lambda: "other\n")
    assert generate.main(["--check"]) == 1


@pytest.mark.slow
def test_the_pictures_can_be_drawn(tmp_path):
    figures = script("figures")
    figures.IMAGES = tmp_path
    figures.main([])
    for draw in figures.FIGURES:
        text = (tmp_path / f"{draw.__name__}.svg").read_text(encoding="utf-8")
        shown = (DOCS / f"images/{draw.__name__}.svg").read_text(encoding="utf-8")
        assert set(re.findall(r"<text.*?>(.*?)</text>", text)) == set(
            re.findall(r"<text.*?>(.*?)</text>", shown)
        ), "stale: python docs/figures.py"


def test_every_picture_is_shown_and_drawn_by_the_script():
    # The page beside a PNG says which command wrote it, or it shows a view of the dashboard.
    shots = {
        "demo.png",
        "metric_all.png",
        "page_compare.png",
        "page_decide_900.png",
        "page_live.png",
    }
    drawn = {f"{draw.__name__}.svg" for draw in script("figures").FIGURES} | shots
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    assert set(re.findall(r"images/(\w+\.\w+)", pages)) == drawn
    assert {path.name for path in (DOCS / "images").iterdir()} == drawn


def shown_commands() -> list[tuple[str, list[str]]]:
    """Return the page and the words of every command that stands on its own line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
        lines = re.findall(r"^(?:    |\$ |\| `)(scalelab .*)$", text, re.MULTILINE)
        for line in lines + re.findall(r"^scalelab .*$", blocks, re.MULTILINE):
            line = line.split("`")[0].split("  #")[0]
            if "[OPTIONS]" not in line and ".." not in line.split():
                found.append((page.name, shlex.split(line)))
    return found


def test_every_command_and_option_on_a_page_exists():
    app = typer.main.get_command(cli)
    unknown, n_options = [], 0
    for page, words in shown_commands():
        command, path = app, []
        for word in words[1:]:
            if word in getattr(command, "commands", {}):
                command, path = command.commands[word], [*path, word]
        options = {name for parameter in command.params for name in parameter.opts}
        options |= {name for parameter in command.params for name in parameter.secondary_opts}
        flags = [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        n_options += len(flags)
        if hasattr(command, "commands") and command.commands and len(words) > 1 and not flags:
            unknown.append((page, " ".join(words)))
        unknown += [(page, " ".join(path), f) for f in flags if f not in {*options, "--help"}]
    assert not unknown
    assert n_options > 100


def test_every_file_that_a_page_names_exists():
    missing = []
    measured = [*(ROOT / "results/log").glob("*.md"), *(ROOT / "results/tables").glob("*.md")]
    for page in {*PAGES, ROOT / "results/README.md"} - set(measured):
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:\w+/)+[\w./-]*\w\.(?:py|md|toml|sh))`", text):
            places = (ROOT, ROOT / "scalelab", ROOT / "dashboard/scalelab_dashboard")
            is_example = re.search("NAME|YYYY|scalelab.toml", name)
            if not is_example and not any((place / name).exists() for place in places):
                missing.append((page.name, name))
        for name in re.findall(r"\]\(([^)#:]+\.\w+)(?:#[\w-]+)?\)", text):
            if not (page.parent / name).exists():
                missing.append((page.name, name))
    assert not missing


def test_results_are_linked_from_their_summary():
    summary = (ROOT / "results/README.md").read_text(encoding="utf-8")
    for kind in ("log", "tables"):
        for path in (ROOT / "results" / kind).glob("*.md"):
            assert f"({kind}/{path.name})" in summary


def test_the_example_gives_the_figures_of_the_readme(tmp_path):
    shutil.copytree(ROOT / "results/published/demo", tmp_path, dirs_exist_ok=True)
    for words in (
        ["-m", "scalelab", "collect", "--results", str(tmp_path)],
        [str(ROOT / "examples/predict_largest.py"), "demo", str(tmp_path)],
    ):
        answer = subprocess.run(
            [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=600
        )
        assert answer.returncode == 0, answer.stderr
    error = re.search(r"mean relative error ([\d.]+)%, largest", answer.stdout)[1]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"has a mean error of {error} %" in " ".join(readme.split())
    assert "6 of 6 losses inside" in answer.stdout


def test_the_tutorial_compares_the_approaches_truly():
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    block = page[page.index("$ scalelab fit --sweep demo\n") :].split("```")[0]
    number = r"([\d.]+) \[([\d.]+), ([\d.]+)\]"
    rows = {k: re.search(rf"^ {k}, .*? {number} +{number}", block, re.MULTILINE) for k in "23"}
    (a2, a2_low, a2_high, b2, _, b2_high), (_, a3_low, a3_high, _, b3_low, _) = (
        [float(text) for text in rows[k].groups()] for k in "23"
    )
    assert a2_low < a3_high
    assert a3_low < a2_high
    assert b2_high < b3_low
    assert a2 + b2 < 1
    pattern = r"of approach 3 by \+([\d.]+) %, confidence interval\s+(-[\d.]+) to \+"
    difference, low = re.search(pattern, block).groups()
    assert f"D_opt differs by {difference} %" in page
    assert float(low) < 0
    ratios = {}
    for path in (ROOT / "results/published/demo/runs").glob("*/attempts/*/record.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        n_params = record["n_params"]["chinchilla"]
        ratios[n_params] = record["flops"]["6nd"] / record["flops"]["exact"]
    assert f"{ratios[min(ratios)]:.2f} times those for the smallest" in page.replace("\n  ", " ")
    assert f"{ratios[max(ratios)]:.2f} times for the largest" in page.replace("\n  ", " ")

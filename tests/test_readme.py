"""Every command in the README runs, in the order in which a reader would type it.

The long sweep is replaced by the smoke sweep under the same name; nothing else is changed.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SMOKE = "scalelab sweep run sweeps/smoke.toml --name demo --yes"
# A fit may honestly say that six tiny runs do not determine the law.
NOT_IDENTIFIED = 4


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [
        line.split("  #")[0].strip()
        for block in blocks
        for line in block.splitlines()
        if line.strip()
    ]


SCALELAB = [line for line in commands() if line.startswith("scalelab ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a reader's folder: the sweep files, examples, some notes, and a CSV of runs."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "sweeps", folder / "sweeps")
    shutil.copytree(ROOT / "examples", folder / "examples")
    notes = folder / "notes"
    notes.mkdir()
    for package in ("asyncio", "concurrent/futures", "email", "http", "logging", "unittest"):
        for file in (Path(sysconfig.get_path("stdlib")) / package).glob("*.py"):
            shutil.copy(file, notes / f"{package.replace('/', '-')}-{file.name}")
    rng = np.random.default_rng(3)
    lines = ["params,tokens,val_loss"]
    for params in np.geomspace(5e7, 3e9, 9):
        for ratio in (5, 12, 30, 80):
            tokens = params * ratio
            loss = 1.8 + 480 / params**0.348 + 2080 / tokens**0.366
            lines.append(f"{params:.0f},{tokens:.0f},{loss * np.exp(rng.normal(0, 2e-3)):.5f}")
    (folder / "runs.csv").write_text("\n".join(lines) + "\n")
    (folder / "tuned_runs.csv").write_text(tuned_runs(rng))
    return folder


def tuned_runs(rng: np.random.Generator) -> str:
    """Return runs of 9 cells (N, D) at 5 learning rates and 3 batches, on a known valley."""
    lines = ["n_params,n_tokens,lr,batch_seqs,loss"]
    for n_params in (1e8, 3e8, 1e9):
        for n_tokens in (2e9, 1e10, 5e10):
            best = (1.8 * n_params**-0.7 * n_tokens**0.3, 0.6 * n_tokens**0.57)
            for far in (-1.6, -0.8, 0.0, 0.8, 1.6):
                for batch_seqs in (32, 128, 512):
                    wide = np.log(batch_seqs * 2048 / best[1])
                    loss = 1.8 + 480 / n_params**0.348 + 2080 / n_tokens**0.366
                    loss *= np.exp(0.01 * far**2 + 0.003 * wide**2 + rng.normal(0, 1e-3))
                    lr = best[0] * np.exp(far)
                    lines.append(f"{n_params:g},{n_tokens:g},{lr:.5g},{batch_seqs},{loss:.5f}")
    return "\n".join(lines) + "\n"


def run(folder: Path, cache_home: Path, line: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(line)
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=800,
        env={
            **os.environ,
            "XDG_CACHE_HOME": str(cache_home),
            "XDG_CONFIG_HOME": str(folder / "config"),
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize("line", SCALELAB)
def test_the_command_runs(folder, cache_home, line):
    if "--budgets 8e10..8e11" in line:
        line = SMOKE
    if "RUN_ID" in line:
        listed = next((folder / "results" / "runs").iterdir()).name
        line = line.replace("RUN_ID", listed)
    answer = run(folder, cache_home, line)
    is_of_tiny_runs = line.startswith(("scalelab fit --sweep", "scalelab report --sweep"))
    allowed = {0, NOT_IDENTIFIED} if is_of_tiny_runs else {0}
    assert answer.returncode in allowed, answer.stderr
    assert "Traceback" not in answer.stderr
    if "--json" in line:
        json.loads(answer.stdout)
    else:
        assert answer.stdout.strip() or "--out" in line


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z]+)", README + (ROOT / "CONTRIBUTING.md").read_text()))
    assert {"demo", "test"} <= named <= targets


def test_make_demo_runs_what_the_readme_shows():
    script = (ROOT / "examples" / "demo.sh").read_text()
    ran = re.findall(r"^run (.*?)(?: \|\| .*)?$", script, re.MULTILINE)
    start = next(i for i, line in enumerate(SCALELAB) if "--name demo" in line)
    assert [f"scalelab {words}" for words in ran] == SCALELAB[start : start + len(ran)]
    assert len(ran) == 3


def test_files_that_the_readme_points_to_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_python_example_runs(folder):
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    code = code.replace('sweep="demo"', 'data="runs.csv", mapping=MAPPING')
    mapping = {"n_params": "params", "n_tokens": "tokens", "loss_nats": "val_loss"}
    answer = subprocess.run(
        [sys.executable, "-c", f"MAPPING = {mapping!r}\n{code}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert answer.returncode == 0, answer.stderr
    assert "loss_nats" in answer.stdout

"""``scalelab fit`` as a process: exit codes, pipes and imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def test_the_help_has_an_example(run):
    out, _ = run("fit", "--help")
    assert "Example: scalelab fit --from runs.csv" in " ".join(out.split())


@pytest.mark.parametrize("no_color", ["1", None])
def test_the_installed_command_runs_as_a_process(tables, no_color):
    command = Path(sys.executable).with_name("scalelab")
    words = [
        "fit",
        "--from",
        tables / "llama3" / "data.csv",
        "--predict",
        "C=3.8e25",
        "--forecaster",
        "law",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    if no_color:
        environment["NO_COLOR"] = no_color
    done = subprocess.run(
        [command, *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Extrapolation: ")
    assert "approaches disagree" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_a_process_that_is_not_identified_ends_with_four(tables):
    command = Path(sys.executable).with_name("scalelab")
    words = ["--from", tables / "misfitting" / "best_lr.csv", "--bootstrap", "0", "--json"]
    done = subprocess.run(
        [command, "fit", *words, "--map", "n_params=n_params_nonembed"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    found = json.loads(done.stdout)
    assert found["status"] == found["law_status"] == "not_identified"
    assert np.isfinite(found["objective"]["value"])
    assert found["param_convention"] == "kaplan"


@pytest.mark.parametrize("output", [[], ["--json"], ["--csv"], ["--help"]])
def test_a_reader_that_stops_ends_the_command_quietly(tmp_path, file, output):
    """As in ``scalelab fit .. | head -1``: 128 + SIGPIPE, and nothing on stderr."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "scalelab", "fit", "--from", file, "--forecaster", "law", *output],
        stdout=write_end,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        check=False,
    )
    os.close(write_end)
    assert done.returncode == 141
    assert done.stderr == b""


def test_a_fit_loads_no_library_that_it_does_not_use():
    code = (
        "import sys\n"
        "from scalelab.cli.main import main\n"
        "assert main(['fit', '--from', 'public:chinchilla', '--bootstrap', '40']) == 0\n"
        "heavy = {'scipy.optimize', 'scipy.interpolate', 'scipy.stats', 'pandas', 'pyarrow',"
        " 'matplotlib', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

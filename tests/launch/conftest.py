"""A tiny real sweep, and the losses of a launch without faults."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from scalelab.launch.proposal import propose
from scalelab.records.sweep_dir import Results
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.sweep.speeds import unmeasured_cpu_speed

N_RUNS = 6
SWEEP = f"""
kind = "isoflop"
budgets = "3e9,8e9"
sizes = {N_RUNS // 2}
span = 4

[data]
paths = ["TEXT"]
eval_tokens = 4096

[train]
seq_len = 32
batch_seqs = 4
"""


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Return a folder of real text: a part of the standard library, 1 MB."""
    folder = tmp_path_factory.mktemp("text")
    for name in ("asyncio", "email", "json", "logging"):
        source = Path(sysconfig.get_path("stdlib")) / name
        for file in source.glob("*.py"):
            shutil.copy(file, folder / f"{name}-{file.name}")
    return folder


@pytest.fixture
def sweep_file(tmp_path, text) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(SWEEP.replace("TEXT", str(text)))
    return path


@pytest.fixture
def start(sweep_file, tmp_path, cache_home):
    """Return a function that starts ``scalelab`` with a results folder in ``tmp_path``."""
    started = []

    def run(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "scalelab", *words, "--results", str(tmp_path / "results")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_CACHE_HOME": str(cache_home)},
            start_new_session=True,
            # A background test process ignores SIGINT, and its children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def results(tmp_path) -> Results:
    return Results(tmp_path / "results")


@pytest.fixture(scope="session")
def undisturbed(text, cache_home, tmp_path_factory) -> dict[str, float]:
    """Return the final losses of a launch without faults, by run_id."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.toml").write_text(SWEEP.replace("TEXT", str(text)))
    words = ["sweep", "run", str(folder / "tiny.toml"), "--yes", "--json"]
    answer = subprocess.run(
        [sys.executable, "-m", "scalelab", *words, "--results", str(folder / "results")],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
        env={**os.environ, "XDG_CACHE_HOME": str(cache_home)},
    )
    assert json.loads(answer.stdout)["counts"] == {"done": N_RUNS}
    return losses(Results(folder / "results"))


def losses(results: Results) -> dict[str, float]:
    """Return the loss of each run's accepted record; fail if a planned run has none."""
    found = {}
    for run_id in results.load_plan("tiny").run_ids:
        folder = results.run(run_id)
        accepted = folder.accepted()
        assert accepted is not None, f"{run_id} has no accepted record"
        record = accepted.read_record()
        assert record is not None
        found[run_id] = record.loss_nats
    return found


@pytest.fixture
def losses_of():
    return losses


@pytest.fixture
def save(text):
    """Return a function that saves a sweep of 4 seeds and 2 lengths of one shape."""

    def make(folder):
        sweep = sweep_from_mapping(
            {
                "kind": "grid",
                "name": "batched",
                "n_params": "15K",
                "n_tokens": "60K,90K",
                "data": {"paths": (str(text),), "eval_tokens": 4096},
                "train": {"seq_len": 32, "batch_seqs": 4, "seeds": (0, 1, 2, 3)},
            },
            source="the test",
        )
        results = Results(folder)
        proposal = propose(
            sweep,
            results,
            execution=ExecutionSpec(step="direct"),
            n_workers=2,
            is_dry_run=False,
            speed=unmeasured_cpu_speed(2),
        )
        return results, results.save_plan(proposal.plan, sweep.science(), extend=False)

    return make

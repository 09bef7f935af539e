"""A tuning whose runs are SLURM jobs."""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest


@pytest.mark.parametrize("cluster", [False], indirect=True, ids=["no-sacct"])
def test_a_tuning_runs_as_jobs_and_resumes(cluster, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for file in (Path(sysconfig.get_path("stdlib")) / "asyncio").glob("*.py"):
        shutil.copy(file, text)
    words = (
        *("tune", "--n-params", "12K,20K", "--n-tokens", "20K,40K", "--name", "jobs", "--yes"),
        *("--seq-len", "32", "--batch-seqs", "4..16", "--eval-tokens", "4096", "--data", str(text)),
        *("--wave", "3", "--bootstrap", "10", "--json", "--results", str(tmp_path / "results")),
        *("--launcher", "slurm", "--gpus-per-run", "0", "--cpus", "1", "--mem", "1G"),
    )

    def tune(trials: int) -> dict:
        command = [sys.executable, "-m", "scalelab", *words, "--trials", str(trials)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=800)
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)

    first = tune(3)
    assert sum(first["trials"].values()) == 12
    assert first["trials"]["complete"] >= 10
    more = tune(4)
    assert sum(more["trials"].values()) == 16
    assert more["law"]["lr"]["k"]["value"] > 0
    intents = list((tmp_path / "results/sweeps/jobs/intents").iterdir())
    assert len(intents) == 2

"""Hugging Face's Trainer trains a sweep on the local pool; `tests/slurm` does the same in jobs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scalelab_dashboard import app
from streamlit.testing.v1 import AppTest

from scalelab.launch.programs.process import processes_of
from scalelab.records.sweep_dir import Results
from scalelab.theory.accounting import count_params

EXAMPLE = Path(__file__).parents[2] / "examples/programs/hf_trainer/sweep.toml"
N_RUNS = 12
TINY = (
    *("sweep", "run", str(EXAMPLE), "--name", "hf", "--budgets", "8e9..3.2e10:3"),
    *("--tokens-per-param", "2", "--span", "8", "--batch-seqs", "32", "--yes", "--json"),
)
NOT_IDENTIFIED = 4


def scalelab(*words: str, results: Path, accepted: tuple[int, ...] = (0,)) -> Any:
    """Run a command and return its JSON, or None if it prints none."""
    done = subprocess.run(
        [sys.executable, "-m", "scalelab", *words, "--results", str(results)],
        capture_output=True,
        text=True,
        timeout=1000,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode in accepted, done.stdout + done.stderr
    return json.loads(done.stdout) if "--json" in words else None


def check_runs(results: Results) -> None:
    """Each run has one result, of the planned size, and left no process."""
    run_ids = results.load_plan("hf").run_ids
    assert len(run_ids) == N_RUNS
    losses = {}
    for run_id in run_ids:
        run = results.run(run_id)
        spec, accepted = run.read_spec(), run.accepted()
        assert accepted is not None
        assert [a.token for a in run.attempts() if a.read_record()] == [accepted.token]
        record = accepted.read_record()
        assert record is not None
        assert record.n_params["chinchilla"] == count_params(spec.shape).total
        assert (record.n_tokens, record.n_steps) == (spec.n_tokens, spec.n_steps)
        losses[run_id] = record.loss_nats
        assert not processes_of(accepted.token)
    assert all(2.0 < loss < math.log(256) for loss in losses.values())


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_trainer_of_hugging_face_trains_an_isoflop_sweep_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = scalelab(*TINY, results=tmp_path)
    assert report["counts"] == {"done": N_RUNS}
    check_runs(Results(tmp_path))
    fit = scalelab(
        *("fit", "--sweep", "hf", "--bootstrap", "20", "--json"),
        results=tmp_path,
        accepted=(0, NOT_IDENTIFIED),
    )
    assert fit["n_rows"] == N_RUNS
    page = tmp_path / "report.html"
    scalelab(
        "report",
        "--sweep",
        "hf",
        "--out",
        str(page),
        results=tmp_path,
        accepted=(0, NOT_IDENTIFIED),
    )
    assert page.stat().st_size > 10_000
    monkeypatch.setenv("SCALELAB_RESULTS", str(tmp_path))
    monkeypatch.delenv("SCALELAB_DASHBOARD_FILE", raising=False)
    overview = AppTest.from_file(str(Path(app.__file__)), default_timeout=300).run()
    assert not overview.exception
    assert f"{N_RUNS} done" in "\n".join(element.value for element in overview.markdown)

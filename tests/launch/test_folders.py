"""Planning here, training run folders where only torch and NumPy are, and collecting here again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalelab.errors import DataError
from scalelab.launch.folders import main
from scalelab.records.sweep_dir import Results
from scalelab.sweep.execution import AUTO
from tests.bare_machine import bare_environment

ROOT = Path(__file__).parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def plan(start: Any, sweep_file: Path, tmp_path: Path) -> Callable[..., Results]:
    """Return a function that plans the tiny sweep and trains nothing."""

    def made(*words: str) -> Results:
        process = start("sweep", "run", str(sweep_file), "--name", "tiny", "--plan-only", *words)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "python -m scalelab.launch.folders" in out
        return Results(tmp_path / "results")

    return made


@pytest.fixture
def bare(tmp_path: Path) -> Command:
    """Return a function that trains run folders without most of scalelab's dependencies."""
    folder = tmp_path / "blocker"
    folder.mkdir()
    environment = bare_environment(folder, ROOT, ROOT / "kernels")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "scalelab.launch.folders", *words],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.slow
def test_a_plan_is_trained_from_its_folders_without_scalelab_s_dependencies(
    plan: Callable[..., Results], bare: Command, start: Any, tmp_path: Path
) -> None:
    results = plan()
    saved = results.load_plan("tiny")
    elsewhere = Results(tmp_path / "elsewhere")
    shutil.copytree(results.path, elsewhere.path)

    stopped = bare(str(elsewhere.path), "--workers", "2", "--deadline-s", "0.1")
    assert stopped.returncode == 75, stopped.stderr
    done = bare(str(elsewhere.path), "--sweep", "tiny", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{len(saved.run_ids)} done runs"

    shutil.rmtree(results.path / "runs")
    shutil.copytree(elsewhere.path / "runs", results.path / "runs")
    for words in (("collect",), ("fit", "--sweep", "tiny", "--json")):
        process = start(*words)
        out, err = process.communicate()
        # 4 means that the runs do not determine the law, which six short runs need not.
        assert process.returncode in (0, 4), err
    assert json.loads(out)["n_rows"] == len(saved.run_ids)
    # The attempt stores the way that it took, never a request.
    for run_id in saved.run_ids:
        note = elsewhere.run(run_id).attempts()[-1].read_note()
        assert AUTO not in note["execution"].values()


def test_a_gpu_sweep_is_planned_without_a_gpu(plan: Callable[..., Results]) -> None:
    results = plan("--device", "cuda", "--kernels", "triton")
    specs = [results.run(run_id).read_spec() for run_id in results.load_plan("tiny").run_ids]
    assert {spec.precision for spec in specs} == {"bf16"}
    assert all(not results.run(spec.run_id).attempts() for spec in specs)
    assert results.dataset(specs[0].data_fingerprint).is_dir()
    options = json.loads((results.sweep("tiny") / "execution.json").read_text())
    assert (options["step"], options["kernels"]) == (AUTO, "triton")


def test_what_cannot_be_trained_is_said(tmp_path: Path, capsys: Any) -> None:
    assert main([str(tmp_path)]) == DataError.exit_code
    assert "no planned sweep" in capsys.readouterr().err

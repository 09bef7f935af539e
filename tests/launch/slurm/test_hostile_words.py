"""Hostile names, paths and files: they reach neither a folder nor a shell, nor are they run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from scalelab.errors import SpecError, UsageError
from scalelab.launch.slurm.batch_script import make_executor
from scalelab.launch.slurm.intents import JobGroup, read_intents, read_job_group, write_intent
from scalelab.launch.slurm.launcher import check_path
from scalelab.launch.slurm.resources import JobResources
from scalelab.records.sweep_dir import Results, SavedPlan
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.spec import sweep_from_mapping
from tests.launch.slurm.conftest import CPU_TABLE

CPU_JOB = JobResources(gpus=0, time_min=60, memory_gb=1.0)


@pytest.mark.parametrize(
    "name", ["a/b", "..", "a'b", 'a"b', "a\nb", "$(id)", "a;b", "-x", ".x", ""]
)
def test_hostile_words_reach_neither_folder_nor_shell(
    results: Results, saved: SavedPlan, name: str
) -> None:
    with pytest.raises(UsageError):
        results.sweep(name)
    sweep = {"kind": "grid", "n_params": "20K", "n_tokens": 1e5}
    for option in ("partition", "account", "qos"):
        with pytest.raises(UsageError, match=option):
            sweep_from_mapping({**sweep, "launcher": {"slurm": {option: name}}}, source="a test")


@pytest.mark.parametrize("path", ["per%cent", "back\\slash", "new\nline", "tab\t"])
def test_paths_that_sbatch_would_change_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError, match="--results"):
        check_path(tmp_path / path)


def test_a_path_with_shell_characters_stays_one_word(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s $(touch owned) `touch owned` & "more"; #'
    folder.mkdir()
    executor = make_executor(CPU_TABLE, CPU_JOB, folder, "scalelab.x.0", n_elements=1, throttle=1)
    (folder / "submitted.pkl").touch()
    script = executor.script().replace("srun ", "true ")
    program = tmp_path / "script.sh"
    program.write_text(script)
    environment = {**os.environ, "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "0"}
    subprocess.run(["bash", str(program)], cwd=tmp_path, env=environment, check=True)
    assert not (tmp_path / "owned").exists()
    assert (folder / "5_0_submitted.pkl").resolve() == folder / "submitted.pkl"


def test_a_callable_that_is_a_link_or_missing_is_not_run(tmp_path: Path) -> None:
    executor = make_executor(CPU_TABLE, CPU_JOB, tmp_path, "scalelab.x.0", n_elements=1, throttle=1)
    program = tmp_path / "script.sh"
    program.write_text(executor.script().replace("srun ", "echo reached "))
    environment = {**os.environ, "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "0"}
    for make in (lambda: None, lambda: (tmp_path / "submitted.pkl").symlink_to("/dev/null")):
        make()
        answer = subprocess.run(
            ["bash", str(program)], env=environment, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 77
        assert "reached" not in answer.stdout


def test_an_edited_intent_is_refused(results: Results, saved: SavedPlan) -> None:
    job_group = JobGroup(run_ids=saved.run_ids, execution=ExecutionSpec(), seconds=1.0)
    folder = results.sweep(saved.name)
    intent = write_intent(folder, [job_group], throttle=1, gpus=0, time_min=5, memory_gb=1)
    assert read_intents(folder) == [intent]
    assert read_job_group(folder, intent.id, 0) == job_group
    (intent.path / "intent.json").write_text('{"job_groups": 3}')
    with pytest.raises(SpecError, match="intent"):
        read_intents(folder)
    (folder / "job_groups" / f"{intent.id}-0.json").write_text("[]")
    with pytest.raises(SpecError, match="job group"):
        read_job_group(folder, intent.id, 0)

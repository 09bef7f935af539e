"""Arrays, time limits, memory and GPUs follow from the runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scalelab.cli.main import main
from scalelab.launch.slurm.job_groups import make_job_groups
from scalelab.launch.slurm.resources import (
    RunNeeds,
    grouped_by_resources,
    memory_limit_gb,
    run_memory_gb,
    time_limit_min,
)
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.program import ProgramExecution
from scalelab.sweep.tables import SlurmTable
from tests.launch.slurm.replayed import make_runs

FILE = """
kind = "isoflop"
budgets = "1e18,1e19,1e20"
sizes = 3

[train]
seq_len = 2048

[launcher]
name = "slurm"

[launcher.slurm]
gpus_per_run = {"<1e19" = 1, ">=1e19" = 8}
gres = "gpu:h100:{gpus}"
time_min = 720
"""


def test_jobs_are_grouped_by_gpus_and_time_limit_and_keep_their_order() -> None:
    seconds = {"a": 40_000.0, "b": 5_000.0, "c": 4_000.0, "d": 300.0, "e": 200.0, "f": 100.0}
    needs = {
        run_id: RunNeeds(gpus=8 if run_id in "ace" else 1, memory_gb=10.0 if run_id < "d" else 2.0)
        for run_id in seconds
    }
    job_groups = make_job_groups(
        list(seconds),
        seconds,
        ExecutionSpec(),
        target_s=1000.0,
        gpus={run_id: need.gpus for run_id, need in needs.items()},
    )
    assert [group.run_ids for group in job_groups] == [("a",), ("b",), ("c",), ("d", "f"), ("e",)]
    assert [group.execution.n_devices for group in job_groups] == [8, 1, 8, 1, 8]
    arrays = grouped_by_resources(job_groups, needs, SlurmTable(time_min=720))
    found = [
        (each.gpus, each.time_min, each.memory_gb, [i for g in groups for i in g.run_ids])
        for each, groups in arrays
    ]
    assert found == [
        (8, 720, 16.0, ["a"]),
        (1, 480, 16.0, ["b"]),
        (8, 240, 16.0, ["c"]),
        (1, 60, 16.0, ["d", "f"]),
        (8, 30, 16.0, ["e"]),
    ]
    # A run that reached a limit gets the largest one; memory that was asked for is kept.
    arrays = grouped_by_resources(job_groups, needs, SlurmTable(mem_gb=3, time_min=720), slow={"e"})
    assert {each.time_min for each, g in arrays if each.gpus == 8 and len(g) == 2} == {720}
    assert {each.memory_gb for each, _ in arrays} == {3.0}


@pytest.mark.parametrize(
    ("seconds", "most", "minutes"),
    [(0, 240, 30), (300, 240, 30), (301, 240, 60), (3600, 240, 240), (1e6, 240, 240), (60, 20, 20)],
)
def test_time_limits_have_a_margin_and_a_largest_value(
    seconds: float, most: int, minutes: int
) -> None:
    assert time_limit_min(seconds, most) == minutes


def test_memory_follows_from_the_checkpoint_of_the_model(tmp_path: Path) -> None:
    results, (run_id, *_) = make_runs(tmp_path, 1)
    spec = results.run(run_id).read_spec()
    small = run_memory_gb(spec, 1, is_on_cpu=False)
    assert small == pytest.approx(4.0, abs=0.1)
    assert run_memory_gb(spec, 8, is_on_cpu=False) - small == pytest.approx(28.0)
    assert run_memory_gb(spec, 1, is_on_cpu=True) > small
    assert [memory_limit_gb(need) for need in (1, 11, 44, 5000)] == [16, 24, 96, 7500]


def test_the_dry_run_prints_the_script_of_each_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "wide.toml"
    path.write_text(FILE)
    assert main(["sweep", "run", str(path), "--dry-run", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    arrays = content["slurm"]["arrays"]
    assert [(array["gpus"], array["time_min"], array["n_jobs"]) for array in arrays] == [
        *((8, 720, 3), (8, 240, 3), (1, 240, 3))
    ]
    for array in arrays:
        lines = array["script"].splitlines()
        assert f"#SBATCH --gres=gpu:h100:{array['gpus']}" in lines
        assert f"#SBATCH --ntasks-per-node={array['gpus']}" in lines
        assert f"#SBATCH --time={array['time_min']}" in lines
        assert f"#SBATCH --mem={array['memory_gb'] * 1024:.0f}MB" in lines
        assert "--gpus-per-node" not in array["script"]
    assert arrays[0]["memory_gb"] > arrays[1]["memory_gb"] > arrays[2]["memory_gb"] == 16
    rows = content["rows"]
    assert [row["gpus"] for row in rows] == [1] * 3 + [8] * 6
    # Eight GPUs take an eighth of the time and cost the same.
    hours = sum(row["gpus"] * row["seconds"] for row in rows) / 3600
    assert content["slurm"]["gpu_hours"] == pytest.approx(hours)
    assert content["slurm"]["usd"] == pytest.approx(content["totals"]["usd"])
    words = ["--gpus-per-run", "<1e19=1,>=1e19=512", "--sbatch", "gres=false"]
    assert main(["sweep", "run", str(path), "--dry-run", *words]) == 2
    assert "sequences a batch over 512 devices" in capsys.readouterr().err


def test_a_run_of_unknown_time_gets_its_own_job_with_the_largest_limit() -> None:
    execution = ExecutionSpec(program=ProgramExecution(cwd="/"))
    seconds = {"a": 60.0, "b": 0.0, "c": 0.0, "d": 60.0}
    groups = make_job_groups(
        list(seconds), seconds, execution, target_s=1e4, gpus=dict.fromkeys(seconds, 1)
    )
    assert [group.run_ids for group in groups] == [("a", "d"), ("b",), ("c",)]
    needs = dict.fromkeys(seconds, RunNeeds(gpus=1, memory_gb=1.0))
    arrays = grouped_by_resources(groups, needs, SlurmTable(time_min=720))
    assert [(each.time_min, len(found)) for each, found in arrays] == [(30, 1), (720, 2)]

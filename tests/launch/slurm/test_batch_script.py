"""Resources of a job, and names that a batch script cannot hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.errors import UsageError
from scalelab.launch.slurm.batch_script import make_executor
from scalelab.launch.slurm.resources import JobResources, nodes_and_tasks
from scalelab.records.sweep_dir import Results
from scalelab.sweep.tables import SlurmTable
from tests.launch.slurm.replayed import launch, make_runs


@given(gpus=st.integers(1, 300), per_node=st.integers(1, 16))
def test_every_gpu_of_a_run_has_one_task_and_nodes_share_them_evenly(
    gpus: int, per_node: int
) -> None:
    n_nodes, n_tasks = nodes_and_tasks(gpus, per_node)
    assert n_nodes * n_tasks == gpus
    assert n_tasks <= per_node
    fewer = [n for n in range(1, n_nodes) if gpus % n == 0 and gpus // n <= per_node]
    assert not fewer


@pytest.mark.parametrize(
    ("gpus", "nodes", "tasks"), [(0, 1, 1), (1, 1, 1), (8, 1, 8), (12, 2, 6), (7, 7, 1)]
)
def test_the_request_of_a_run(tmp_path: Path, gpus: int, nodes: int, tasks: int) -> None:
    per_node = 8 if gpus != 7 else 4
    table = SlurmTable(gpus_per_run=gpus, gpus_per_node=per_node)
    resources = JobResources(gpus=gpus, time_min=90, memory_gb=0.5)
    script = make_executor(
        table, resources, tmp_path, "scalelab.x.0", n_elements=1, throttle=1
    ).script()
    assert "#SBATCH --time=90\n" in script
    assert "#SBATCH --mem=512MB\n" in script
    assert f"#SBATCH --nodes={nodes}\n" in script
    assert f"#SBATCH --ntasks-per-node={tasks}\n" in script
    assert (f"#SBATCH --gpus-per-node={tasks}\n" in script) == (gpus > 0)
    # If a task dies, srun ends the others, which would wait for it.
    assert ("--kill-on-bad-exit=1" in script) == (gpus > 1)


@pytest.mark.parametrize("folder", ["per%cent", "back\\slash", "new\nline", "tab\t"])
def test_a_folder_that_sbatch_would_rewrite_is_refused_before_anything_is_written(
    tmp_path: Path, folder: str
) -> None:
    _, run_ids = make_runs(tmp_path / "results", 1)
    (tmp_path / "results").rename(tmp_path / folder)
    before = sorted((tmp_path / folder).rglob("*"))
    with pytest.raises(UsageError, match="--results"):
        launch(Results(tmp_path / folder), run_ids)
    assert sorted((tmp_path / folder).rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["../outside", "a/b", "..", "a'b", "a\nb", "$(id)", "a;b", "-x", ""]
)
def test_a_sweep_whose_name_leaves_the_results_folder_is_refused(tmp_path: Path, name: str) -> None:
    results, run_ids = make_runs(tmp_path / "results", 1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="sweep"):
        launch(results, run_ids, name=name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("launcher", "gpus", "expected"),
    [
        ("single", 8, {"nodes": 1, "ntasks-per-node": 1, "cpus-per-task": 32}),
        ("torchrun", 16, {"nodes": 2, "ntasks-per-node": 1, "cpus-per-task": 32}),
        ("srun", 16, {"nodes": 2, "ntasks-per-node": 8, "cpus-per-task": 4}),
        ("torchrun", 0, {"nodes": 1, "ntasks-per-node": 1, "cpus-per-task": 4}),
    ],
)
def test_the_job_of_a_program_has_the_tasks_of_its_launcher(
    tmp_path: Path, launcher: str, gpus: int, expected: dict[str, int]
) -> None:
    script = make_executor(
        SlurmTable(gpus_per_run=gpus, gpus_per_node=8, cpus=4),
        JobResources(gpus=gpus, time_min=90, memory_gb=0.5),
        tmp_path,
        "scalelab.x.0",
        n_elements=1,
        throttle=1,
        launcher=launcher,
    ).script()
    for name, value in expected.items():
        assert f"#SBATCH --{name}={value}\n" in script
    assert ("#SBATCH --gpus-per-node=8\n" in script) == (gpus > 0)
    # One process makes the attempt, for any number of tasks.
    has_more = expected["nodes"] * expected["ntasks-per-node"] > 1
    assert ("--nodes=1 --ntasks=1" in script) == has_more
    assert "--kill-on-bad-exit" not in script

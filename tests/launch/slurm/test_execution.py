"""Jobs with several GPUs per run: the execution, and runs that cannot be split over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalelab.errors import ScalelabError
from scalelab.launch import execute
from scalelab.launch.base import LaunchReport, LaunchRequest
from scalelab.launch.saved_options import save_options
from scalelab.launch.slurm import launcher as slurm
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.tables import LauncherTable, SlurmTable
from tests.launch.slurm.replayed import make_runs


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ExecutionSpec]:
    """Return a function that gives the execution of runs of 4 sequences per batch in jobs."""
    results, _ = make_runs(tmp_path / "results", 2, name="wide")
    requests: list[LaunchRequest] = []

    def launch_slurm(request: LaunchRequest, options: Any, watch: Any) -> LaunchReport:
        requests.append(request)
        return LaunchReport(statuses={}, n_started=0, wall_s=0.0)

    monkeypatch.setattr(slurm, "launch_slurm", launch_slurm)
    # The text is not prepared here: skip collecting and expected times.
    monkeypatch.setattr(execute, "collect", lambda folder: None)
    monkeypatch.setattr(execute, "_seconds", lambda specs, results, speed: {})

    def submit(**table: Any) -> ExecutionSpec:
        launcher = LauncherTable(name="slurm", slurm=SlurmTable(**table))
        save_options(results, "wide", launcher)
        execute.resume(
            results.load_plan("wide"),
            results,
            lambda view: None,
            execution=ExecutionSpec(device="cuda"),
            n_workers=1,
        )
        return requests.pop().execution

    return submit


def test_jobs_share_blocks_as_the_table_says(submitted: Callable[..., ExecutionSpec]) -> None:
    assert submitted() == ExecutionSpec(device="cuda")
    assert submitted(gpus_per_run=8, tensor_parallel=2).tensor_parallel == 2


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"gpus_per_run": 8}, "4 sequences a batch over 8 devices"),
        ({"gpus_per_run": 16, "tensor_parallel": 2}, "4 sequences a batch over 8 groups"),
        ({"gpus_per_run": 64, "tensor_parallel": 64}, "n_kv_heads"),
        ({"gpus_per_run": 0, "tensor_parallel": 2}, "tensor_parallel = 2 on 1 device a run"),
    ],
)
def test_nothing_is_submitted_that_cannot_be_shared(
    submitted: Callable[..., ExecutionSpec], table: dict[str, int], words: str
) -> None:
    with pytest.raises(ScalelabError, match=words):
        submitted(**table)

"""A resumed sweep keeps launcher and execution of its last launch, unless told otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scalelab.api import sweeps as api
from scalelab.errors import SpecError, UsageError
from scalelab.launch import execute
from scalelab.launch.base import LaunchReport
from scalelab.launch.saved_options import changed_options, save_options, saved_options
from scalelab.sweep.execution import AUTO, ExecutionSpec
from scalelab.sweep.tables import ExecutionTable, LauncherTable
from tests.launch.slurm.replayed import make_runs


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[ExecutionSpec]:
    """Return the list of requests that launches get; nothing is trained."""
    found: list[ExecutionSpec] = []

    def launch(request: Any, *rest: Any) -> LaunchReport:
        found.append(request.execution)
        statuses = dict.fromkeys(request.run_ids, "done")
        return LaunchReport(statuses=statuses, n_started=0, wall_s=0.0)

    monkeypatch.setattr(execute, "_launch", launch)
    monkeypatch.setattr(execute, "collect", lambda folder: None)
    return found


def test_resume_keeps_the_execution_of_the_last_launch_and_can_change_it(
    tmp_path: Path, requests: list[ExecutionSpec]
) -> None:
    results, _ = make_runs(tmp_path, 2)
    save_options(results, "crash", ExecutionTable(step="eager", batched_runs=1))
    api.resume("crash", results=tmp_path, device="cpu")
    api.resume("crash", results=tmp_path, device="cpu", execution={"attention": "sdpa"})
    api.resume("crash", results=tmp_path, device="cpu")
    assert [(r.step, r.attention, r.batched_runs) for r in requests] == [
        ("eager", AUTO, 1),
        ("eager", "sdpa", 1),
        ("eager", "sdpa", 1),
    ]
    with pytest.raises(UsageError, match="step = 'fast'"):
        api.resume("crash", results=tmp_path, execution={"step": "fast"})


def test_resume_refuses_what_the_unfinished_runs_cannot_do(tmp_path: Path) -> None:
    make_runs(tmp_path, 2)
    with pytest.raises(UsageError, match="step = graph on a CPU"):
        api.resume("crash", results=tmp_path, device="cpu", execution={"step": "graph"})


def test_options_survive_a_round_trip_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    results, _ = make_runs(tmp_path, 1)
    assert saved_options(results, "crash", LauncherTable) == LauncherTable()
    launcher = changed_options(LauncherTable(), {"name": "slurm", "slurm": {"cpus": "2"}})
    save_options(results, "crash", launcher, ExecutionTable(kernels="reference"))
    assert saved_options(results, "crash", LauncherTable).slurm.cpus == 2
    assert saved_options(results, "crash", ExecutionTable).kernels == "reference"
    (results.sweep("crash") / "execution.json").write_text("{")
    with pytest.raises(SpecError, match=r"execution\.json"):
        saved_options(results, "crash", ExecutionTable)

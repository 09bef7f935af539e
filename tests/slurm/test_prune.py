"""A hopeless run is stopped while its job runs on the real cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scalelab.launch import prune
from scalelab.launch.base import LaunchRequest
from scalelab.launch.local.pool import launch_local
from scalelab.launch.saved_options import saved_options
from scalelab.launch.slurm.arrays import SlurmOptions
from scalelab.launch.slurm.launcher import launch_slurm
from scalelab.launch.slurm.resources import run_needs
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.tables import LauncherTable


@pytest.mark.parametrize("cluster", [False], indirect=True, ids=["no-sacct"])
def test_a_job_of_a_hopeless_run_ends_early(
    cluster: Any,
    make_sweep: Callable[..., Any],
    stopping: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prune, "LOOK_INTERVAL_S", 0.5)
    healthy = make_sweep(tmp_path / "results", name="tiny", seeds=3, n_tokens="1e6,2.2e6")
    sweep = make_sweep(
        tmp_path / "results", name="tiny", seeds=1, n_tokens=4e6, lr=1e-6, extend=True
    )
    (bad,) = set(sweep.run_ids) - set(healthy.run_ids)
    execution = ExecutionSpec(step="direct", metrics_interval_steps=100)
    request = LaunchRequest(
        results=sweep.results,
        sweep="tiny",
        run_ids=healthy.run_ids,
        execution=execution,
        n_workers=2,
    )
    launch_local(request, lambda view: None)
    specs = [sweep.results.run(run_id).read_spec() for run_id in sweep.run_ids]
    table = saved_options(sweep.results, "tiny", LauncherTable).slurm
    options = SlurmOptions(
        table=table,
        needs=run_needs(table, execution, specs, {}),
        seconds=dict.fromkeys(sweep.run_ids, 5.0),
        usd_per_gpu_hour=0.0,
    )
    notes: list[str] = []
    request = replace(request, run_ids=sweep.run_ids, stop_hopeless=True)
    report = launch_slurm(request, options, lambda view: notes.append(view.note))
    assert report.statuses[bad] == "pruned", notes
    assert [report.statuses[run_id] for run_id in healthy.run_ids] == ["done"] * 6
    assert any(f"{bad} pruned: at " in note for note in notes)
    # The next launch starts nothing.
    assert launch_slurm(request, options, lambda view: None).n_started == 0

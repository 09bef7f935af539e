"""Runs that take two tasks each, trained together, on the real cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalelab.launch.base import LaunchRequest
from scalelab.launch.local import launch_local
from scalelab.sweep.run_spec import ExecutionSpec
from tests.slurm.test_jobs import TINY_TOKENS, WITHOUT_SACCT, ended


@WITHOUT_SACCT
def test_runs_of_two_tasks_have_the_losses_of_one(
    cluster: Any, make_sweep: Callable[..., Any], tmp_path: Path, stopping: list[Any]
) -> None:
    alone = make_sweep(tmp_path / "alone", seeds=2, n_tokens=TINY_TOKENS)
    request = LaunchRequest(
        results=alone.results,
        sweep=alone.name,
        run_ids=alone.run_ids,
        execution=ExecutionSpec(),
        n_workers=1,
    )
    launch_local(request, lambda view: None)
    sweep = make_sweep(
        tmp_path / "together",
        seeds=2,
        n_tokens=TINY_TOKENS,
        slurm={"gpus_per_run": 2, "target_job_minutes": 1},
    )
    launcher = sweep.start_launcher(seconds=4.0)
    stopping.append(launcher)
    assert set(ended(launcher)["statuses"].values()) == {"done"}
    for run_id, loss in alone.losses().items():
        (attempt,) = sweep.results.run(run_id).attempts()
        assert attempt.read_note()["execution"]["n_devices"] == 2
        assert sweep.losses()[run_id] == pytest.approx(loss, rel=2e-5)
    names = cluster.command("squeue", "-h", "-t", "all", "-r", "-o", "%j %T %C").split("\n")
    assert names.count(f"scalelab.{_intent(sweep)} COMPLETED 2") == 1


def _intent(sweep: Any) -> str:
    (folder,) = (sweep.results.sweep(sweep.name) / "intents").iterdir()
    return str(folder.name)

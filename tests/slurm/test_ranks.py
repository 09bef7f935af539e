"""Runs with two tasks each on the real cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalelab.launch.base import LaunchRequest
from scalelab.launch.local.pool import launch_local
from scalelab.launch.slurm.intents import read_intents
from scalelab.sweep.execution import ExecutionSpec
from tests.slurm.test_jobs import TINY_TOKENS, WITHOUT_SACCT, ended


@WITHOUT_SACCT
def test_runs_of_two_tasks_have_the_losses_of_one(
    cluster: Any,
    make_sweep: Callable[..., Any],
    tmp_path: Path,
    stopping: list[Any],
    wait_for: Callable[..., None],
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
    (intent,) = read_intents(sweep.results.sweep(sweep.name))
    assert [len(group.run_ids) for group in intent.job_groups] == [2]

    def jobs() -> list[str]:
        lines = cluster.command("squeue", "-h", "-t", "all", "-r", "-o", "%j %T %C").splitlines()
        return [line for line in lines if line.startswith(intent.job_name)]

    # The second task ended too when the first had no more runs.
    wait_for(lambda: jobs() == [f"{intent.job_name} COMPLETED 2"], "end of the job", 120)

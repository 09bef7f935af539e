"""Ranks of a job's processes, and how a task ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scalelab.launch.slurm.intents import read_job_group, write_intent
from scalelab.launch.slurm.job import qualify_request
from scalelab.launch.slurm.job_groups import make_job_groups
from scalelab.launch.worker import forget_ranks
from scalelab.sweep.execution import ExecutionSpec
from scalelab.train.sharded.ranks import Ranks, own_ranks


def test_a_single_process_removes_the_ranks_of_another_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert own_ranks() == Ranks(rank=3, n_ranks=8, local_rank=1)
    forget_ranks()
    assert own_ranks() == Ranks(rank=0, n_ranks=1, local_rank=0)


def test_an_abort_at_exit_does_not_change_the_exit_code_of_a_task() -> None:
    # Registered first, so it runs last: the abort of a library at exit.
    script = (
        "import atexit, os; atexit.register(os.abort)\n"
        "from scalelab.launch.slurm.job import exit_directly\n"
        "exit_directly(7); print('all is printed')"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (7, "all is printed\n")


def test_a_job_gets_the_runs_at_whose_shapes_it_qualifies_its_gpu(save, tmp_path) -> None:
    results, saved = save(tmp_path / "results")
    (group,) = make_job_groups(
        saved.run_ids[:2],
        dict.fromkeys(saved.run_ids, 1.0),
        ExecutionSpec(),
        target_s=60.0,
        gpus=dict.fromkeys(saved.run_ids, 1),
        qualify=saved.run_ids[-1:],
    )
    folder = results.sweep(saved.name)
    intent = write_intent(folder, [group], throttle=1, gpus=1, time_min=10, memory_gb=1)
    found = read_job_group(folder, intent.id, 0)
    assert found == group
    request = qualify_request(results, [*found.qualify, "0" * 12])
    assert request.folder == tmp_path / "results" / "qualification"
    assert [spec.run_id for spec in request.specs] == [saved.run_ids[-1]]


def test_a_job_needs_neither_pydantic_nor_duckdb() -> None:
    script = (
        "import sys, scalelab.launch.slurm.job, scalelab.launch.local.worker\n"
        "import scalelab.train.worker\n"
        "print([name for name in ('pydantic', 'duckdb', 'typer') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert done.stdout == "[]\n"

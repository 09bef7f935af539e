"""Ranks of a job's processes, and how a task ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scalelab.launch.worker import forget_ranks
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

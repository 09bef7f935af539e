"""What a process of a job takes itself for: alone, whatever another program left behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scalelab.launch.slurm.tasks import forget_ranks
from scalelab.train.sharded.ranks import Ranks, own_ranks


def test_a_process_that_is_alone_forgets_the_ranks_of_another_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert own_ranks() == Ranks(rank=3, n_ranks=8, local_rank=1)
    forget_ranks()
    assert own_ranks() == Ranks(rank=0, n_ranks=1, local_rank=0)


def test_what_comes_after_python_cannot_change_how_a_task_ended() -> None:
    # Registered first, so it would run last: an abort at the end of a library.
    script = (
        "import atexit, os; atexit.register(os.abort)\n"
        "from scalelab.launch.slurm.tasks import exit_directly\n"
        "exit_directly(7); print('all is said')"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (7, "all is said\n")

"""What a process of a job takes itself for: alone, whatever another program left behind."""

from __future__ import annotations

import pytest

from scalelab.launch.tasks import forget_ranks
from scalelab.train.ranks import Ranks, own_ranks


def test_a_process_that_is_alone_forgets_the_ranks_of_another_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert own_ranks() == Ranks(rank=3, n_ranks=8, local_rank=1)
    forget_ranks()
    assert own_ranks() == Ranks(rank=0, n_ranks=1, local_rank=0)

"""Which of a job's processes this one is, and how their work together may end.

A launcher that starts several processes for a run (torchrun, or SLURM through submitit) tells each
by its environment. Nothing here imports anything distributed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """The processes of a job.

    Attributes
    ----------
    rank : int
        Number of this one; 0 leads.
    n_ranks : int
        How many there are, each with a device of its own.
    local_rank : int
        Number of this one on its machine.
    """

    rank: int
    n_ranks: int
    local_rank: int


def own_ranks() -> Ranks:
    """Return what the environment says: one process that is alone where it says nothing."""
    return Ranks(
        rank=int(os.environ.get("RANK", "0")),
        n_ranks=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )


class RanksLostError(Exception):
    """Another rank is gone without a word: it was killed, or its machine was lost."""


class RankFailedError(Exception):
    """Another rank failed, and said why."""


class BrokenGroupError(Exception):
    """The ranks are out of step for good, and all is written down: the process must end."""

"""The rank of this process in its job, and the errors of a process group.

A launcher that starts several processes for a run (torchrun, or SLURM through submitit) sets their
ranks in environment variables. This module does not import torch.distributed.
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
        Rank of this process; rank 0 leads.
    n_ranks : int
        Number of processes, each with its own device.
    local_rank : int
        Rank of this process on its machine.
    """

    rank: int
    n_ranks: int
    local_rank: int


def own_ranks() -> Ranks:
    """Return the ranks from the environment; a single process if no variables are set."""
    return Ranks(
        rank=int(os.environ.get("RANK", "0")),
        n_ranks=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )


class RanksLostError(Exception):
    """Another rank ended without a report: it was killed, or its machine failed."""


class RankFailedError(Exception):
    """Another rank failed and reported the reason."""


class BrokenGroupError(Exception):
    """The ranks cannot continue together; the notes are written and the process must exit."""

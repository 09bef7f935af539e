"""What a job requests from SLURM, from the runs that it trains; pure functions."""

from __future__ import annotations

import math


def nodes_and_tasks(gpus_per_run: int, gpus_per_node: int) -> tuple[int, int]:
    """Return the fewest nodes that split a run's GPUs evenly, and tasks (GPUs) per node."""
    if gpus_per_run == 0:
        return 1, 1
    fewest = math.ceil(gpus_per_run / gpus_per_node)
    n_nodes = next(n for n in range(fewest, gpus_per_run + 1) if gpus_per_run % n == 0)
    return n_nodes, gpus_per_run // n_nodes


def gpus_of_node(gpus_per_run: int, gpus_per_node: int) -> int:
    """Return the GPUs that a job requests on each of its nodes."""
    return nodes_and_tasks(gpus_per_run, gpus_per_node)[1] if gpus_per_run else 0

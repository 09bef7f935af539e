"""The switches of a process that the numbers of a run depend on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from scalelab.sweep.run_spec import ExecutionSpec


@contextlib.contextmanager
def torch_switches(execution: ExecutionSpec) -> Iterator[None]:
    """Set the process-wide switches that the numbers depend on, and set them back."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(execution.n_threads)
    # Moments of rarely used weights decay into denormals, which are 100 times slower on a CPU.
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(n_threads)

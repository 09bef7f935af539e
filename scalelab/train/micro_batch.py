"""The micro-batch where memory is short: halved until a step fits, the batch stays what it is."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from scalelab.sweep.run_spec import ExecutionSpec, RunSpec
from scalelab.train.engine import Engine

_CPU_WORDS = "can't allocate memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that a device's memory was too small."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU_WORDS in str(error)


def smaller_micro_batch(execution: ExecutionSpec, batch_seqs: int) -> ExecutionSpec | None:
    """Return the execution with half the micro-batch; None where it is a single sequence."""
    micro = min(execution.micro_batch_seqs or batch_seqs, batch_seqs)
    return None if micro == 1 else replace(execution, micro_batch_seqs=micro // 2)


def fitting_execution(specs: Sequence[RunSpec], execution: ExecutionSpec) -> ExecutionSpec:
    """Return the execution with the largest micro-batch, of those by halving, whose step fits.

    A step with every buffer that it needs is tried and forgotten.

    Raises
    ------
    torch.OutOfMemoryError
        When a single sequence does not fit.
    """
    while True:
        # What a failed step left lives as long as its traceback: it goes before the next try.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        smaller = smaller_micro_batch(execution, specs[0].batch_seqs)
        try:
            _rehearse(specs, execution)
        except Exception as error:
            if smaller is None or not is_out_of_memory(error):
                raise
        else:
            return execution
        execution = smaller


def _rehearse(specs: Sequence[RunSpec], execution: ExecutionSpec) -> None:
    """Take a step of an engine that is thrown away."""
    engine = Engine(specs, execution)
    first = specs[0]
    lead = () if len(specs) == 1 else (len(specs),)
    engine.step(np.zeros((*lead, first.batch_seqs, first.seq_len + 1), dtype=np.int64))
    engine.read()

"""Execution settings of an attempt: the requested ones, adapted to checkpoint and device."""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import AUTO, ExecutionSpec, is_direct_possible, planned_execution
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.engine import Engine, batch_shape
from scalelab.train.precision import has_fast_bf16
from scalelab.train.sharded.ranks import own_ranks

BEGUN_FIELDS = ("step", "kernels", "attention")
"""Execution fields that a resumed run keeps, because its bits depend on them."""
_MEMORY_WORDS = re.compile(
    # torch on a CPU (c10/core/impl/alloc_cpu.cpp), where the allocator names itself.
    r"can't allocate memory"
    # CUDA itself: graph instantiation, pinned memory, launches of Triton kernels.
    r"|(?:CUDA error|CUDA driver error|Triton Error \[CUDA\]): out of memory"
    # Workspaces and handles of libraries; cublasCreate reports full memory as not initialized.
    r"|CU(?:BLAS|DNN|SOLVER)_STATUS_(?:INTERNAL_ERROR_(?:DEVICE|HOST)_)?ALLOC(?:ATION)?_FAILED"
    r"|CUBLAS_STATUS_NOT_INITIALIZED when calling `cublas(?:Lt)?Create"
    # NCCL quotes the error of CUDA.
    r"|Cuda failure (?:\d+ )?'out of memory'"
)
"""Texts of errors, in messages of torch and Triton, that mean that memory ran out."""


def on_this_cpu(request: ExecutionSpec, spec: RunSpec) -> ExecutionSpec:
    """Return a request with ``eager`` for ``auto`` where the ``direct`` step would be slower.

    That is a run in bf16 on a CPU that does not multiply bf16 matrices fast.
    """
    is_open = request.step == AUTO and request.device == "cpu" and spec.precision == "bf16"
    return replace(request, step="eager") if is_open and not has_fast_bf16() else request


def possible_execution(runs: Sequence[RunDir], execution: ExecutionSpec) -> ExecutionSpec:
    """Return the requested execution, adapted to the runs' checkpoints and to the device count.

    A run that resumes from a checkpoint keeps the step, kernels and attention of the attempt that
    wrote it, so a change of the defaults does not change its bits. Its micro-batch can shrink
    (after an out-of-memory error) but never grow. On several devices, a micro-batch of one
    sequence also recomputes activations. ``direct`` becomes ``eager`` on several devices and for
    models that `scalelab.train.direct` does not support; ``auto`` does as `on_this_cpu` says.
    """
    n_ranks = own_ranks().n_ranks
    execution = on_this_cpu(execution, runs[0].read_spec())
    execution = replace(execution, batched_runs=len(runs), n_devices=n_ranks)
    for run in runs:
        begun = run.begun_execution()
        if begun.get("device") == execution.device:
            kept = {name: begun[name] for name in BEGUN_FIELDS if name in begun}
            sizes = (execution.micro_batch_seqs, begun.get("micro_batch_seqs", 0))
            micro = min((size for size in sizes if size), default=0)
            execution = replace(execution, **kept, micro_batch_seqs=micro)
    if n_ranks > 1:
        is_short = execution.micro_batch_seqs == 1
        return replace(execution, step="eager", recomputes_blocks=is_short)
    specs = [run.read_spec() for run in runs]
    if execution.step == "direct" and not all(
        is_direct_possible(spec, planned_execution(execution, spec)) for spec in specs
    ):
        return replace(execution, step="eager")
    return execution


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that a device ran out of memory.

    When memory runs out during a capture, its end raises another error with this one as context.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(found, RuntimeError) and _MEMORY_WORDS.search(str(found)):
            return True
        found = found.__cause__ or found.__context__
    return False


def smaller_micro_batch(execution: ExecutionSpec, batch_seqs: int) -> ExecutionSpec | None:
    """Return the execution with half the micro-batch; None if it is one sequence already."""
    micro = min(execution.micro_batch_seqs or batch_seqs, batch_seqs)
    return None if micro == 1 else replace(execution, micro_batch_seqs=micro // 2)


def fitting_execution(specs: Sequence[RunSpec], execution: ExecutionSpec) -> ExecutionSpec:
    """Halve the micro-batch until a step fits in memory; return that execution.

    Each try builds a whole engine, takes one step and discards the engine.

    Raises
    ------
    torch.OutOfMemoryError
        When a single sequence does not fit.
    """
    while True:
        # The traceback of a failed step holds its tensors: free them before the next try.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        smaller = smaller_micro_batch(execution, specs[0].batch_seqs)
        try:
            _try_step(specs, execution)
        except Exception as error:
            if smaller is None or not is_out_of_memory(error):
                raise
        else:
            return execution
        execution = smaller


def _try_step(specs: Sequence[RunSpec], execution: ExecutionSpec) -> None:
    engine = Engine(specs, execution)
    engine.step(np.zeros(batch_shape(specs), dtype=np.int64))
    engine.read()

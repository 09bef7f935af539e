"""Which attention a run takes when its execution says ``measured``: the fastest of this GPU."""

from __future__ import annotations

import torch
from scalelab_kernels.errors import KernelUnavailableError
from scalelab_kernels.operations import measure_attention

from scalelab.errors import UsageError
from scalelab.sweep.run_spec import ExecutionSpec, RunSpec

MEASURED = "measured"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def fastest_attention(
    spec: RunSpec, execution: ExecutionSpec, n_runs: int = 1
) -> tuple[str, dict[str, float]]:
    """Time forward and backward of every attention that the GPU offers, at the shape of a step.

    The choice is made once an attempt and stored in its record. cuDNN's and FlashAttention's
    backward passes may add in any order: where a run must repeat bit by bit, name ``triton``.

    Parameters
    ----------
    spec : RunSpec
        Gives heads, positions and precision.
    execution : ExecutionSpec
        Gives the sequences of a forward pass.
    n_runs : int
        Packed runs.

    Returns
    -------
    path : str
        For `ExecutionSpec.attention`.
    times : dict of float
        Milliseconds by path; a path that does not take the shape is left out.

    Raises
    ------
    UsageError
        Without a GPU.
    """
    shape = spec.shape
    n_sequences = n_runs * (execution.micro_batch_seqs or spec.batch_seqs)
    try:
        times = measure_attention(
            (n_sequences, shape.n_heads, shape.kv_heads, spec.seq_len, shape.d_head),
            _DTYPES[spec.precision],
        )
    except KernelUnavailableError as error:
        raise UsageError(f"attention = {MEASURED!r}", error.allowed, error.do) from error
    return min(times, key=lambda path: times[path]), {str(k): ms for k, ms in times.items()}

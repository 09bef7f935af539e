"""How a run is executed (`ExecutionSpec`): requested with a sweep, stored with each attempt.

Nothing here changes what a run computes, so nothing here is part of its run_id.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalelab.errors import SpecError

AUTO = "auto"
"""Value of a field that the worker chooses: the fastest qualified way on its device."""
STEPS = ("direct", "eager", "compiled", "graph")
KERNELS = ("reference", "triton")
ATTENTIONS = ("explicit", "sdpa", "cudnn", "flash", "triton")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionSpec:
    """How a run is executed; stored with each attempt and not hashed.

    Attributes
    ----------
    device : str
        ``cpu`` or ``cuda``.
    step : str
        ``eager``, ``compiled``, ``graph`` (one CUDA graph) or ``direct`` (hand-written gradients
        for dense fp32 models on a CPU; for other models the trainer uses ``eager`` and notes it).
    kernels : str
        ``reference`` (plain torch) or ``triton``.
    attention : str
        ``explicit`` (baddbmm and softmax), ``sdpa``, only its ``cudnn`` or ``flash`` backend,
        ``triton``, or ``measured``: an attempt uses the fastest on its GPU and notes its name.
    n_threads : int
        CPU threads of a worker.
    micro_batch_seqs : int
        Sequences in a device's forward pass; 0 means its whole batch. When memory runs out, an
        attempt uses a smaller value and notes it.
    batched_runs : int
        Runs that train in the same step.
    n_devices : int
        Devices that share the batch and the weights of the run (``fully_shard``).
    tensor_parallel : int
        Devices of neighbouring rank that share every sequence: each has some of the heads and of
        the hidden units. Divides ``n_devices``; 1 disables tensor parallelism.
    recomputes_blocks : bool
        Whether the backward pass recomputes activations inside blocks and reduces gradients after
        each block. Used on several devices when memory allows a micro-batch of one sequence only.
    checkpoint_interval_s : float
        Seconds between checkpoints; longer if checkpoints would take over 2 % of the time.
    metrics_interval_steps : int
        Steps between rows of the training curve.
    keeps_weights : bool
        Whether the last checkpoint is kept when the run is done.
    """

    device: str = "cpu"
    step: str = "eager"
    kernels: str = "reference"
    attention: str = "explicit"
    n_threads: int = 1
    micro_batch_seqs: int = 0
    batched_runs: int = 1
    n_devices: int = 1
    tensor_parallel: int = 1
    recomputes_blocks: bool = False
    checkpoint_interval_s: float = 30.0
    metrics_interval_steps: int = 10
    keeps_weights: bool = False

    def __post_init__(self) -> None:
        if self.tensor_parallel < 1:
            raise SpecError(
                f"tensor_parallel = {self.tensor_parallel!r}",
                "a whole number from 1",
                "Give tensor_parallel an accepted value.",
            )

    @property
    def n_data_parallel(self) -> int:
        """Number of device groups that divide the batch."""
        return self.n_devices // self.tensor_parallel

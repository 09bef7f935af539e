"""How a run is executed (`ExecutionSpec`): requested with a sweep, stored with each attempt.

Nothing here changes what a run computes, so nothing here is part of its run_id.

A request may leave ``step``, ``kernels`` and ``attention`` as ``auto``. `candidates` lists the ways
that such a request allows, and `planned_execution` is the first: the one expected to be fastest.
On a GPU a worker qualifies the candidates before it takes one. An attempt stores what it took.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scalelab.errors import SpecError
from scalelab.sweep.program import ProgramExecution, as_tuples
from scalelab.sweep.run_size import run_size
from scalelab.sweep.run_spec import RunSpec, build

AUTO = "auto"
"""Value of a field that the worker chooses: the fastest qualified way on its device."""
STEPS = ("direct", "eager", "compiled", "graph")
KERNELS = ("reference", "triton")
ATTENTIONS = ("explicit", "sdpa", "flash", "triton", "cudnn")
UNREPEATABLE_ATTENTIONS = ("cudnn",)
"""Attentions whose gradients can differ in their last bits from call to call. ``auto`` never
chooses one of them."""
MASKING_ATTENTIONS = ("explicit", "sdpa", "triton")
"""Attentions that can stay inside a document."""
DIRECT_RUNS = "a dense model on a CPU with kernels = reference and attention = explicit"
"""What the ``direct`` step supports, for error messages."""
CHOICES = ("step", "kernels", "attention")
"""Fields that can be `AUTO` in a request. Together they are a way to execute a step."""

_CUDA_DENSE = (
    ("graph", "triton", "flash"),
    ("graph", "triton", "triton"),
    ("compiled", "reference", "flash"),
    ("graph", "reference", "flash"),
    ("eager", "triton", "flash"),
    ("eager", "reference", "sdpa"),
)
# Only some GPUs run a grouped matmul without the host, which a graph needs: not the first choice.
_CUDA_EXPERTS = (
    ("eager", "triton", "flash"),
    ("graph", "triton", "flash"),
    ("eager", "triton", "triton"),
    ("eager", "reference", "sdpa"),
)
_CUDA_SHARDED = (("eager", "reference", "flash"), ("eager", "reference", "sdpa"))
# SDPA skips the masked half of the scores: an eager step of T = 256 takes 10 % less time than with
# explicit attention (bf16: as much), one of T = 1,024 half the time.
_CPU_EXPERTS = (("eager", "reference", "sdpa"), ("eager", "reference", "explicit"))
_CPU = (("direct", "reference", "explicit"), *_CPU_EXPERTS)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionSpec:
    """How a run is executed; stored with each attempt and not hashed.

    Attributes
    ----------
    device : str
        ``cpu`` or ``cuda``.
    step : str
        ``eager``, ``compiled``, ``graph`` (one CUDA graph) or ``direct`` (hand-written gradients
        for dense models on a CPU; for other models the trainer uses ``eager`` and notes it).
    kernels : str
        ``reference`` (plain torch) or ``triton``.
    attention : str
        ``explicit`` (baddbmm and softmax); ``sdpa`` (torch's, on a GPU its math backend); ``flash``
        (torch's FlashAttention with deterministic gradients, half precision on a GPU); ``triton``
        (ours); or ``cudnn`` (on a GPU; its gradients are not bitwise repeatable).
    n_threads : int
        CPU threads of a worker.
    micro_batch_seqs : int
        Sequences in a device's forward pass; 0 means its whole batch. When memory runs out, an
        attempt uses a smaller value and notes it.
    batched_runs : int
        Runs that train in the same step; in a request their maximum, 0 for as many as are faster.
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
    program : ProgramExecution or None
        How to start the user's program that trains the runs; None for the built-in trainer.
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
    program: ProgramExecution | None = None

    def __post_init__(self) -> None:
        if self.tensor_parallel < 1:
            raise SpecError(
                f"tensor_parallel = {self.tensor_parallel!r}",
                "a whole number from 1",
                "Give tensor_parallel an accepted value.",
            )

    @property
    def is_repeatable(self) -> bool:
        """Whether the same steps give the same bits each time; stored with each attempt."""
        return self.attention not in UNREPEATABLE_ATTENTIONS

    @property
    def n_data_parallel(self) -> int:
        """Number of device groups that divide the batch."""
        return self.n_devices // self.tensor_parallel


def execution_from_mapping(content: Mapping[str, Any]) -> ExecutionSpec:
    """Return the `ExecutionSpec` that ``dataclasses.asdict`` gave, after JSON.

    Raises
    ------
    SpecError
        When a field is unknown or of the wrong type.
    """
    program = content.get("program")
    if isinstance(program, Mapping):
        content = {**content, "program": build(ProgramExecution, as_tuples(program))}
    return build(ExecutionSpec, content)


@dataclass(frozen=True, slots=True)
class QualifyRequest:
    """What a worker needs to qualify the ways of executing the runs of a sweep.

    Attributes
    ----------
    folder : Path
        Folder of the verdicts, ``<results>/qualification``; the workers of a sweep share it.
    specs : tuple of RunSpec
        Runs at whose shapes the whole step is checked and timed, smallest first.
    """

    folder: Path
    specs: tuple[RunSpec, ...]


def representative_specs(specs: Iterable[RunSpec]) -> tuple[RunSpec, ...]:
    """Return a run with the smallest, the median and the largest shape by parameters.

    They are distinct: one or two runs if there are only that many shapes. The order of the runs
    does not matter.
    """
    by_shape: dict[tuple[int, str], RunSpec] = {}
    for spec in sorted(specs, key=lambda spec: spec.run_id):
        by_shape.setdefault((run_size(spec).total, spec.shape.label()), spec)
    ordered = [by_shape[key] for key in sorted(by_shape)]
    chosen = {0, len(ordered) // 2, len(ordered) - 1}
    return tuple(ordered[index] for index in sorted(chosen)) if ordered else ()


def step_kind(spec: RunSpec) -> str:
    """Return what changes the speed of a run's step at one shape; empty for a plain step."""
    words = {
        spec.optimizer: spec.optimizer != "adamw",
        "z-loss": spec.z_loss,
        "softcap": spec.logit_softcap,
        "documents": spec.is_document_masked,
    }
    return ", ".join(word for word, is_used in words.items() if is_used)


def planned_execution(request: ExecutionSpec, spec: RunSpec) -> ExecutionSpec:
    """Return the way that is expected to win for a run: the first of `candidates`.

    The GPU benchmarks measure this execution.
    """
    return candidates(request, spec)[0]


def candidates(request: ExecutionSpec, spec: RunSpec) -> tuple[ExecutionSpec, ...]:
    """Return the ways that a request allows for a run, the best expected first.

    Fields that the request names keep their value. The last candidate is the plain reference:
    ``eager`` steps, ``reference`` kernels and an attention that repeats bitwise. ``auto`` never
    stands for an attention that does not, such as ``cudnn``.

    Parameters
    ----------
    request : ExecutionSpec
        With the device; ``step``, ``kernels`` and ``attention`` may be ``auto``.
    spec : RunSpec
        Gives shape and precision.

    Returns
    -------
    tuple of ExecutionSpec
        At least one, without ``auto``. If the named fields allow no possible way, it is the one
        that the engine refuses with its reason.
    """
    named = {name: value for name in CHOICES if (value := getattr(request, name)) != AUTO}
    ways = [dict(zip(CHOICES, way, strict=True)) for way in _ways(request, spec)]
    matching = [way for way in ways if named.items() <= way.items()]
    # Where no listed way has what was named, each way gets the named values.
    asked = [*(matching or [way | named for way in ways]), ways[-1] | named]
    found = dict.fromkeys(replace(request, **way) for way in asked)
    return tuple(way for way in found if _is_possible(way, spec)) or tuple(found)[-1:]


def execution_words(execution: ExecutionSpec) -> str:
    """Return step and kernels as shown to people, for example ``graph + triton``."""
    return f"{execution.step} + {execution.kernels}"


def is_auto(request: ExecutionSpec) -> bool:
    """Return whether a request leaves step, kernels or attention to the worker."""
    return AUTO in (getattr(request, name) for name in CHOICES)


def needs_qualification(request: ExecutionSpec) -> bool:
    """Return whether a worker qualifies its GPU for a request; several GPUs have only one way."""
    return is_auto(request) and request.device == "cuda" and request.n_devices == 1


def default_precision(device: str) -> str:
    """Return the precision of runs on a device where a sweep sets none: bf16 on GPUs, or fp32."""
    return "bf16" if device == "cuda" else "fp32"


def is_direct_possible(spec: RunSpec, execution: ExecutionSpec) -> bool:
    """Say whether the ``direct`` step supports a run: dense, fp32 or bf16, on one CPU."""
    return (
        execution.device == "cpu"
        and execution.n_devices == 1
        and execution.kernels == "reference"
        and execution.attention == "explicit"
        and spec.precision in ("fp32", "bf16")
        and not spec.shape.n_experts
    )


def _ways(request: ExecutionSpec, spec: RunSpec) -> tuple[tuple[str, str, str], ...]:
    """Return the listed ways of a device as (step, kernels, attention), the best expected first."""
    if request.device != "cuda":
        return _CPU_EXPERTS if spec.shape.n_experts else _CPU
    ways: tuple[tuple[str, str, str], ...] = _CUDA_DENSE
    if request.n_devices > 1:
        ways = _CUDA_SHARDED
    elif spec.shape.n_experts:
        ways = _CUDA_EXPERTS
    if spec.precision == "fp32" or spec.is_document_masked:
        # FlashAttention has no fp32 kernels and no document mask.
        other = "triton" if spec.is_document_masked and request.n_devices == 1 else "sdpa"
        ways = tuple((*way[:2], other if way[2] == "flash" else way[2]) for way in ways)
    return ways


def loss_problem(execution: ExecutionSpec, spec: RunSpec) -> tuple[str, str, str] | None:
    """Return why a way cannot compute a run's loss, as (given, allowed, do); None if it can.

    The Triton head has no cap of the logits. FlashAttention and cuDNN have no document mask.
    """
    if spec.logit_softcap and execution.kernels == "triton":
        return (
            f"kernels = triton with logit_softcap = {spec.logit_softcap:g}",
            "kernels = auto or reference where the logits are capped",
            "Use --kernels auto, or --logit-softcap 0.",
        )
    if spec.logit_softcap and spec.precision == "fp8":
        return (
            f"precision = fp8 with logit_softcap = {spec.logit_softcap:g}",
            "precision = fp32 or bf16 where the logits are capped",
            "Use --precision bf16, or --logit-softcap 0.",
        )
    if spec.is_document_masked and execution.attention not in (AUTO, *MASKING_ATTENTIONS):
        return (
            f"attention = {execution.attention} with is_document_masked = true",
            f"attention = auto, {', '.join(MASKING_ATTENTIONS)} where attention stays inside a "
            "document",
            "Use --attention auto, or remove --document-mask.",
        )
    return None


def _is_possible(execution: ExecutionSpec, spec: RunSpec) -> bool:
    if loss_problem(execution, spec) is not None:
        return False
    if execution.step == "graph":
        has_groups = spec.shape.n_experts > 0
        return execution.device == "cuda" and not (has_groups and execution.kernels != "triton")
    return execution.step != "direct" or is_direct_possible(spec, execution)

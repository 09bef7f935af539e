"""Requests of an execution that cannot work, refused before a run starts."""

from __future__ import annotations

from collections.abc import Iterable

from scalelab_kernels import is_interpreting

from scalelab.errors import UsageError
from scalelab.launch.verdicts import Verdict
from scalelab.records.qualification import name_of, ruled_out
from scalelab.sweep.execution import (
    AUTO,
    CHOICES,
    DIRECT_RUNS,
    ExecutionSpec,
    candidates,
    is_direct_possible,
    loss_problem,
    planned_execution,
)
from scalelab.sweep.run_spec import RunSpec

FUSED_ATTENTIONS = ("flash", "cudnn")
"""Attentions of torch that need a GPU and half precision."""


def require_executable(
    request: ExecutionSpec, specs: Iterable[RunSpec], verdict: Verdict | None = None
) -> None:
    """Raise if the named fields of a request cannot work for one of the runs.

    Parameters
    ----------
    request : ExecutionSpec
    specs : iterable of RunSpec
        The runs.
    verdict : Mapping, optional
        What qualification found out about the GPU.

    Raises
    ------
    UsageError
    """
    specs = list(specs)
    _require_device(request)
    kinds = {
        (
            *(bool(s.shape.n_experts), s.precision),
            *(bool(s.logit_softcap), s.is_document_masked),
        ): s
        for s in specs
    }
    for spec in kinds.values():
        _require_run(request, spec)
    if verdict is not None:
        for spec in {spec.shape: spec for spec in specs}.values():
            _require_not_ruled_out(request, spec, verdict)


def _require_device(request: ExecutionSpec) -> None:
    """Raise if the device does not have what the request names."""
    if request.device == "cuda":
        if request.step == "direct":
            raise UsageError(
                "step = direct on a GPU",
                "auto, eager, compiled or graph on a GPU",
                "Use --step auto, or --device cpu.",
            )
        if request.n_devices > 1 and request.step not in (AUTO, "eager"):
            raise UsageError(
                f"step = {request.step} with {request.n_devices} GPUs in a run",
                "auto or eager where several GPUs share a run",
                "Use --step auto, or --gpus-per-run 1.",
            )
        return
    if request.step == "graph":
        raise UsageError(
            "step = graph on a CPU",
            "auto, direct, eager or compiled on a CPU",
            "Use --step auto, or --device cuda on a machine with a GPU.",
        )
    if request.attention in FUSED_ATTENTIONS:
        raise UsageError(
            f"attention = {request.attention} on a CPU",
            "auto, explicit or sdpa on a CPU",
            "Use --attention auto, or --device cuda on a machine with a GPU.",
        )
    for name in ("kernels", "attention"):
        if getattr(request, name) == "triton" and not is_interpreting():
            raise UsageError(
                f"{name} = triton on a CPU",
                "a GPU, or Triton's interpreter (slow, for tests)",
                f"Use --{name} auto, or set TRITON_INTERPRET=1 in the environment.",
            )


def _require_run(request: ExecutionSpec, spec: RunSpec) -> None:
    """Raise if the request cannot work for a run."""
    problem = loss_problem(request, spec)
    if problem is not None:
        raise UsageError(*problem)
    if request.attention in FUSED_ATTENTIONS and spec.precision == "fp32":
        raise UsageError(
            f"attention = {request.attention} with precision = fp32",
            "auto, explicit, sdpa or triton in fp32",
            "Use --attention auto, or --precision bf16.",
        )
    if request.step == "graph" and spec.shape.n_experts and request.kernels == "reference":
        raise UsageError(
            "step = graph with kernels = reference for a model with experts",
            "kernels = auto or triton in a graph: plain torch waits for the host in each layer",
            "Use --kernels auto, or --step auto.",
        )
    planned = planned_execution(request, spec)
    if request.step == "direct" and not is_direct_possible(spec, planned):
        raise UsageError(
            f"step = direct with kernels = {planned.kernels}, attention = {planned.attention}, "
            f"precision = {spec.precision}",
            DIRECT_RUNS,
            "Use --step auto.",
        )


def _require_not_ruled_out(request: ExecutionSpec, spec: RunSpec, verdict: Verdict) -> None:
    """Raise if qualification has ruled out each way that the request allows for a run."""
    ways = candidates(request, spec)
    found = ruled_out(verdict, spec, 1, ways)
    if len(found) < len(ways):
        return
    named = [f"{n} = {v}" for n in CHOICES if (v := getattr(request, n)) != AUTO]
    reasons = "; ".join(f"{name_of(each)}: {each['status']}, {each['reason']}" for each in found)
    raise UsageError(
        f"{' and '.join(named)}, ruled out on this GPU for {spec.shape.label()} ({reasons})",
        "a way that gives the results of the reference here, such as auto",
        "Use --step auto --kernels auto --attention auto.",
    )

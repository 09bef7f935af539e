"""Speed of whole training steps, executed as a sweep plans them, and of alternatives beside it."""

from __future__ import annotations

import gzip
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpu_cases.child import free_memory
from gpu_cases.steps import (
    execution_of,
    make_engine,
    model_spec,
    random_tokens,
    small_spec,
    step_seconds,
)
from gpu_cases.timing import hardware_here, synchronize
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params, train_flops_per_token
from scalelab.theory.roofline import predict_step
from scalelab.theory.step_work import StepConfig

TRACE_ROWS = 25
BATCHED = 16


def predicted(spec: RunSpec, execution: ExecutionSpec, n_runs: int) -> dict[str, Any]:
    """Return step time, MFU and longest part by the roofline model."""
    hardware = hardware_here()
    if hardware is None or execution.step not in ("graph", "compiled", "eager"):
        return {}
    config = StepConfig(
        shape=spec.shape,
        seq_len=spec.seq_len,
        batch_seqs=spec.batch_seqs,
        precision=spec.precision,
        step=execution.step,
        kernels=execution.kernels,
        attention=execution.attention,
        optimizer=spec.optimizer,
        batched_runs=n_runs,
    )
    found = predict_step(hardware, config)
    parts = {name: 1e3 * part.seconds for name, part in found.parts.items()}
    return {"step_ms": 1e3 * found.seconds, "mfu": found.mfu, "parts_ms": parts}


def measured(
    spec: RunSpec, execution: ExecutionSpec, *, n_runs: int = 1, seconds: float, is_tiny: bool
) -> dict[str, Any]:
    """Return the speed of a step: time, tokens/s, FLOP/s, MFU, peak memory."""
    # A case that measures several engines has room for one.
    free_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    engine = make_engine(spec, execution, n_runs=n_runs)
    times = step_seconds(engine, seconds, is_tiny=is_tiny)
    step_s = statistics.median(times)
    tokens_per_s = n_runs * spec.tokens_per_step / step_s
    per_token = train_flops_per_token(spec.shape, spec.seq_len)
    hardware = hardware_here()
    palm = tokens_per_s * per_token["palm"] / 1e12
    return {
        "step": execution.step,
        "kernels": execution.kernels,
        "attention": execution.attention,
        "n_params": count_params(spec.shape).total,
        "n_runs": n_runs,
        "batch": [spec.batch_seqs, spec.seq_len],
        "step_ms": 1e3 * step_s,
        "spread": max(times) / min(times) - 1,
        "tokens_per_s": tokens_per_s,
        "tflop_s": tokens_per_s * per_token["exact"] / 1e12,
        "palm_tflop_s": palm,
        "mfu": None if hardware is None else 1e12 * palm / hardware.peak_flops_per_s,
        "roofline": predicted(spec, execution, n_runs),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30
        if torch.cuda.is_available()
        else None,
    }


def way(execution: ExecutionSpec) -> str:
    """Return the choices of an execution in a few words."""
    return f"{execution.step} + {execution.kernels} + {execution.attention}"


def model(
    *, is_tiny: bool, name: str, seq_len: int, seconds: float, n_layers: int | None = None
) -> dict[str, Any]:
    """Return the speed of a model, executed as a sweep plans it."""
    spec = model_spec(name, seq_len, is_tiny=is_tiny, n_layers=n_layers)
    found = measured(spec, execution_of(spec, is_tiny=is_tiny), seconds=seconds, is_tiny=is_tiny)
    mfu = "" if found["mfu"] is None else f", MFU {100 * found['mfu']:.1f} %"
    roofline = found["roofline"].get("mfu")
    mfu += "" if roofline is None else f" (roofline {100 * roofline:.1f} %)"
    found["says"] = f"{found['step_ms']:.2f} ms{mfu}, {found['tokens_per_s'] / 1e3:,.0f}K tokens/s"
    return found


def batched(
    *, is_tiny: bool, name: str, seconds: float, n_layers: int | None = None
) -> dict[str, Any]:
    """Return the speedup of batched runs over the same runs one after the other."""
    spec = small_spec(name, is_tiny=is_tiny, n_layers=n_layers)
    sides = []
    for n_runs in (1, 2 if is_tiny else BATCHED):
        execution = execution_of(spec, n_runs=n_runs, is_tiny=is_tiny)
        sides.append(measured(spec, execution, n_runs=n_runs, seconds=seconds, is_tiny=is_tiny))
    alone, together = sides
    speedup = together["tokens_per_s"] / alone["tokens_per_s"]
    return {
        **together,
        "alone": alone,
        "speedup": speedup,
        "says": f"{together['n_runs']} runs {speedup:.1f}x; alone {alone['step_ms']:.3f} ms, "
        f"together {together['step_ms']:.3f} ms",
    }


def ways(*, is_tiny: bool, name: str, seq_len: int, seconds: float) -> dict[str, Any]:
    """Return the planned step's time beside plain torch, eager and compiled.

    ``compiled_ratio`` is the time of the compiled torch step over ours. Its forward and backward
    pass are one compiled graph, its optimizer is torch's fused AdamW or the compiled reference.
    """
    spec = model_spec(name, seq_len, is_tiny=is_tiny)
    planned = execution_of(spec, is_tiny=is_tiny)
    torch_s = replace(planned, kernels="reference")
    sides = {
        "planned": planned,
        "kernels, eager": replace(planned, step="eager"),
        "torch, compiled": replace(torch_s, step="compiled"),
        "torch, eager": replace(torch_s, step="eager"),
    }
    found: dict[str, Any] = {"step_ms": {}, "errors": {}}
    for key, execution in sides.items():
        try:
            row = measured_way(spec, execution, seconds=seconds, is_tiny=is_tiny)
        except Exception as error:
            # The others are worth having; a broken context fails them too and says so.
            found["errors"][key] = f"{type(error).__name__}: {error}"[:300]
            continue
        found["step_ms"][key] = row["step_ms"]
    ours = found["step_ms"]["planned"]
    found["ratios"] = {key: ms / ours for key, ms in found["step_ms"].items() if key != "planned"}
    found["compiled_ratio"] = found["ratios"].get("torch, compiled")
    said = ", ".join(f"{key} {ratio:.2f}x" for key, ratio in found["ratios"].items())
    found["says"] = f"{ours:.2f} ms ({way(planned)}); {said}"
    return found


def measured_way(
    spec: RunSpec, execution: ExecutionSpec, *, seconds: float, is_tiny: bool
) -> dict[str, Any]:
    """Return the speed of a step; a compiled one has a compiled optimizer too."""
    if execution.step != "compiled":
        return measured(spec, execution, seconds=seconds, is_tiny=is_tiny)
    import scalelab.train.engine as engine_module

    plain = engine_module.get_operations
    backend = "eager" if is_tiny else "inductor"

    def compiled_operations(*names: Any) -> Any:
        found = plain(*names)
        step = torch.compile(found.adamw_step_, dynamic=False, backend=backend)
        return replace(found, adamw_step_=step)

    engine_module.get_operations = compiled_operations
    try:
        return measured(
            spec,
            replace(execution, step="eager") if is_tiny else execution,
            seconds=seconds,
            is_tiny=is_tiny,
        )
    finally:
        engine_module.get_operations = plain


def optimizers(
    *, is_tiny: bool, name: str, seq_len: int, seconds: float, n_layers: int | None = None
) -> dict[str, Any]:
    """Return the step's time with AdamW and with Muon."""
    found: dict[str, Any] = {"step_ms": {}}
    for optimizer in ("adamw", "muon"):
        spec = model_spec(name, seq_len, is_tiny=is_tiny, n_layers=n_layers, optimizer=optimizer)
        execution = execution_of(spec, is_tiny=is_tiny)
        row = measured(spec, execution, seconds=seconds, is_tiny=is_tiny)
        found["step_ms"][optimizer] = row["step_ms"]
    adamw, muon = found["step_ms"].values()
    found["muon_extra_ms"] = muon - adamw
    found["says"] = f"AdamW {adamw:.2f} ms, Muon {muon:.2f} ms (+{muon - adamw:.2f})"
    return found


def trace(*, is_tiny: bool, name: str, seq_len: int, out: str) -> dict[str, Any]:
    """Profile one planned step; write the trace for chrome://tracing and return its largest parts.

    Times are microseconds of the device, or of the CPU at toy sizes.
    """
    from torch.profiler import ProfilerActivity, profile

    spec = model_spec(name, seq_len, is_tiny=is_tiny)
    engine = make_engine(spec, execution_of(spec, is_tiny=is_tiny))
    tokens = random_tokens(engine)
    for _ in range(1 if is_tiny else 5):
        engine.step(tokens)
    engine.read()
    synchronize()
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        engine.step(tokens)
        synchronize()
    path = Path(out) / "trace.json"
    profiler.export_chrome_trace(str(path))
    with gzip.open(f"{path}.gz", "wb") as file:
        file.write(path.read_bytes())
    path.unlink()
    rows = [
        (event.key, event.count, time_us(event))
        for event in profiler.key_averages()
        if time_us(event) > 0
    ]
    rows.sort(key=lambda row: -row[2])
    total = sum(row[2] for row in rows)
    largest = [{"name": key, "count": n, "us": us} for key, n, us in rows[:TRACE_ROWS]]
    top = ", ".join(f"{row['name'][:32]} {100 * row['us'] / total:.0f} %" for row in largest[:3])
    return {"total_us": total, "largest": largest, "says": f"{total / 1e3:.2f} ms; {top}"}


def time_us(event: Any) -> float:
    """Return the time of an event itself, on the device if there is one."""
    name = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return float(getattr(event, name))

"""Speed of the trainer relative to the device: FLOP/s, MFU, share of a matmul and the roofline."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from scalelab.errors import UnknownHardwareError
from scalelab.sweep.execution import ExecutionSpec, planned_execution
from scalelab.sweep.predicted import predicted_step
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params, train_flops_per_token
from scalelab.theory.hardware import HARDWARE, match_hardware
from scalelab.train.calibrate import time_steps
from scalelab.train.host import device_name, torch_settings
from scalelab.train.precision import DTYPES

MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}


def bench_train(
    spec: RunSpec,
    execution: ExecutionSpec,
    *,
    n_runs: int = 1,
    seconds: float = 5.0,
) -> dict[str, Any]:
    """Train on random tokens for some seconds and return the speed.

    Parameters
    ----------
    spec : RunSpec
        Shape, sequence length, batch and precision; other fields do not affect the speed.
    execution : ExecutionSpec
        How the steps are executed.
    n_runs : int
        Batched runs.
    seconds : float
        Duration of the timed steps, at least three.

    Returns
    -------
    dict
        ``device``, ``n_params``, ``n_runs``, ``step_s`` (median, of ``n_steps`` steps),
        ``tokens_per_s`` (of all runs together), ``tflops_per_s`` (exact convention),
        ``matmul_tflops_per_s`` (a square product of the same dtype in this process),
        ``share_of_matmul``, ``mfu`` (palm convention over the bf16 peak, also for fp8 and fp32),
        ``predicted_s`` (the step on the roofline of this GPU) and ``share_of_predicted`` (predicted
        over measured time). The last three are None on a CPU, because the hardware table has no
        peak for it.

    Raises
    ------
    UnknownHardwareError
        On a GPU that is not in the hardware table.
    """
    name = device_name(execution.device)
    hardware = match_hardware(name)
    if hardware is None and execution.device != "cpu":
        raise UnknownHardwareError(
            f"the device {name!r}",
            ", ".join(sorted(HARDWARE)),
            "Measure on one of them, or on the CPU with --device cpu.",
        )
    times = time_steps(spec, execution, n_runs, seconds)
    with torch_settings(execution):
        matmul = matmul_flops_per_s(execution.device, spec.precision)
    step_s = statistics.median(times)
    tokens_per_s = n_runs * spec.tokens_per_step / step_s
    per_token = train_flops_per_token(spec.shape, spec.seq_len)
    achieved = tokens_per_s * per_token["exact"]
    peak = None if hardware is None else hardware.peak_flops_per_s
    predicted_s = None
    if hardware is not None:
        planned = planned_execution(execution, spec)
        predicted_s = predicted_step(hardware, spec, planned, n_runs=n_runs).seconds
    return {
        "device": name,
        "n_params": count_params(spec.shape).total,
        "n_runs": n_runs,
        "n_steps": len(times),
        "step_s": step_s,
        "tokens_per_s": tokens_per_s,
        "tflops_per_s": achieved / 1e12,
        "matmul_tflops_per_s": matmul / 1e12,
        "share_of_matmul": achieved / matmul,
        "mfu": None if peak is None else tokens_per_s * per_token["palm"] / peak,
        "predicted_s": predicted_s,
        "share_of_predicted": None if predicted_s is None else predicted_s / step_s,
    }


def matmul_flops_per_s(device: str, precision: str, repeats: int = 10) -> float:
    """Return the median FLOP/s of ``repeats`` large square matrix products in this process."""
    n = MATMUL_SIZE[device]
    a, b = (torch.randn(n, n, device=device).to(DTYPES[precision]) for _ in range(2))
    times = []
    for _ in range(repeats + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2 * n**3 / statistics.median(times[2:])

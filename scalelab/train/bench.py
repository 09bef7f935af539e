"""How near the trainer comes to what the device can do: FLOP/s, MFU, share of a matmul."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from scalelab.errors import UnknownHardwareError
from scalelab.sweep.run_spec import ExecutionSpec, RunSpec
from scalelab.theory.accounting import count_params, train_flops_per_token
from scalelab.theory.hardware import HARDWARE, match_hardware
from scalelab.train.calibrate import step_times
from scalelab.train.engine import Engine
from scalelab.train.host import device_name
from scalelab.train.switches import torch_switches

MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def bench_train(
    spec: RunSpec,
    execution: ExecutionSpec,
    *,
    n_runs: int = 1,
    seconds: float = 5.0,
) -> dict[str, Any]:
    """Train on random tokens for a while and return the speed.

    Parameters
    ----------
    spec : RunSpec
        Shape, sequence length, batch and precision; the rest does not matter.
    execution : ExecutionSpec
        How the steps are executed.
    n_runs : int
        Runs packed into a step.
    seconds : float
        Of timed steps; at least three are taken.

    Returns
    -------
    dict
        ``device``, ``n_params``, ``n_runs``, ``step_s`` (median, of ``n_steps`` steps),
        ``tokens_per_s`` (of all runs together), ``tflops_per_s`` (exact convention),
        ``matmul_tflops_per_s`` (a square product of the same dtype in this process),
        ``share_of_matmul``, and ``mfu`` (palm convention over the peak; None on a CPU, whose peak
        is not in the hardware table).

    Raises
    ------
    UnknownHardwareError
        On a GPU whose peak is not known: utilisation is never a guess.
    """
    name = device_name(execution.device)
    hardware = match_hardware(name)
    if hardware is None and execution.device != "cpu":
        raise UnknownHardwareError(
            f"the device {name!r}",
            ", ".join(sorted(HARDWARE)),
            "Add its peak, with the source, to scalelab/theory/hardware.py.",
        )
    with torch_switches(execution):
        engine = Engine([replace(spec, seed=seed) for seed in range(n_runs)], execution)
        for run in range(n_runs):
            engine.initialize(run)
        lead = () if n_runs == 1 else (n_runs,)
        tokens = np.random.default_rng(0).integers(
            0, spec.shape.vocab_size, (*lead, spec.batch_seqs, spec.seq_len + 1)
        )
        times = step_times(engine, tokens, seconds)
        matmul = matmul_flops_per_s(execution.device, spec.precision)
    step_s = statistics.median(times)
    tokens_per_s = n_runs * spec.tokens_per_step / step_s
    per_token = train_flops_per_token(spec.shape, spec.seq_len)
    achieved = tokens_per_s * per_token["exact"]
    peak = None if hardware is None else hardware.peak_flops_per_s
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
    }


def matmul_flops_per_s(device: str, precision: str, repeats: int = 10) -> float:
    """Return FLOP/s of a large square matrix product in this process, the median of several."""
    n = MATMUL_SIZE[device]
    a, b = (torch.randn(n, n, device=device).to(_DTYPES[precision]) for _ in range(2))
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

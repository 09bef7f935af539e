"""Timing on a GPU: medians by device events with the L2 cache flushed, and measured ceilings."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from triton.testing import do_bench

from scalelab.theory.hardware import Hardware, match_hardware

BF16 = torch.bfloat16


def device() -> str:
    """Return the GPU, or the CPU for a run at toy sizes."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def hardware_here() -> Hardware | None:
    """Return this GPU from the hardware table, None if it is not there; an H200 at toy sizes."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "H200"
    return match_hardware(name)


def milliseconds(function: Callable[[], Any], *, is_tiny: bool, repeats_ms: int = 150) -> float:
    """Return the median time of a call; the L2 cache is flushed before each."""
    if is_tiny:
        started = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - started)
    return float(do_bench(function, warmup=25, rep=repeats_ms, return_mode="median"))


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ceilings(*, is_tiny: bool) -> dict[str, Any]:
    """Return the copy bandwidth (bytes read and written, GB/s) and the bf16 rate (TFLOP/s)."""
    n_values, side = (1 << 10, 64) if is_tiny else (1 << 29, 8192)
    source = torch.randn(n_values, device=device())
    target = torch.empty_like(source)
    copy_ms = milliseconds(lambda: target.copy_(source), is_tiny=is_tiny)
    a, b = (torch.randn(side, side, device=device(), dtype=BF16) for _ in range(2))
    times = [milliseconds(lambda: a @ b, is_tiny=is_tiny) for _ in range(3)]
    copy = 2 * source.numel() * 4 / copy_ms / 1e6
    matmul = 2 * side**3 / statistics.median(times) / 1e9
    return {
        "copy_gb_s": copy,
        "matmul_tflop_s": matmul,
        "matmul_spread": max(times) / min(times) - 1,
        "says": f"copy {copy:,.0f} GB/s, bf16 matmul {matmul:,.0f} TFLOP/s",
    }

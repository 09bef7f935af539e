"""Timing shared by the GPU benchmarks: measured ceilings, ratios within one process, a table.

``--tiny`` runs the same code at toy sizes on any device, including a CPU with interpreted kernels,
to check that a benchmark completes. Its figures are not meaningful and never go to ``results/``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from triton.testing import do_bench

BF16 = torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation at one size: calls to time, bytes and FLOPs, and goals.

    Attributes
    ----------
    op, size : str
        Names in the table.
    ways : dict of callables
        ``kernel`` is ours.
    n_bytes, flops : float
        Bytes and FLOPs of the fused operation; 0 for the one that does not limit it.
    goals : dict of float
        Minimum of the share of the ceiling (``share``), or of another way's time over ours.
    """

    op: str
    size: str
    ways: dict[str, Callable[[], Any]]
    n_bytes: float = 0.0
    flops: float = 0.0
    goals: dict[str, float] = field(default_factory=dict)


def arguments(description: str | None) -> argparse.Namespace:
    """Parse ``--json FILE``, ``--tiny`` and ``--only``; exit without a GPU unless ``--tiny``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="also write FILE, and a table to FILE.md")
    parser.add_argument("--only", nargs="*", default=[], help="operations to time")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, without meaningful figures")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("no CUDA device, so nothing can be measured; use --tiny to run at toy sizes")
    return options


def device() -> str:
    """Return the GPU, or the CPU for a tiny run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def milliseconds(function: Callable[[], Any], *, is_tiny: bool) -> float:
    """Return the median time of a call, by device events with caches flushed between calls."""
    if is_tiny:
        times = []
        for _ in range(2):
            started = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - started))
        return statistics.median(times)
    return float(do_bench(function, warmup=50, rep=300, return_mode="median"))


def ceilings(*, is_tiny: bool) -> dict[str, float]:
    """Return the copy bandwidth (bytes read and written, GB/s) and the bf16 rate (TFLOP/s)."""
    n_values, side = (1 << 10, 64) if is_tiny else (1 << 29, 8192)
    source = torch.randn(n_values, device=device())
    target = torch.empty_like(source)
    copy_ms = milliseconds(lambda: target.copy_(source), is_tiny=is_tiny)
    a, b = (torch.randn(side, side, device=device(), dtype=BF16) for _ in range(2))
    matmul_ms = milliseconds(lambda: a @ b, is_tiny=is_tiny)
    return {
        "copy_gb_s": 2 * source.numel() * 4 / copy_ms / 1e6,
        "matmul_tflop_s": 2 * side**3 / matmul_ms / 1e9,
    }


def header(*, is_tiny: bool) -> dict[str, Any]:
    """Return the device, versions and measured ceilings."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu, tiny"
    found = {
        "device": name,
        "torch": torch.__version__,
        "is_tiny": is_tiny,
        **ceilings(is_tiny=is_tiny),
    }
    sys.stdout.write(
        f"{name}: copy {found['copy_gb_s']:.0f} GB/s, matmul {found['matmul_tflop_s']:.0f} "
        "TFLOP/s (bf16)\n"
    )
    return found


def measure(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """Time all ways of a case; compare the figures with the ceilings and the goals."""
    times = {name: milliseconds(call, is_tiny=found["is_tiny"]) for name, call in case.ways.items()}
    row: dict[str, Any] = {"op": case.op, "size": case.size, "ms": times}
    ours = times["kernel"]
    if case.n_bytes:
        row["gb_s"] = case.n_bytes / ours / 1e6
        row["share"] = row["gb_s"] / found["copy_gb_s"]
    if case.flops:
        row["tflop_s"] = case.flops / ours / 1e9
        row["share"] = row["tflop_s"] / found["matmul_tflop_s"]
    row["ratios"] = {name: ms / ours for name, ms in times.items() if name != "kernel"}
    reached = {"share": row.get("share"), **row["ratios"]}
    row["goals"] = {
        name: {"wanted": wanted, "reached": reached[name], "is_met": reached[name] >= wanted}
        for name, wanted in case.goals.items()
    }
    return row


def table(found: dict[str, Any]) -> str:
    """Return the figures as a Markdown table, with met and missed goals."""
    lines = [
        f"Measured on {found['device']} with torch {found['torch']}: copy "
        f"{found['copy_gb_s']:.0f} GB/s, bf16 matmul {found['matmul_tflop_s']:.0f} TFLOP/s.",
        "",
        "| operation | size | kernel, ms | rate | share of ceiling | others' time / ours | goals |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["cases"]:
        rate = f"{row['gb_s']:.0f} GB/s" if "gb_s" in row else f"{row['tflop_s']:.0f} TFLOP/s"
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratios"].items())
        goals = ", ".join(
            f"{name} >= {goal['wanted']:g}: {'met' if goal['is_met'] else 'missed'}"
            for name, goal in row["goals"].items()
        )
        lines.append(
            f"| {row['op']} | {row['size']} | {row['ms']['kernel']:.3f} | {rate} "
            f"| {row['share']:.2f} | {ratios} | {goals or '-'} |"
        )
    return "\n".join(lines) + "\n"


def publish(found: dict[str, Any], path: Path | None) -> None:
    """Print the table; write it and the JSON with ``--json``."""
    sys.stdout.write(table(found))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(found))

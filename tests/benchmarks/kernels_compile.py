"""Compile all kernels for a GPU that need not be present, and print the compiler's report.

Registers, spills, shared memory, matrix instructions and 16-byte loads answer most questions about
a kernel before it runs::

    python tests/benchmarks/kernels_compile.py --capability 90 [--dtype bf16|fp32] [--json FILE]

``--largest`` compiles only the widest shape of each operation, with most shared memory and
registers.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from scalelab_kernels import reference
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

ARCHITECTURES = {80: "ampere", 86: "generic", 89: "generic", 90: "hopper", 120: "generic"}
FILES = ("rms_norm", "swiglu", "qk_norm_rope", "cross_entropy_tiles", "linear_cross_entropy",
         "adamw", "attention", "attention_backward", "moe", "gram")  # fmt: skip


class AbsentGpu:
    """The driver interface that the compiler needs, for a device that is not present."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_instead_of_run(capability: int) -> list[tuple[str, Any, str]]:
    """Make each launch compile its kernel without running it; return the list of compiled kernels.

    It gets each kernel's name, the kernel, and what ptxas said as Triton ran it.
    """
    driver.set_active(AbsentGpu(capability))
    # A kernel from Triton's cache has no ptxas report.
    triton.knobs.compilation.always_compile = True
    triton.knobs.nvidia.dump_ptxas_log = True
    compiled: list[tuple[str, Any, str]] = []
    original = JITFunction.run

    def run(self, *arguments, grid, warmup, **settings):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            kernel = original(self, *arguments, grid=grid, warmup=True, **settings)
        if said.getvalue():
            compiled.append((self.fn.__name__, kernel, said.getvalue()))
        return kernel

    JITFunction.run = run
    for name in FILES:
        module = importlib.import_module(f"scalelab_kernels.{name}")
        module.check_runs_here = lambda tensor: None
        module.architecture = lambda tensor: ARCHITECTURES[capability]
    return compiled


def describe(name: str, kernel: Any, report: str) -> dict[str, Any]:
    """Return the ptxas report of one compiled kernel."""
    ptx = kernel.asm["ptx"]
    return {
        "kernel": name,
        "warps": kernel.metadata.num_warps,
        "stages": kernel.metadata.num_stages,
        "shared_bytes": kernel.metadata.shared,
        "registers": max(map(int, re.findall(r"Used (\d+) registers", report))),
        "spill_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": ptx.count("mma.sync"),
        "wide_loads": ptx.count("ld.global.v4"),
        "wide_copies": len(re.findall(r"cp\.async\.c[ag]", ptx)),
    }


def launch_everything(dtype: torch.dtype, *, only_largest: bool) -> None:
    """Call each operation forward and backward at the sizes of a sweep."""

    def pick(*shapes: Any) -> tuple[Any, ...]:
        """Return the shapes to compile; the widest is the last."""
        return shapes[-1:] if only_largest else shapes

    def get(name: str) -> Any:
        return importlib.import_module(f"scalelab_kernels.{name}")

    def leaf(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, dtype=of, requires_grad=True)

    for d in pick(256, 2048):
        out, stream = get("rms_norm").add_rms_norm(leaf(64, d), leaf(64, d), leaf(d))
        (out.sum() + stream.sum()).backward()
    get("swiglu").swiglu(leaf(64, 4096)).sum().backward()
    for head_dim in pick(64, 128):
        cos, sin = reference.rope_tables(64, head_dim)
        qkv, gains = leaf(2, 64, 8 * head_dim), (leaf(head_dim), leaf(head_dim))
        parts = get("qk_norm_rope").qk_norm_rope(qkv, *gains, cos, sin, 4, 2)
        sum(p.sum() for p in parts).backward()
    # An odd vocabulary size: rows of logits must keep their wide loads.
    for d, n_vocab in ((512, 5001), *((d, 1024) for d in pick(64, 128, 256))):
        targets = torch.randint(0, n_vocab, (256,))
        entropy = get("linear_cross_entropy").linear_cross_entropy_sum
        entropy(leaf(256, d), leaf(n_vocab, d), targets).backward()
    starts = torch.zeros(1, 256, dtype=torch.int32)
    for head_dim, has_documents in pick((32, 0), (64, 0), (128, 0), (128, 1)):
        q, k = leaf(1, 2, 256, head_dim), leaf(1, 1, 256, head_dim)
        attend = get("attention").causal_attention
        attend(q, k, k, starts=starts if has_documents else None).sum().backward()
    way = get("moe").route(torch.randint(0, 4, (32, 2)), 4)
    rows = get("moe").permute(leaf(32, 256), way)
    get("moe").unpermute(rows, leaf(32, 2, of=torch.float32), way).sum().backward()
    # 216 is a multiple of 8 but not of 16.
    for n_rows in pick(216, 768):
        product = get("gram").gram(torch.randn(2, n_rows, 4 * n_rows).to(dtype))
        get("gram").gram_polynomial(product, 1.0, 1.0)
    state = [torch.randn(2, 4096) for _ in range(4)]
    copy, ema = torch.zeros(2, 4096, dtype=torch.bfloat16), torch.zeros(2, 4096)
    hyper = reference.hyper_table(lr=0.1, n_runs=2)
    get("adamw").adamw_step_(*state, torch.tensor(3), hyper, n_decay=128, copy=copy, ema=ema)


def main() -> None:
    """Compile, print one line for each kernel, and write the JSON with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, choices=ARCHITECTURES, default=90)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    compiled = compile_instead_of_run(options.capability)
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    launch_everything(dtype, only_largest=options.largest)
    rows = [describe(*found) for found in compiled]
    for row in rows:
        sys.stdout.write("  ".join(f"{key} {value}" for key, value in row.items()) + "\n")
    if options.json:
        options.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()

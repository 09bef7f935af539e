"""Compile all kernels for a GPU that need not be present, and print what the compiler made of them.

Registers, spills, shared memory, matrix instructions and wide loads answer most questions about a
kernel before it runs::

    python tests/benchmarks/kernels_compile.py --capability 90 [--every] [--only NAME] [--json FILE]

It compiles one shape of each class (`kernels_matrix`); ``--every`` adds fp32 and the widest models.
``--only attention`` compiles the cases whose name contains the word.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
sys.path.insert(0, os.fspath(Path(__file__).parent))

import kernels_matrix
import kernels_sass
import torch
import triton
from scalelab_kernels.runtime import ARCHITECTURES
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

CAPABILITIES = (80, 86, 89, 90, 100, 120)
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


def architecture_of(capability: int) -> str:
    """Return the name of the settings that a device of this capability uses."""
    return ARCHITECTURES.get(divmod(capability, 10), "ada")


def compile_instead_of_run(capability: int) -> list[tuple[str, Any]]:
    """Make each launch compile its kernel without running it; return the list of compiled kernels.

    It gets each kernel's name and the kernel.
    """
    driver.set_active(AbsentGpu(capability))
    compiled: list[tuple[str, Any]] = []
    original = JITFunction.run

    def run(self, *arguments, grid, warmup, **settings):
        kernel = original(self, *arguments, grid=grid, warmup=True, **settings)
        compiled.append((self.fn.__name__, kernel))
        return kernel

    JITFunction.run = run
    for name in FILES:
        module = importlib.import_module(f"scalelab_kernels.{name}")
        module.check_runs_here = lambda tensor: None
        module.architecture = lambda tensor: architecture_of(capability)
    return compiled


def rows(capability: int, *, every: bool, only: str = "") -> Iterator[dict[str, Any]]:
    """Compile the classes of shapes; yield one row for each different kernel."""
    compiled = compile_instead_of_run(capability)
    seen = set()
    for case in kernels_matrix.cases(architecture_of(capability), every=every):
        if only not in case.name:
            continue
        compiled.clear()
        case.run()
        for name, kernel in compiled:
            if kernel.hash in seen:
                continue
            seen.add(kernel.hash)
            yield {
                "triton": triton.__version__,
                "case": case.name,
                "kernel": name,
                "load_bits": case.load_bits,
                "allowed_n": case.smallest_n,
                "warps": kernel.metadata.num_warps,
                "stages": kernel.metadata.num_stages,
                "shared_bytes": kernel.metadata.shared,
                **kernels_sass.describe(kernel.asm["cubin"]),
            }


# Most shared memory of a block, CUDA C++ programming guide, technical specifications.
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
MULTIPLIES = ("_key_kernel", "_query_kernel", "_grad_hidden_kernel", "_grad_weight_kernel",
              "_gram_kernel")  # fmt: skip
# They read a few numbers for each token or parameter group.
READ_NUMBERS = ("_join_kernel", "_settle_kernel")


def faults(row: dict[str, Any], capability: int) -> list[str]:
    """Return what makes a compiled kernel slow or unable to start on a device, or nothing."""
    found = []
    if row["spills"]:
        found.append(f"{row['spills']} instructions spill registers")
    if row["shared_bytes"] > SHARED_KIB[capability] * 1024:
        found.append(f"{row['shared_bytes']} bytes of shared memory do not fit")
    if row["allowed_n"] and row["kernel"] in MULTIPLIES and not row["matrix"]:
        found.append("does not use the matrix units")
    if capability == 90 and row["matrix"] and row["smallest_n"] < row["allowed_n"]:
        found.append(f"a product has N = {row['smallest_n']}, not {row['allowed_n']}")
    if row["kernel"] not in READ_NUMBERS:
        bits = {int(width): count for width, count in row["loads"].items()}
        wide = min(64, row["load_bits"])
        n_wide = sum(width * count for width, count in bits.items() if width >= wide)
        # One number of 2 bytes is a target's logit, or a norm's weight of a thread.
        if sum(n for width, n in bits.items() if width < 32) > 1 or 2 * n_wide < sum(
            width * count for width, count in bits.items()
        ):
            found.append(f"narrow loads: {row['loads']}")
    return found


def main() -> None:
    """Compile, print one line for each kernel, and write the JSON with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, choices=CAPABILITIES, default=90)
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    for row in rows(options.capability, every=options.every, only=options.only):
        found.append(row)
        row["faults"] = faults(row, options.capability)
        sys.stdout.write("  ".join(f"{key} {value}" for key, value in row.items()) + "\n")
        sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

"""What the machine code of a compiled kernel says about its speed.

The disassembler is part of Triton's wheel. Machine code is what runs: PTX does not show spills, and
ptxas reports them only for kernels that are not in Triton's cache.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton

DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"

# `/*0a30*/   @!P0 LDG.E.128 R4, desc[UR8][R2.64] ;` -> `LDG.E.128`
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)")
_BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}
_MATRIX = ("HGMMA", "UTCHMMA", "HMMA")


def opcodes(cubin: bytes) -> list[str]:
    """Return the instruction names of a cubin with their modifiers, in order.

    Raises
    ------
    RuntimeError
        If the disassembler fails or prints no instruction.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [os.fspath(DISASSEMBLER), "-c", "-ndf", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = _INSTRUCTION.findall(done.stdout)
    if done.returncode or not found:
        raise RuntimeError(f"nvdisasm found no instructions: {done.stderr or done.stdout[:500]}")
    return found


def _bits(opcode: str) -> int:
    """Return the bits that one thread moves with a memory instruction."""
    return next((_BITS[part] for part in opcode.split(".")[1:] if part in _BITS), 32)


def describe(cubin: bytes) -> dict[str, Any]:
    """Return counts of a kernel's instructions.

    Returns
    -------
    dict
        ``spills``: loads and stores of registers in local memory. ``loads``: loads from global
        memory by bits of a thread, asynchronous copies included. ``copies``: the asynchronous ones.
        ``matrix``: products of the matrix units. ``smallest_n``: the smallest N of a ``wgmma``,
        or 0 if there is none.
    """
    names = opcodes(cubin)
    loads: dict[str, int] = {}
    for name in names:
        if name.split(".")[0] in ("LDG", "LDGSTS"):
            bits = str(_bits(name))
            loads[bits] = loads.get(bits, 0) + 1
    widths = [int(n) for name in names for n in re.findall(r"^HGMMA\.\d+x(\d+)x", name)]
    return {
        "spills": sum(name.startswith(("LDL", "STL")) for name in names),
        "loads": loads,
        "copies": sum(name.startswith("LDGSTS") for name in names),
        "matrix": sum(name.split(".")[0] in _MATRIX for name in names),
        "smallest_n": min(widths, default=0),
    }

"""Fused operations of the trainer, each with a reference in plain torch.

`scalelab_kernels.reference` runs on all devices. The Triton operations have the same names, one
file for each; `scalelab_kernels.operations.get_operations` loads them by name. There is no
automatic fallback. Importing this package imports neither torch nor Triton.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path


@functools.cache
def revision() -> str:
    """Return 16 hex digits that change whenever a source file of this package changes.

    A measurement of the kernels holds for one revision.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_bytes()
        digest.update(f"{path.name} {len(source)}\n".encode())
        digest.update(source)
    return digest.hexdigest()[:16]


def is_interpreting() -> bool:
    """Return whether the environment makes Triton interpret kernels, which then run on a CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")

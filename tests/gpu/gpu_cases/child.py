"""The child process: runs one case after the other, each named by a JSON line on stdin.

It answers each with one JSON line. After an error other than a failed check it ends, because a CUDA
context does not recover from every error; the parent then starts another child.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import platform
import sys
import traceback
from typing import Any

from scalelab.records.machine import end_with_parent


def main() -> None:
    """Answer requests until stdin is closed."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    # All that a case prints goes to the log.
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        print(f"== {request['name']}", file=sys.stderr, flush=True)
        answer, is_usable = run(request)
        print(json.dumps({**answer, "is_usable": is_usable}), file=answers, flush=True)
        if not is_usable:
            break


def run(request: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the answer to a request, and whether this process can run another case."""
    module, _, function = request["call"].partition(":")
    try:
        call = getattr(importlib.import_module(module), function)
        figures = call(is_tiny=request["is_tiny"], **request["arguments"])
        if "torch" in sys.modules:
            free_memory()
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"
        answer = {"status": "failed", "reason": reason[:500]}
        return answer, isinstance(error, AssertionError)
    return {"status": "ok", "figures": figures}, True


def free_memory() -> None:
    """Free what the last case left on the device; raise the error of a kernel that failed late."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def versions(*, is_tiny: bool) -> dict[str, Any]:
    """Return versions and the device."""
    import numpy
    import torch
    import triton

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "numpy": numpy.__version__,
        "device": "cpu, toy sizes" if is_tiny else None,
    }
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        found |= {
            "device": device.name,
            "capability": f"{device.major}.{device.minor}",
            "memory_gib": device.total_memory / 2**30,
            "n_multiprocessors": device.multi_processor_count,
            "cudnn": torch.backends.cudnn.version(),
        }
    elif not is_tiny:
        raise RuntimeError("torch finds no CUDA device")
    found["says"] = f"{found['device']}, torch {found['torch']}, Triton {found['triton']}"
    return found


if __name__ == "__main__":
    main()

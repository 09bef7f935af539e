"""The child process of a qualification: one JSON request a line on stdin, one answer each.

Answers go to the file descriptor that the command line names, because libraries print to stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

import torch

from scalelab.records.machine import end_with_parent
from scalelab.records.qualification import NOT_TRIED
from scalelab.sweep.execution import ExecutionSpec, execution_from_mapping
from scalelab.sweep.run_spec import run_spec_from_mapping
from scalelab.train.execution import is_out_of_memory
from scalelab.train.host import torch_settings
from scalelab.train.qualify.cases import Cases, free_memory
from scalelab.train.qualify.measure import OUT_OF_MEMORY

_REASON_LENGTH = 300


def main() -> None:
    """Answer requests until stdin ends. ``argv``: descriptor of the answers, device, threads."""
    answers, device, n_threads = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    end_with_parent()
    os.dup2(2, 1)
    with torch_settings(ExecutionSpec(device=device, n_threads=n_threads)):
        cases = Cases(device)
        _write(answers, {})
        for line in sys.stdin:
            answer = _answer(cases, json.loads(line))
            is_poisoned = not _device_answers(device)
            if is_poisoned:
                answer = {"status": "crashed", "reason": answer.get("reason") or "a CUDA error"}
            _write(answers, answer)
            if is_poisoned:
                # An illegal access ends the context: only a new process can go on.
                os._exit(1)


def _answer(cases: Cases, request: dict[str, Any]) -> dict[str, Any]:
    kind, n_runs = request["kind"], request["n_runs"]
    spec = run_spec_from_mapping(request["spec"])
    ways = {
        name: execution_from_mapping(request[name])
        for name in ("execution", "against")
        if request.get(name) is not None
    }
    try:
        if kind == "names":
            return {"names": cases.kernel_names(spec, n_runs)}
        if kind == "kernel":
            return cases.kernel(spec, n_runs, request["index"])
        if kind == "step":
            return cases.step(spec, n_runs, ways["execution"])
        return cases.speed(spec, n_runs, ways["execution"], ways.get("against"))
    except Exception as error:
        if is_out_of_memory(error):
            # This says nothing about the way.
            return {"status": NOT_TRIED, "reason": OUT_OF_MEMORY}
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"[:_REASON_LENGTH]
        return {"status": NOT_TRIED if kind == "names" else "failed", "reason": reason}
    finally:
        free_memory_quietly()


def free_memory_quietly() -> None:
    """Free memory; after a CUDA error that raises, and the next check of the device reports it."""
    with contextlib.suppress(RuntimeError):
        free_memory()


def _device_answers(device: str) -> bool:
    """Say whether the device still works in this process."""
    if device != "cuda":
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _write(descriptor: int, answer: dict[str, Any]) -> None:
    data = memoryview(json.dumps(answer).encode() + b"\n")
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main()

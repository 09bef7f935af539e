"""Cache of trunk states, which lets the branches of a WSD ladder share their first steps.

Under ``wsd``, two runs that differ only in length and decay take the same steps until the shorter
one starts to decay. A run saves its state at that step, and longer runs start from it. The key of
the cache is the run's identity without length and decay. Deleting the cache costs only time,
because a branch is an ordinary run.

::

    <trunks>/<trunk id>/checkpoint-<step>/   same files as a run's checkpoint
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.trunk import branch_step, trunk_id
from scalelab.train import checkpoint


def save(trunks: Path, spec: RunSpec, state: dict[str, Any]) -> None:
    """Save the state at a branch, unless the cache has it already.

    Raises
    ------
    OSError
        When writing fails; no partial folder stays.
    """
    folder = trunks / trunk_id(spec)
    final = folder / f"checkpoint-{state['step']}"
    if final.exists():
        return
    partial = folder / f".partial-{os.getpid()}-{secrets.token_hex(4)}"
    partial.mkdir(parents=True)
    try:
        checkpoint.write(partial, {**state, "run_id": trunk_id(spec)})
        if not final.exists():
            partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(trunks: Path, spec: RunSpec) -> dict[str, Any] | None:
    """Return the latest state of the trunk from which a run can start, or None."""
    last = branch_step(spec)
    if last is None:
        return None
    found = []
    for entry in (trunks / trunk_id(spec)).glob("checkpoint-*"):
        number = entry.name.removeprefix("checkpoint-")
        if number.isdigit() and int(number) <= last:
            found.append((int(number), entry))
    for step, entry in sorted(found, reverse=True):
        state = checkpoint.read(entry)
        if state is not None and state["step"] == step and state["run_id"] == trunk_id(spec):
            return state
    return None

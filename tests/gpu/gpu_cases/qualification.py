"""The qualification that a worker of a sweep does on this GPU, and its verdict."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gpu_cases.steps import model_spec, request, small_spec
from scalelab.records.files import read_json
from scalelab.sweep.execution import QualifyRequest
from scalelab.train.qualify.choose import qualified


def qualify(*, is_tiny: bool) -> dict[str, Any]:
    """Qualify this GPU for a small, a middle and a large model; return the choices and figures."""
    specs = (small_spec("0.1M", is_tiny=is_tiny),)
    if not is_tiny:
        specs += tuple(model_spec(name, 1024, is_tiny=False) for name in ("10M", "124M"))
    asked = request()
    if is_tiny:
        # A plain way needs no verdict; measuring one with interpreted kernels takes a minute.
        plain = {"step": "eager", "kernels": "reference", "attention": "explicit"}
        asked = replace(asked, device="cpu", **plain)
    # Without the user's cache: a verdict there would be taken instead.
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, {"XDG_CACHE_HOME": folder}),
    ):
        results = Path(folder) / "qualification"
        notes = {}
        for spec in reversed(specs):
            execution, note = qualified(
                asked, spec, n_runs=1, request_=QualifyRequest(results, specs)
            )
            notes[spec.shape.label()] = {
                key: note.get(key) for key in ("chosen", "ruled_out", "is_qualified")
            }
            chosen = f"{execution.step} + {execution.kernels} + {execution.attention}"
            notes[spec.shape.label()]["way"] = chosen
        verdicts = [read_json(path) for path in results.glob("*.json")]
    ways = [f"{label}: {note['way']}" for label, note in notes.items()]
    n_out = sum(len(note["ruled_out"] or ()) for note in notes.values())
    said = f"{'; '.join(ways)}; {n_out} ruled out"
    return {"choices": notes, "verdicts": verdicts, "says": said}

"""Columns of the runs of a user's program: what it is, and NULL for what it does not receive."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from scalelab.errors import ScalelabError
from scalelab.sweep.program import ProgramSpec, as_tuples
from scalelab.sweep.program_render import used_names
from scalelab.sweep.run_size import NO_SHAPE
from scalelab.sweep.run_spec import build
from scalelab.theory.shape import ModelShape

_BUILT_IN = (
    *("optimizer", "parametrization", "epsilon", "z_loss", "logit_softcap", "is_document_masked"),
    *("end_token", "init_std", "ema_decay", "balance_weight", "router_z_weight", "precision"),
    *("numerics_revision", "step_mode", "kernels", "attention", "requested"),
)
"""Columns that describe the built-in trainer only."""
_BY_PLACEHOLDER = {
    "lr": ("lr", "lr_end"),
    "lr_end_ratio": ("lr_end", "lr_end_ratio"),
    "warmup_steps": ("warmup_steps", "warmup_ratio"),
    "decay_steps": ("decay_steps", "decay_ratio"),
    "weight_decay": ("weight_decay",),
    "beta1": ("beta1",),
    "beta2": ("beta2",),
    "grad_clip": ("grad_clip",),
    "seed": ("seed",),
}
"""Columns whose value a program has only if its command has one of these placeholders."""
_SHAPE = (
    *("n_layers", "d_model", "n_heads", "d_head", "d_ff", "vocab_size", "n_kv_heads"),
    *("is_tied", "has_qk_norm", "d_shared_expert", "granularity"),
)


def program_of(spec: Mapping[str, Any]) -> ProgramSpec | None:
    """Return the program of a run's spec as read from JSON; None for the built-in trainer."""
    content = spec.get("program")
    if isinstance(content, Mapping):
        with contextlib.suppress(ScalelabError, TypeError):
            return build(ProgramSpec, as_tuples(content))
    return None


def program_columns(program: ProgramSpec, shape: ModelShape) -> dict[str, Any]:
    """Return the columns in which the row of a program's run differs from a row of ours."""
    used: frozenset[str] = frozenset()
    with contextlib.suppress(ScalelabError):
        used = used_names(program)
    unused = [
        name
        for name, placeholders in _BY_PLACEHOLDER.items()
        if not used.intersection(placeholders)
    ]
    unknown = _SHAPE if shape == NO_SHAPE else ()
    if shape.vocab_size == NO_SHAPE.vocab_size:
        unknown = (*unknown, "vocab_size")
    return {
        **dict.fromkeys((*_BUILT_IN, *unused, *unknown)),
        "program": json.dumps(program.command),
        "program_version": program.version,
        "program_size": json.dumps(dict(program.size)) if program.size else None,
        "program_format": program.reader,
    }

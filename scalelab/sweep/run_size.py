"""Parameters and training FLOPs of a planned run, as far as they are known before it trains.

The built-in trainer and most programs have the size of their shape. A program may instead have a
table of sizes, which gives N and FLOPs of a model whose shape only the program knows.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from scalelab.sweep.program import ProgramSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import (
    DEFAULT_FLOP_CONVENTION,
    DEFAULT_PARAM_CONVENTION,
    count_params,
    train_flops_6nd,
    train_flops_per_token,
)
from scalelab.theory.shape import ModelShape

REPORTED = "reported"
"""Convention of FLOPs that a program or a table of sizes states."""
NO_SHAPE = ModelShape(n_layers=1, d_model=2, n_heads=1, d_head=2, d_ff=1, vocab_size=1)
"""Shape of a run that has only a row of a table of sizes; tables show no shape for it."""
TABLE_PARAMS = {"chinchilla": "n_params", "kaplan": "n_params_kaplan", "active": "n_params_active"}
"""Columns of a table of sizes that give parameters, by their convention."""
TABLE_FLOPS = "flops_per_token"


@dataclass(frozen=True, slots=True)
class RunSize:
    """Size of a run before it trains.

    Attributes
    ----------
    n_params : Mapping
        Parameters by convention (`scalelab.theory.accounting.PARAM_CONVENTIONS`); at least the
        default convention.
    flops_per_token : Mapping
        Training FLOPs per token by convention; `REPORTED` is what a table of sizes states.
    """

    n_params: Mapping[str, int]
    flops_per_token: Mapping[str, float]

    @property
    def total(self) -> int:
        """All parameters, the default convention."""
        return self.n_params[DEFAULT_PARAM_CONVENTION]

    @property
    def active(self) -> int:
        """Parameters that a token uses; all parameters of a dense model."""
        return self.n_params.get("active", self.total)

    @property
    def flop_convention(self) -> str:
        """Convention of planned FLOPs, by `flop_convention`."""
        return flop_convention(self.flops_per_token) or DEFAULT_FLOP_CONVENTION

    @property
    def planned_per_token(self) -> float:
        """Training FLOPs per token by `flop_convention`."""
        return self.flops_per_token[self.flop_convention]


def flop_convention(counts: Mapping[str, object]) -> str | None:
    """Return the convention that names C among the counts of a run; None if it has no count.

    It is exact where the shape is known, else what was reported, else 6ND.
    """
    known = (DEFAULT_FLOP_CONVENTION, REPORTED, "6nd")
    return next((name for name in known if name in counts), None)


def run_size(spec: RunSpec) -> RunSize:
    """Return the size of a run: by its row in a table of sizes, else by its shape."""
    return model_size(spec.shape, spec.seq_len, spec.program)


def model_size(shape: ModelShape, seq_len: int, program: ProgramSpec | None) -> RunSize:
    """Return the size of a model: by its row in a program's table of sizes, else by its shape."""
    if program is None or not program.n_params:
        return shape_size(shape, seq_len)
    return table_size(dict(program.size), program.n_params, program.flops_per_token)


@functools.lru_cache(maxsize=4096)
def shape_size(shape: ModelShape, seq_len: int) -> RunSize:
    """Return the size of a model of this shape."""
    return RunSize(count_params(shape).by_convention(), train_flops_per_token(shape, seq_len))


def table_size(row: Mapping[str, object], n_params: int, flops_per_token: float) -> RunSize:
    """Return the size that a row of a table of sizes gives, without what it does not state."""
    counts = {DEFAULT_PARAM_CONVENTION: n_params}
    for convention, column in TABLE_PARAMS.items():
        value = row.get(column)
        if isinstance(value, int):
            counts.setdefault(convention, value)
    flops = {"6nd": float(train_flops_6nd(counts.get("active", n_params), 1))}
    if "kaplan" in counts:
        flops["6nd_kaplan"] = float(train_flops_6nd(counts["kaplan"], 1))
    if flops_per_token:
        flops[REPORTED] = flops_per_token
    return RunSize(counts, flops)


def planned_flops(spec: RunSpec) -> float:
    """Return the training FLOPs of a run, by the convention of `RunSize.flop_convention`."""
    return run_size(spec).planned_per_token * spec.n_tokens


def has_shape(spec: RunSpec) -> bool:
    """Say whether the shape of a run is known, and not only its row in a table of sizes."""
    return spec.program is None or spec.shape != NO_SHAPE

"""What a tuning is asked for: cells of size and tokens, and the ranges to search at each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from scalelab.errors import UsageError
from scalelab.records.sweep_dir import TUNE_KIND
from scalelab.sweep.plan import PlannedRun
from scalelab.sweep.spec import SweepSpec
from scalelab.units import parse_range

LR_SPAN = 8.0
"""Without a range, rates from the rule's over this to the rule's times this are searched."""

BATCH_SPAN = 4
MIN_STEPS = 50
DEFAULT_TRIALS = 16
DEFAULT_WAVE = 4
LIMITS: Mapping[str, tuple[float, float]] = {
    "lr": (1e-8, 10.0),
    "batch_seqs": (1.0, 1e6),
    "weight_decay": (1e-6, 10.0),
    "beta2": (1e-3, 0.999999),
}
"""Ends of a search that make sense, both included."""

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneSpec:
    """One tuning.

    Attributes
    ----------
    sweep : SweepSpec
        A grid: its sizes and tokens are the cells, its text, training and launcher hold for all.
    trials : int
        Runs at each cell.
    wave : int
        Of them, how many are chosen at a time.
    lr, batch_seqs : tuple of float or None
        Ends of the search; None means about the sweep's own rule.
    weight_decay, beta2 : tuple of float or None
        Ends of the search; None leaves it as the sweep has it.
    is_pruned : bool
        Whether hopeless runs are stopped early.
    seed : int
        Of the search.
    """

    sweep: SweepSpec
    trials: int = DEFAULT_TRIALS
    wave: int = DEFAULT_WAVE
    lr: Range | None = None
    batch_seqs: Range | None = None
    weight_decay: Range | None = None
    beta2: Range | None = None
    is_pruned: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sweep.kind != "grid":
            raise UsageError(
                f"a tuning over a sweep of kind {self.sweep.kind}",
                "sizes and tokens, as of a grid",
                "Give --n-params and --n-tokens.",
            )
        for name in ("trials", "wave"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}", "1 or more", f"Mend --{name}.")
        for name, (least, most) in LIMITS.items():
            ends = getattr(self, name)
            if ends is not None and not least <= ends[0] < ends[1] <= most:
                raise UsageError(
                    f"{name} from {ends[0]:g} to {ends[1]:g}",
                    f"a range LOW..HIGH within {least:g} to {most:g}",
                    f"Mend --{name.replace('_', '-')}.",
                )

    @property
    def name(self) -> str:
        """Name of the tuning: the sweep's."""
        return self.sweep.name or f"tune-{self.sweep.default_name().removeprefix('grid-')}"

    def science(self) -> dict[str, Any]:
        """Return what decides the search; more trials go on with it."""
        content = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("sweep", "trials", "wave")
        }
        # As JSON has it, so that it equals what was saved.
        content = json.loads(json.dumps(content))
        return {"kind": TUNE_KIND, "tune": content, "sweep": self.sweep.science()}

    def bounds(self, row: PlannedRun) -> dict[str, Range]:
        """Return the ends of the search at a cell, by hyperparameter.

        Parameters
        ----------
        row : PlannedRun
            The cell as the sweep's own rules would run it.
        """
        found = {"lr": self.lr or (row.spec.lr / LR_SPAN, row.spec.lr * LR_SPAN)}
        if self.batch_seqs is not None:
            found["batch_seqs"] = self.batch_seqs
        elif self.sweep.train.batch_seqs is None:
            middle = row.spec.batch_seqs
            most = row.spec.n_tokens / row.spec.seq_len / MIN_STEPS
            low, high = max(1, middle // BATCH_SPAN), min(middle * BATCH_SPAN, most)
            if high >= 2 * low:
                found["batch_seqs"] = (float(low), float(high))
        for name in ("weight_decay", "beta2"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        return found


def parse_ends(text: str | None, *, what: str) -> Range | None:
    """Return the two ends of ``LOW..HIGH``.

    Raises
    ------
    UsageError
        When it is not such a range.
    """
    if text is None:
        return None
    if ".." not in text:
        raise UsageError(f"{what} {text!r}", "a range LOW..HIGH", "Write 1e-3..3e-2, for example.")
    values = parse_range(f"{text.partition(':')[0]}:2", what=what)
    return float(values[0]), float(values[-1])


def powers_of_two(ends: Range) -> tuple[int, int]:
    """Return the exponents of the powers of two within the ends; the nearest when none is."""
    low, high = math.ceil(math.log2(ends[0]) - 1e-9), math.floor(math.log2(ends[1]) + 1e-9)
    return (low, high) if low <= high else (high, high)

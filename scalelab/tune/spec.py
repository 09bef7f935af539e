"""Specification of a tuning (`TuneSpec`): cells of size and tokens, and the ranges to search."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from scalelab.errors import UsageError
from scalelab.records.metric import HELDOUT, parse_metric
from scalelab.records.sweep_dir import TUNE_KIND
from scalelab.sweep.option import KINDS, SEARCH, Table, option
from scalelab.sweep.planned_run import PlannedRun
from scalelab.sweep.spec import SweepSpec
from scalelab.sweep.values import Ends
from scalelab.theory.decay_rules import CONSTANT

LR_SPAN = 8.0
"""Default search: from the rule's rate divided by this to the rule's rate times this."""

BATCH_SPAN = 4
MIN_STEPS = 50
LIMITS: Mapping[str, tuple[float, float]] = {
    "lr": (1e-8, 10.0),
    "batch_seqs": (1.0, 1e6),
    "weight_decay": (1e-6, 10.0),
    "beta2": (1e-3, 0.999999),
}
"""Largest accepted search range of each hyperparameter, both ends included."""

Range = tuple[float, float]


class TuneSpec(Table):
    """A search for the best learning rate and batch at each size and number of tokens.

    ``sweep`` is a grid: its sizes and tokens are the cells; its text, training settings and
    launcher apply to all runs. A single value for ``batch_seqs``, ``weight_decay`` or ``beta2`` is
    not searched: it becomes the setting of all runs.
    """

    panel: ClassVar[str] = SEARCH
    is_in_files: ClassVar[bool] = False

    sweep: SweepSpec
    trials: int = option(16, "Runs at each size and number of tokens", example="24", ge=1)
    wave: int = option(4, "Runs of a cell that are chosen and trained together", example="8", ge=1)
    lr: Ends | None = option(
        None, "Learning rates to search; without it, the rule's rate divided by 8 to times 8",
        example="1e-3..3e-2"
    )  # fmt: skip
    batch_seqs: Ends | None = option(
        None,
        "Batch sizes to search, in sequences (powers of two), or one value for all runs; without "
        "it, the rule's batch divided by 4 to times 4", example="8..64"
    )  # fmt: skip
    weight_decay: Ends | None = option(
        None, "Weight decays to search, or one value; 0.1 if absent", example="0.01..0.3"
    )
    beta2: Ends | None = option(
        None, "Decay rates of AdamW's second moment to search, or one value; 0.95 if absent",
        example="0.9..0.99"
    )  # fmt: skip
    is_pruned: bool = option(
        True, "Stop trials that are worse than the 75th percentile of their cell", flag="--prune"
    )
    metric: str = option(
        HELDOUT.text,
        "Loss that the search lowers: an evaluation set such as code, bpb:code (bits per byte), or "
        "a mean such as 0.7*code+0.3*web", example="code"
    )  # fmt: skip
    seed: int = Field(default=0, description="Seed of the search")

    @field_validator("metric")
    @classmethod
    def _metric_is_one(cls, text: str) -> str:
        metric = parse_metric(text)
        if not metric.terms:
            raise UsageError(
                f"--metric {text} in a tuning", "one metric", "Write for example --metric code."
            )
        return metric.text

    @model_validator(mode="before")
    @classmethod
    def _single_values_are_settings(cls, content: Any) -> Any:
        if not isinstance(content, Mapping) or not isinstance(content.get("sweep"), Mapping):
            return content
        single = {
            name: content[name]
            for name in ("batch_seqs", "weight_decay", "beta2")
            if isinstance(content.get(name), (str, int, float)) and ".." not in str(content[name])
        }
        train = {**content["sweep"].get("train", {}), **single}
        rest = {name: value for name, value in content.items() if name not in single}
        return {**rest, "sweep": {**content["sweep"], "train": train}}

    @model_validator(mode="after")
    def _cells_of_a_program_need_no_rule(self) -> TuneSpec:
        """Put the centre of a searched range in place of a rule, which may need a shape."""
        train, changes = self.sweep.train, {}
        if self.sweep.program is None:
            return self
        if self.lr is not None and train.lr is None:
            changes["lr"] = float(f"{math.sqrt(self.lr[0] * self.lr[1]):.4g}")
        if self.batch_seqs is not None and train.batch_seqs is None:
            low, high = powers_of_two(self.batch_seqs)
            changes["batch_seqs"] = 2 ** ((low + high) // 2)
        if not changes:
            return self
        sweep = self.sweep.model_copy(update={"train": train.model_copy(update=changes)})
        return self.model_copy(update={"sweep": sweep})

    @model_validator(mode="after")
    def _search_is_possible(self) -> TuneSpec:
        if self.sweep.kind != "grid":
            raise UsageError(
                f"a tuning of a sweep of kind {self.sweep.kind}",
                "kind = grid",
                'Write kind = "grid" in the sweep file, or remove the key kind.',
            )
        rule = self.sweep.train.weight_decay_rule
        if rule != CONSTANT:
            raise UsageError(
                f"a tuning with weight_decay_rule = {rule}",
                f"{CONSTANT}, because the trials of a cell share or search the weight decay",
                "Remove weight_decay_rule, or search with --weight-decay 0.01..0.3.",
            )
        self.sweep.require_one_mixture("a tuning")
        if self.sweep.program is not None and "lr" not in self.sweep.program.used():
            raise UsageError(
                "a tuning of a program without {lr}",
                "a command that receives the learning rate",
                "Add for example '--learning_rate={lr}' to program.command.",
            )
        if self.sweep.launcher.largest_last:
            raise UsageError(
                "largest_last in a tuning",
                f"a sweep of kind {', '.join(KINDS)}",
                "Remove the key launcher.largest_last.",
            )
        for name, (least, most) in LIMITS.items():
            ends = getattr(self, name)
            if ends is not None and not least <= ends[0] < ends[1] <= most:
                raise UsageError(
                    f"--{name.replace('_', '-')}: {name} from {ends[0]:g} to {ends[1]:g}",
                    f"a range LOW..HIGH within {least:g} to {most:g}",
                    f"Write for example --{name.replace('_', '-')} {least:g}..{most:g}.",
                )
        return self

    @property
    def name(self) -> str:
        """Name of the tuning: the sweep's."""
        return self.sweep.name or f"tune-{self.sweep.default_name().removeprefix('grid-')}"

    def science(self) -> dict[str, Any]:
        """Return the fields that determine the search; more trials continue the same search."""
        left_out = {"sweep", "trials", "wave", *(["metric"] if self.metric == HELDOUT.text else [])}
        content = json.loads(self.model_dump_json(exclude=left_out))
        return {"kind": TUNE_KIND, "tune": content, "sweep": self.sweep.science()}

    def bounds(self, row: PlannedRun) -> dict[str, Range]:
        """Return the ends of the search at a cell, by hyperparameter.

        ``row`` is a run of the cell with the learning rate and batch of the sweep's rules.
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


def powers_of_two(ends: Range) -> tuple[int, int]:
    """Return exponents of the powers of two in a range; of the nearest ones if it has none."""
    low, high = math.ceil(math.log2(ends[0]) - 1e-9), math.floor(math.log2(ends[1]) + 1e-9)
    return (low, high) if low <= high else (high, high)

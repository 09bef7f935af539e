"""Specification of a sweep (`SweepSpec`): the one definition of its options and file keys.

Each field carries its default, bounds, help, example, panel and flag (`scalelab.sweep.option`). The
command line, the JSON schema and the reference pages are generated from them. Values are written as
everywhere: ``1e18``, ``7B``, ``2e11..2e12:4``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from scalelab.errors import DataError, UsageError, near_file
from scalelab.sweep.mix_table import require_weights
from scalelab.sweep.model_table import ModelTable
from scalelab.sweep.option import DATA, PROGRAM, Metavar, Table, find_option, option, validated
from scalelab.sweep.program_checks import refuse_unused_tables
from scalelab.sweep.program_table import ProgramTable, located_program, read_program
from scalelab.sweep.run_spec import ROUTER_WEIGHTS
from scalelab.sweep.shape_rule import ALIGNED, ALIGNED_FROM_FLOPS, FINE, ShapeRule
from scalelab.sweep.shapes import SMALLEST_VOCABULARY, listed_shapes
from scalelab.sweep.tables import (
    DataTable,
    ExecutionTable,
    LauncherTable,
)
from scalelab.sweep.train_table import TrainTable
from scalelab.sweep.values import Quantities, Quantity
from scalelab.theory.accounting import count_params, train_flops_6nd

DEFAULT_SIZES = 7
DEFAULT_MIXTURES = 24
DEFAULT_SPAN = 16.0
MAX_PLANNED_RUNS = 100_000
AXES = {
    "isoflop": ("budgets",),
    "grid": ("n_params", "n_tokens"),
    "ladder": ("n_params", "n_tokens"),
    "mixture": ("n_params", "n_tokens"),
}
"""Axes that each kind of sweep needs."""
SIZE_KEYS = ("n_params", "sizes", "span", "tokens_per_param")
"""Keys that choose sizes, which explicit shapes replace."""
FIRST_DATA_KEYS = (
    *("paths", "tokenizer", "field", "column", "eval_tokens", "format", "max_rejects"),
    *("eval_paths", "dtype", "vocab_size", "end_token", "fingerprint"),
    *("tokenizer_pattern", "special_tokens"),
)
FIRST_TRAIN_KEYS = (
    *("seq_len", "batch_seqs", "batch_rule", "lr", "lr_rule", "schedule", "optimizer"),
    *("weight_decay", "beta2", "grad_clip", "ema_decay", "precision", "seeds"),
)
"""Keys of a table that saved sweeps have always had; later ones only if they are set."""
_ISOFLOP = ("isoflop",)
_GRID = ("grid", "ladder", "adaptive", "tune", "mixture")


class SweepSpec(Table):
    """One sweep: which runs, on which text, executed where."""

    kind: Literal["isoflop", "grid", "ladder", "mixture"] = Field(
        description="isoflop: several sizes at each FLOP budget. grid: each size with each number "
        "of tokens. ladder: like grid, with one constant-rate trunk per size and a cooldown branch "
        "per number of tokens. mixture: like grid, with many mixtures of the sources of [data.mix]"
    )
    budgets: Quantities = option(
        (), "Training FLOPs of each isoFLOP curve", example="1e18..1e20:5", commands=_ISOFLOP
    )
    n_params: Quantities = option(
        (),
        "Model sizes N, all parameters counted (of a mixture of experts, as --size-by says). Of an "
        "isoFLOP sweep: the sizes at every budget, instead of --sizes",
        example="1M..10M:4",
        commands=(*_ISOFLOP, *_GRID),
    )
    n_tokens: Quantities = option((), "Training tokens D", example="20M..200M:3", commands=_GRID)
    runs: int = option(
        DEFAULT_MIXTURES, "Mixtures of the sources, each trained at each size with each number of "
        "tokens", example="24", commands=("mixture",), ge=3
    )  # fmt: skip
    sizes: int = option(
        DEFAULT_SIZES, "Model sizes at each budget", example="9", commands=_ISOFLOP, ge=1
    )
    span: float = option(
        DEFAULT_SPAN, "Ratio of the largest to the smallest model at a budget", example="8",
        commands=_ISOFLOP, gt=1
    )  # fmt: skip
    tokens_per_param: Quantity | None = option(
        None, "Tokens per parameter at the centre of the size grid. Default: 40 for bytes, 20 for "
        "other tokenizers", example="20", commands=_ISOFLOP
    )  # fmt: skip
    name: str | None = option(
        None,
        "Name of the sweep; the same name continues it. Default: made from the axes",
        example="demo",
    )
    allow_repeats: bool = option(
        False, "Allow more than 4 epochs over the text", panel=DATA, example="true"
    )
    data: DataTable = DataTable()
    model: ModelTable = ModelTable()
    train: TrainTable = TrainTable()
    execution: ExecutionTable = ExecutionTable()
    launcher: LauncherTable = LauncherTable()
    program: Annotated[
        ProgramTable | None,
        BeforeValidator(read_program, json_schema_input_type=ProgramTable | str | None),
        Metavar("<file>"),
    ] = (
        option(
            None, "Train the runs with a program of yours instead of the built-in trainer: a sweep "
            "file with the table [program]", panel=PROGRAM, example="program.toml",
            commands=("isoflop", "grid", "adaptive", "tune")
        )
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _ladders_use_wsd(cls, content: Any) -> Any:
        is_ladder = isinstance(content, Mapping) and content.get("kind") == "ladder"
        train = content.get("train", {}) if is_ladder else None
        if isinstance(train, Mapping) and "schedule" not in train:
            return {**content, "train": {**train, "schedule": "wsd"}}
        return content

    @model_validator(mode="after")
    def _axes_fit_kind(self) -> SweepSpec:
        needed = self._needed_axes()
        for axis in ("budgets", "n_params", "n_tokens"):
            is_missing = axis in needed
            if self.kind == "isoflop" and axis == "n_params":
                continue  # the sizes of every budget, which most sweeps leave to the rule
            if is_missing != bool(getattr(self, axis)):
                found = find_option(SweepSpec, (axis,))
                assert found is not None
                flags = " and ".join(f"--{name.replace('_', '-')}" for name in needed)
                flags = flags.replace("--n-params", "--n-params (or --shape-list)")
                raise UsageError(
                    f"{self.kind} sweep {'without' if is_missing else 'with'} {axis}",
                    f"{flags} for {self.kind}",
                    found.suggestion if is_missing else f"Remove {found.flag}.",
                )
        if self.kind == "ladder" and self.train.schedule != "wsd":
            raise UsageError(
                f"ladder sweep with schedule = {self.train.schedule!r}",
                "wsd, because branches leave a trunk of constant learning rate",
                "Write --schedule wsd, or remove the key schedule: a ladder uses wsd.",
            )
        if self.kind == "isoflop":
            self.require_one_mixture("isoflop sweep")
        self._require_mixture()
        if self.program is not None:
            refuse_unused_tables(self, self.program)
        fields = TrainTable.model_fields
        idle = [n for n in ROUTER_WEIGHTS if getattr(self.train, n) != fields[n].default]
        if idle and not self.has_experts:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in idle)
            raise UsageError(
                f"{' and '.join(idle)} ({flags}) without experts",
                "router losses with a mixture of experts; a dense model has no router",
                f"Add for example --n-experts 8, or remove {flags}.",
            )
        return self

    def _require_mixture(self) -> None:
        """Raise UsageError if a sweep over mixtures has no sources, or another one no weights."""
        mix = self.data.mix
        if self.kind != "mixture":
            if mix:
                require_weights(mix)
            if self.runs != DEFAULT_MIXTURES:
                raise UsageError(
                    f"runs = {self.runs} for a sweep of kind {self.kind}",
                    "runs for kind mixture, where it is the number of mixtures",
                    "Remove runs.",
                )
            return
        if not mix:
            raise UsageError(
                "mixture sweep without sources",
                "at least two sources of text",
                "Write for example --mix-source code=src/ --mix-source web=pages/.",
            )
        if self.launcher.stop_hopeless or self.launcher.largest_last:
            flag = "stop_hopeless" if self.launcher.stop_hopeless else "largest_last"
            raise UsageError(
                f"{flag} for a sweep over mixtures",
                "sweeps whose runs differ in N and D only, from which losses are predicted",
                f"Remove {flag}.",
            )
        weighted = [name for name, source in mix.items() if source.weight is not None]
        if weighted:
            raise UsageError(
                f"mixture sweep with a weight of {', '.join(weighted)}",
                "sources without weights, because the sweep tries many",
                "Remove the weights. To train one mixture, use `scalelab sweep grid`.",
            )

    def require_one_mixture(self, what: str) -> None:
        """Raise UsageError if the sweep has several mixtures of experts, for a command's name."""
        if len(self.model.experts()) > 1:
            raise UsageError(
                f"{what} with several mixtures of experts",
                "one of them: sizes and tokens are its only axes",
                "Use one value of --n-experts (or --expansion), --n-active-experts and "
                "--granularity.",
            )

    @property
    def has_experts(self) -> bool:
        """Whether some models are mixtures of experts."""
        return self.model.experts() != (None,)

    def _needed_axes(self) -> tuple[str, ...]:
        """Return the axes that the sweep needs; raise UsageError where two give the sizes."""
        given = [
            name for name in SIZE_KEYS if name in self.model_fields_set and getattr(self, name)
        ]
        if self.kind == "isoflop" and self.n_params and len(given) > 1:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given[1:])
            raise UsageError(
                f"n_params (--n-params) with {', '.join(given[1:])}",
                "one of them, because --n-params gives every size",
                f"Remove {flags}, or --n-params.",
            )
        if self.program is not None and self.program.size.by == "table":
            # The table has the sizes; a grid may choose some of them.
            has_sizes = bool(self.n_params) and self.kind != "isoflop"
            return tuple(axis for axis in AXES[self.kind] if axis != "n_params" or has_sizes)
        if not self.model.shape_list:
            return AXES[self.kind]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(
                f"shape_list (--shape-list) with {', '.join(given)}",
                "one of them, because the list gives every size",
                f"Remove {flags}, or --shape-list.",
            )
        return tuple(axis for axis in AXES[self.kind] if axis != "n_params")

    def default_name(self) -> str:
        """Return the name of the sweep; without one, it is made from the axes."""
        if self.name is not None:
            return self.name
        n_sizes = self.n_sizes()
        if self.kind == "isoflop":
            low, high = min(self.budgets), max(self.budgets)
            ends = f"{low:.0e}-{high:.0e}-{len(self.budgets)}x{n_sizes}"
        else:
            n_experts = len(self.model.experts())
            ends = f"{n_sizes}x{len(self.n_tokens)}{f'x{n_experts}' if n_experts > 1 else ''}"
        if self.kind == "mixture":
            ends = f"{self.runs}x{ends}"
        return f"{self.kind}-{ends.replace('e+', 'e')}"

    def n_sizes(self) -> int:
        """Return the model sizes at each budget, or in a grid."""
        if self.program is not None and self.program.size.by == "table":
            n_rows = len(self.program.rows())
            # The default number of sizes is at most what the table has.
            asked = self.sizes if "sizes" in self.model_fields_set else min(self.sizes, n_rows)
            return len(self.n_params) or (asked if self.kind == "isoflop" else n_rows)
        return len(self.model.shape_list or ()) or len(self.n_params) or self.sizes

    def shape_rules(self) -> tuple[ShapeRule, ...]:
        """Return the rule of the models' shapes, one for each mixture of experts.

        The default table depends on the largest budget; without budgets on 6ND of the largest run.
        """
        if self.budgets:
            most = max(self.budgets)
        else:
            listed = listed_shapes(SMALLEST_VOCABULARY, self.model.rule(FINE))
            rows = self.program.rows() if self.program is not None else ()
            sizes = self.n_params or [float(row.n_params) for row in rows]
            sizes = sizes or [float(count_params(shape).total) for shape in listed]
            most = train_flops_6nd(max(sizes), max(self.n_tokens))
        return self.model.rules(ALIGNED if most >= ALIGNED_FROM_FLOPS else FINE)

    def science(self) -> dict[str, Any]:
        """Return the fields that determine the runs: without name, execution and launcher."""
        excluded = {"name", "execution", "launcher", "program"}
        content: dict[str, Any] = json.loads(self.model_dump_json(exclude=excluded))
        # Saved sweeps from before these fields existed must compare equal.
        for name, first in (("data", FIRST_DATA_KEYS), ("train", FIRST_TRAIN_KEYS)):
            defaults = type(getattr(self, name))().model_dump(mode="json")
            content[name] = {
                key: value
                for key, value in content[name].items()
                if key in first or value != defaults[key]
            }
        if self.kind != "mixture":
            del content["runs"]
        # The shapes that result, with a preset or without it.
        rules = [rule.changes() for rule in self.shape_rules()]
        content["model"] = rules[0] if len(rules) == 1 else {"rules": rules}
        if not content["model"]:
            del content["model"]
        if self.program is not None:
            content["program"] = self.program.science()
        return content


def sweep_from_mapping(content: Mapping[str, Any], *, source: str) -> SweepSpec:
    """Return the sweep that a nested mapping describes; see `scalelab.sweep.option.validated`."""
    return validated(SweepSpec, content, source=source)


def read_sweep_file(path: Path) -> SweepSpec:
    """Return the sweep that a TOML file describes; its name defaults to the file's.

    Raises
    ------
    DataError
        When the file is missing or is not TOML.
    UsageError
        When its content is not a sweep.
    """
    return sweep_from_mapping(read_mapping(path), source=str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the content of a sweep file, not validated; the name defaults to the file's.

    Raises
    ------
    DataError
        When the file is missing or is not TOML.
    """
    try:
        content = {"name": path.stem, **tomllib.loads(path.read_text(encoding="utf-8"))}
    except OSError as error:
        raise DataError(
            f"sweep file {path}: {error.strerror}",
            "a readable TOML file",
            near_file(path) or "Check the path.",
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(
            f"sweep file {path}: {error}",
            "a TOML file such as sweeps/demo.toml",
            "Fix the line that the message names.",
        ) from None
    program = content.get("program")
    if isinstance(program, str):
        return {**content, "program": str(path.parent / program)}
    return content if program is None else {**content, "program": located_program(program, path)}

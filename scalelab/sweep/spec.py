"""What a person asks for: a sweep, from a TOML file or from options. Text enters the house here.

Everything a sweep file may hold is a field below; an unknown key is an error that lists the known
ones. Quantities are written as everywhere (``1e18``, ``7B``, ``2e11..2e12:4``).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from scalelab.corpus.source import DEFAULT_EVAL_TOKENS
from scalelab.errors import DataError, ScalelabError, UsageError
from scalelab.sweep.devices import require_divisible_devices
from scalelab.sweep.run_spec import OPTIMIZERS, PRECISIONS, SCHEDULES
from scalelab.theory.hardware import find_hardware
from scalelab.theory.schedule import (
    BATCH_RULES,
    DEFAULT_BATCH_RULE,
    DEFAULT_LR_RULE,
    LR_RULES,
    Rule,
    find_rule,
)
from scalelab.theory.tuned import PREFIX, TunedConstants
from scalelab.units import parse_quantity, parse_range

DEFAULT_SIZES = 7
DEFAULT_SPAN = 16.0
MAX_PLANNED_RUNS = 100_000
LARGEST_QUANTITY = 1e36
"""FLOPs, parameters or tokens: nobody plans for so many, and their sums stay finite."""
SLURM_WORD = r"^[A-Za-z0-9_][A-Za-z0-9_.,-]*$"


def _read_range(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, (str, int, float)):
        return parse_range(str(value), what=str(info.field_name))
    if isinstance(value, (list, tuple)):
        return tuple(sorted(parse_quantity(item, what=str(info.field_name)) for item in value))
    return value


def _read_quantity(value: Any, info: ValidationInfo) -> Any:
    is_text = isinstance(value, (str, int, float))
    return parse_quantity(value, what=str(info.field_name)) if is_text else value


_Bounded = Annotated[float, Field(le=LARGEST_QUANTITY)]
Quantities = Annotated[tuple[_Bounded, ...], BeforeValidator(_read_range)]
Quantity = Annotated[_Bounded, BeforeValidator(_read_quantity)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, content: Any) -> Any:
        for name, field in cls.model_fields.items():
            value = content.get(name) if isinstance(content, Mapping) else None
            held = value if isinstance(value, (list, tuple)) else (value,)
            if field.annotation is not bool and any(isinstance(item, bool) for item in held):
                raise UsageError(
                    f"{name} = {value!r}", "a value other than true or false", f"Mend {name}."
                )
        return content


class DataTable(_Table):
    """``[data]``: which text, and how it becomes tokens."""

    paths: tuple[str, ...] = ()
    """Files, folders and globs; none means the running Python's own standard library."""
    tokenizer: str = "bytes"
    """``bytes`` (vocabulary 256) or ``bpe:SIZE``."""
    field: str = "text"
    """Field that holds the text in JSONL."""
    column: str = "text"
    """Column that holds the text in Parquet."""
    eval_tokens: int = Field(default=DEFAULT_EVAL_TOKENS, ge=1)
    """Held-out tokens; their number bounds how sure a loss can be."""


class TrainTable(_Table):
    """``[train]``: what every run of the sweep shares, and the rules for what it does not."""

    seq_len: int = Field(default=256, ge=1, le=1 << 20)
    """Tokens in a sequence."""
    batch_seqs: int | None = Field(default=None, ge=1)
    """Sequences in a step; none means the batch rule, rounded to a power of two."""
    batch_rule: str = DEFAULT_BATCH_RULE
    """Named rule for the batch."""
    lr: float | None = Field(default=None, gt=0, le=10)
    """Peak learning rate of every run; none means the rule."""
    lr_rule: str = DEFAULT_LR_RULE
    """Named rule for the peak learning rate; ``tuned:NAME`` is the law of a tuning."""
    tuned: TunedConstants | None = None
    """Constants of the ``tuned:NAME`` rule; filled in from the results folder where absent."""
    schedule: Literal[SCHEDULES] = "cosine"  # type: ignore[valid-type]
    """``cosine`` or ``wsd``."""
    optimizer: Literal[OPTIMIZERS] = "adamw"  # type: ignore[valid-type]
    """``adamw`` or ``muon``."""
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    """Decoupled weight decay."""
    beta2: float = Field(default=0.95, gt=0, lt=1)
    """Decay of AdamW's second moment."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest global gradient norm."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of an average of the weights, evaluated beside the final ones; 0 keeps none."""
    precision: Literal[PRECISIONS] | None = None  # type: ignore[valid-type]
    """Dtype of matrix products; none means fp32 on CPU and bf16 on CUDA."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """One run of each size for each seed."""

    @model_validator(mode="after")
    def _rules_exist(self) -> TrainTable:
        if self.tuned_name() is None or self.tuned is not None:
            self.find_lr_rule()
            self.find_batch_rule()
        return self

    def tuned_name(self) -> str | None:
        """Return the tuning that a rule names, None when neither does."""
        names = {
            rule.removeprefix(PREFIX)
            for rule in (self.lr_rule, self.batch_rule)
            if rule.startswith(PREFIX)
        }
        if "" in names:
            raise UsageError(
                f"the rule {PREFIX!r} without a name",
                f"{PREFIX}NAME, the law of a tuning",
                "Name a tuning of `scalelab tune`, or choose a published rule.",
            )
        if len(names) > 1:
            raise UsageError(
                f"rules of the tunings {' and '.join(sorted(names))}",
                "one tuning for both",
                "Name the same tuning in lr_rule and batch_rule.",
            )
        return names.pop() if names else None

    def find_lr_rule(self) -> Rule:
        """Return the rule of the learning rate.

        Raises
        ------
        UsageError
            When there is none of that name.
        """
        own = self._tuned_rules(self.lr_rule)[0]
        return own or find_rule(LR_RULES, self.lr_rule, option="lr_rule")

    def find_batch_rule(self) -> Rule:
        """Return the rule of the batch.

        Raises
        ------
        UsageError
            When there is none of that name, or the tuning did not vary the batch.
        """
        own = self._tuned_rules(self.batch_rule)[1]
        return own or find_rule(BATCH_RULES, self.batch_rule, option="batch_rule")

    def _tuned_rules(self, name: str) -> tuple[Rule | None, Rule | None]:
        if self.tuned is None or name != PREFIX + self.tuned.name:
            return None, None
        return self.tuned.lr_rule(), self.tuned.batch_rule()


class SlurmTable(_Table):
    """``[launcher.slurm]``: what jobs ask SLURM for."""

    partition: str | None = Field(default=None, pattern=SLURM_WORD)
    """Partition."""
    account: str | None = Field(default=None, pattern=SLURM_WORD)
    """Account."""
    qos: str | None = Field(default=None, pattern=SLURM_WORD)
    """Quality of service."""
    gpus_per_run: int = Field(default=1, ge=0)
    """GPUs of a run; 0 trains on the CPU."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs of a run that share every block, for models too wide for one; divides gpus_per_run."""
    gpus_per_node: int = Field(default=8, ge=1)
    """GPUs that a node has; a run that needs more gets several nodes."""
    gpu: str = "h100"
    """Named device that time and money are reckoned for."""
    cpus: int = Field(default=4, ge=1)
    """CPU cores of each GPU's task, or of the job where there is no GPU."""
    mem_gb: float = Field(default=16.0, gt=0)
    """Memory of a job on each node, GB."""
    time_min: int = Field(default=240, ge=1)
    """Time limit of a job, minutes."""
    array_parallelism: int = Field(default=64, ge=1)
    """Jobs that run at once, over all arrays of the sweep."""
    target_job_minutes: float = Field(default=30.0, ge=0)
    """Small runs are packed into jobs of about this length; 0 gives each run a job."""
    max_gpu_hours: float | None = Field(default=None, gt=0)
    """Most GPU-hours that may be spent and requested, retries counted."""
    max_usd: float | None = Field(default=None, gt=0)
    """Most money that may be spent and requested, US dollars, retries counted."""
    setup: tuple[str, ...] = ()
    """Shell lines before the run, such as ``module load cuda``."""
    snapshot: bool = False
    """Whether jobs run from a frozen copy of the source."""

    @model_validator(mode="after")
    def _gpu_is_known(self) -> SlurmTable:
        find_hardware(self.gpu)
        return self

    @model_validator(mode="after")
    def _gpus_are_whole_groups(self) -> SlurmTable:
        require_divisible_devices(max(1, self.gpus_per_run), self.tensor_parallel)
        return self


class LauncherTable(_Table):
    """``[launcher]``: where runs are executed."""

    name: Literal["local", "slurm"] = "local"
    """``local`` or ``slurm``."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the training curves are shown besides: ``tensorboard``, ``wandb``."""
    slurm: SlurmTable = SlurmTable()
    """Options of the SLURM launcher."""


class SweepSpec(_Table):
    """One sweep: which runs, on which text, launched where."""

    kind: Literal["isoflop", "grid", "ladder"]
    """``isoflop`` (several sizes at each budget), ``grid`` (every size with every D) or ``ladder``
    (the same by one constant-rate trunk a size and a cooldown for each D)."""
    name: str | None = None
    """Name of the sweep; none means one made from the kind and the axes."""
    budgets: Quantities = ()
    """isoflop: training FLOPs of each valley, exact convention."""
    sizes: int = Field(default=DEFAULT_SIZES, ge=1)
    """isoflop: models at each budget."""
    span: float = Field(default=DEFAULT_SPAN, gt=1)
    """isoflop: largest over smallest model at a budget."""
    tokens_per_param: Quantity | None = None
    """isoflop: D/N about which the sizes are spread; none means 20 tokens, and 40 bytes."""
    n_params: Quantities = ()
    """grid, ladder: parameters N, all of them counted."""
    n_tokens: Quantities = ()
    """grid, ladder: training tokens D."""
    data: DataTable = DataTable()
    """Which text."""
    train: TrainTable = TrainTable()
    """How it is trained."""
    launcher: LauncherTable = LauncherTable()
    """Where it runs."""
    allow_repeats: bool = False
    """Whether a run may pass over the text more than 4 times."""

    @model_validator(mode="after")
    def _axes_fit_kind(self) -> SweepSpec:
        sizes_and_lengths = ("n_params", "n_tokens")
        needed = {
            "isoflop": ("budgets",),
            "grid": sizes_and_lengths,
            "ladder": sizes_and_lengths,
        }[self.kind]
        for axis in ("budgets", *sizes_and_lengths):
            missing = axis in needed
            if missing != bool(getattr(self, axis)):
                raise UsageError(
                    f"a {self.kind} sweep {'without' if missing else 'with'} {axis}",
                    f"{' and '.join(needed)} for {self.kind}",
                    f"{'Give' if missing else 'Leave out'} {axis}.",
                )
        if self.kind == "ladder" and self.train.schedule != "wsd":
            raise UsageError(
                f"a ladder with schedule = {self.train.schedule!r}",
                "wsd: only a constant rate can be left at any length",
                "Set schedule to wsd.",
            )
        return self

    def default_name(self) -> str:
        """Return the sweep's name, made from its axes where none was given."""
        if self.name is not None:
            return self.name
        if self.kind == "isoflop":
            ends = (
                f"{min(self.budgets):.0e}-{max(self.budgets):.0e}-{len(self.budgets)}x{self.sizes}"
            )
        else:
            ends = f"{len(self.n_params)}x{len(self.n_tokens)}"
        return f"{self.kind}-{ends.replace('e+', 'e')}"

    def science(self) -> dict[str, Any]:
        """Return what decides the runs: every field but the name and where it is launched."""
        content: dict[str, Any] = json.loads(self.model_dump_json(exclude={"name", "launcher"}))
        if content["train"]["tuned"] is None:
            # As it was before sweeps could be tuned: an older sweep goes on under its own name.
            del content["train"]["tuned"]
        return content


def sweep_from_mapping(content: Mapping[str, Any], *, source: str) -> SweepSpec:
    """Return the sweep that a mapping describes.

    Parameters
    ----------
    content : Mapping
        Fields of `SweepSpec`.
    source : str
        Where it was read, for the error message.

    Raises
    ------
    UsageError
        When a field is unknown, missing or out of its range.
    """
    try:
        return SweepSpec.model_validate(dict(content))
    except ScalelabError:
        raise
    except ValidationError as error:
        raise said_plainly(error, source) from None


def said_plainly(error: ValidationError, source: str) -> UsageError:
    """Return what is wrong with the first bad field, and where it was read."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    given = f"{where} = {first['input']!r} in {source}"
    allowed = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "missing":
        given, allowed = f"no {where} in {source}", "a value for it"
    elif first["type"] == "less_than_equal":
        allowed = f"at most {first['ctx']['le']:g}"
    elif first["type"] == "too_short":
        allowed = "one value or more"
    elif first["type"] == "extra_forbidden":
        allowed = f"one of {', '.join(_known_keys(first['loc'][:-1]))}"
    return UsageError(given, allowed, f"Mend {where}.")


def read_sweep_file(path: Path) -> SweepSpec:
    """Return the sweep that a TOML file describes; its name defaults to the file's.

    Raises
    ------
    DataError
        When the file is missing or is not TOML.
    UsageError
        When its content is not a sweep.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"sweep file {path}: {error}", "a readable TOML file", "Check the path."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise DataError(
            f"sweep file {path}: {error}", "TOML, as in sweeps/demo.toml", "Mend that line."
        ) from None
    return sweep_from_mapping({"name": path.stem, **content}, source=str(path))


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    table: type[BaseModel] = SweepSpec
    for part in location:
        annotation = table.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        table = annotation
    return sorted(table.model_fields)

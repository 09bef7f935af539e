"""Tables of a sweep specification: data, training, execution and launcher.

Each field is an option of the commands and a key of sweep files; see `scalelab.sweep.option`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from scalelab.corpus.source import DEFAULT_EVAL_TOKENS
from scalelab.errors import UsageError
from scalelab.sweep.devices import require_divisible_devices
from scalelab.sweep.execution import ATTENTIONS, AUTO, KERNELS, STEPS, ExecutionSpec
from scalelab.sweep.option import (
    DATA,
    EXECUTION,
    LAUNCHER,
    SLURM,
    TRAINING,
    Table,
    option,
)
from scalelab.sweep.run_spec import (
    BALANCE_WEIGHT,
    OPTIMIZERS,
    PARAMETRIZATIONS,
    PRECISIONS,
    SCHEDULES,
)
from scalelab.sweep.site_options import is_known, option_name, split_pairs
from scalelab.sweep.train_checks import refuse_double_rule, refuse_unused_settings
from scalelab.sweep.values import (
    AutoCount,
    Count,
    Gigabytes,
    Integers,
    Minutes,
    SiteOptions,
    StepsOrShare,
)
from scalelab.theory.decay_rules import (
    CONSTANT,
    TIMESCALE,
    WEIGHT_DECAY_RULES,
    find_weight_decay_rule,
)
from scalelab.theory.hardware import HARDWARE, find_hardware
from scalelab.theory.noise_rule import NOISE_PREFIX, NoiseConstants
from scalelab.theory.schedule import (
    BATCH_RULES,
    DEFAULT_BATCH_RULE,
    DEFAULT_LR_RULE,
    LR_RULES,
    Rule,
    find_rule,
)
from scalelab.theory.shape import BASE_DEPTH, BASE_HEAD, BASE_WIDTH
from scalelab.theory.tuned import PREFIX, TunedConstants

SLURM_WORD = r"^[A-Za-z0-9_][A-Za-z0-9_.,-]*$"
KINDS = ("isoflop", "grid", "ladder")
NOT_TUNE = (*KINDS, "adaptive")
"""Commands with a fixed value of a hyperparameter that `tune` searches."""


class DataTable(Table):
    """``[data]``: the text and how it becomes tokens."""

    panel: ClassVar[str] = DATA

    paths: tuple[str, ...] = option(
        (),
        "Text to train on: a file, folder or glob of text, JSONL or Parquet; repeatable. Without "
        "it, the source text of Python's standard library", flag="--data", example="corpus/*.txt"
    )  # fmt: skip
    tokenizer: str = option("bytes", "bytes, or bpe:SIZE trained on the text", example="bpe:4096")
    field: str = option("text", "Field of the text in JSONL files", example="content")
    column: str = option("text", "Column of the text in Parquet files", example="content")
    eval_tokens: Count = option(
        DEFAULT_EVAL_TOKENS, "Tokens of the evaluation set; more tokens give a more precise loss",
        example="64K", ge=1
    )  # fmt: skip


class TrainTable(Table):
    """``[train]``: training settings that all runs of the sweep share."""

    panel: ClassVar[str] = TRAINING

    seq_len: int = option(256, "Tokens in a sequence", example="512", ge=1, le=1 << 20)
    batch_seqs: int | None = option(
        None, "Sequences in an optimizer step. Default: set by --batch-rule", example="64",
        commands=NOT_TUNE, ge=1
    )  # fmt: skip
    batch_rule: str = option(
        DEFAULT_BATCH_RULE,
        f"Rule for the batch size, rounded to a power of two: {', '.join(BATCH_RULES)}, "
        "tuned:NAME, or noise:NAME from the gradient noise scale of a sweep's runs",
        example="deepseek"
    )  # fmt: skip
    lr: float | None = option(
        None, "Peak learning rate of every run. Default: set by --lr-rule", example="1e-3",
        commands=NOT_TUNE, gt=0, le=10
    )  # fmt: skip
    lr_rule: str = option(
        DEFAULT_LR_RULE,
        f"Rule for the peak learning rate: {', '.join(LR_RULES)}, or tuned:NAME from "
        "`scalelab tune`", example="deepseek"
    )  # fmt: skip
    tuned: TunedConstants | None = Field(
        default=None,
        description="Constants of the tuned:NAME rule; default: read from the results folder",
    )
    noise: NoiseConstants | None = Field(
        default=None,
        description="Constants of the noise:NAME rule; default: measured in the results folder",
    )
    schedule: Literal[SCHEDULES] = option(  # type: ignore[valid-type]
        "cosine", "Learning-rate schedule; a ladder always uses wsd (warm-up, stable, decay)",
        example="wsd", commands=("isoflop", "grid", "adaptive", "tune")
    )  # fmt: skip
    warmup: StepsOrShare | None = option(
        None,
        "Linear warm-up: a share of the steps below 1, or a number of steps. Default: 5 % of a "
        "cosine run, 10 % of a wsd run", example="0.02", ge=0
    )  # fmt: skip
    decay: StepsOrShare | None = option(
        None,
        "Closing decay of wsd: a share of the steps below 1, or a number of steps. Default: 10 %",
        example="0.2", gt=0
    )  # fmt: skip
    lr_end_ratio: float = option(
        0.1, "Learning rate at the last step of a cosine, as a share of the peak", example="0",
        commands=("isoflop", "grid", "adaptive", "tune"), ge=0, le=1
    )  # fmt: skip
    optimizer: Literal[OPTIMIZERS] = option(  # type: ignore[valid-type]
        "adamw", "Optimizer", example="muon"
    )
    parametrization: Literal[PARAMETRIZATIONS] = option(  # type: ignore[valid-type]
        "standard",
        "How learning rates and initial values follow the shape. mup keeps the best learning rate "
        "over widths, completep over widths and depths. Both equal standard at d_model "
        f"{BASE_WIDTH}, d_head {BASE_HEAD} and {BASE_DEPTH} layers", example="completep"
    )  # fmt: skip
    weight_decay: float = option(
        0.1, "Decoupled weight decay", example="0.05", commands=NOT_TUNE, ge=0, le=10
    )
    weight_decay_rule: str = option(
        CONSTANT,
        f"Rule for the weight decay: {CONSTANT} (--weight-decay), {', '.join(WEIGHT_DECAY_RULES)}, "
        f"or {TIMESCALE}:TAU, the timescale as a share of the run's tokens", example="powerlines",
        commands=NOT_TUNE
    )  # fmt: skip
    beta1: float = option(0.9, "Decay rate of AdamW's first moment", example="0.95", ge=0, lt=1)
    beta2: float = option(
        0.95, "Decay rate of AdamW's second moment", example="0.99", commands=NOT_TUNE, gt=0, lt=1
    )
    epsilon: float = option(
        1e-8, "Constant in the denominator of AdamW's update", example="1e-10", gt=0, le=1
    )
    grad_clip: float = option(1.0, "Maximum global gradient norm", example="0.5", gt=0)
    z_loss: float = option(
        0.0,
        "Weight of the squared log-normalizer of the logits in the training loss; 0 for none",
        example="1e-4", ge=0
    )  # fmt: skip
    logit_softcap: float = option(
        0.0,
        "Cap c of the logits, c tanh(logits / c), in training and evaluation; 0 for none",
        example="30", ge=0
    )  # fmt: skip
    is_document_masked: bool = option(
        False, "Keep attention inside a document, in training and evaluation",
        flag="--document-mask", example="true"
    )  # fmt: skip
    init_std: float = option(
        0.02, "Standard deviation of the embedding's initial weights", example="0.01", gt=0, le=10
    )
    ema_decay: float = option(
        0.0,
        "Decay of a moving average of the weights, evaluated beside the final weights; 0 for none",
        example="0.999", ge=0, lt=1
    )  # fmt: skip
    balance_weight: float = option(
        BALANCE_WEIGHT,
        "Weight of the load-balance loss of a mixture of experts in the training loss",
        example="0.02", ge=0, le=10
    )  # fmt: skip
    router_z_weight: float = option(
        0.0, "Weight of the squared log-normaliser of a mixture's router in the training loss "
        "(router z-loss); ST-MoE uses 0.001", example="0.001", ge=0, le=10
    )  # fmt: skip
    precision: Literal[PRECISIONS] | None = option(  # type: ignore[valid-type]
        None,
        "Data type of matrix products: fp32, bf16, or fp8 for the large ones on GPUs that have it. "
        "Default: fp32 on CPU, bf16 on CUDA",
        example="bf16",
    )
    seeds: Integers = option(
        (0,), "Random seeds; each size is trained once per seed", example="0,1,2", commands=KINDS,
        min_length=1
    )  # fmt: skip

    @model_validator(mode="after")
    def _rules_exist(self) -> TrainTable:
        if self.tuned_name() is None or self.tuned is not None:
            self.find_lr_rule()
            if self.noise_name() is None or self.noise is not None:
                self.find_batch_rule()
            refuse_double_rule(self)
        find_weight_decay_rule(self.weight_decay_rule)
        refuse_unused_settings(self)
        return self

    def noise_name(self) -> str | None:
        """Return the sweep whose noise scale sets the batch, None if none does."""
        name = self.batch_rule
        return name.removeprefix(NOISE_PREFIX) if name.startswith(NOISE_PREFIX) else None

    def tuned_name(self) -> str | None:
        """Return the name of the tuning that the rules use, None if they use none."""
        names = {
            rule.removeprefix(PREFIX)
            for rule in (self.lr_rule, self.batch_rule)
            if rule.startswith(PREFIX)
        }
        if "" in names:
            raise UsageError(
                f"the rule {PREFIX!r} without a name",
                f"{PREFIX}NAME, with the name of a tuning",
                f"Add the name of a `scalelab tune` search, or write for example --lr-rule "
                f"{DEFAULT_LR_RULE}.",
            )
        if len(names) > 1:
            raise UsageError(
                f"rules of the tunings {' and '.join(sorted(names))}",
                "one tuning for both",
                f"Write --lr-rule {PREFIX}{min(names)} --batch-rule {PREFIX}{min(names)}.",
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
        if self.noise is not None and self.noise.name == self.noise_name():
            return self.noise.batch_rule()
        own = self._tuned_rules(self.batch_rule)[1]
        also = f"tuned:NAME after `scalelab tune`, or {NOISE_PREFIX}NAME of a finished sweep"
        return own or find_rule(BATCH_RULES, self.batch_rule, option="batch_rule", also=also)

    def _tuned_rules(self, name: str) -> tuple[Rule | None, Rule | None]:
        if self.tuned is None or name != PREFIX + self.tuned.name:
            return None, None
        return self.tuned.lr_rule(), self.tuned.batch_rule()


class ExecutionTable(Table):
    """``[execution]``: how steps are executed; the runs and their run_ids do not depend on it."""

    panel: ClassVar[str] = EXECUTION

    step: Literal[(AUTO, *STEPS)] = option(  # type: ignore[valid-type]
        AUTO,
        "How a step is executed; auto takes the fastest way that the device qualifies",
        example="eager",
    )
    kernels: Literal[(AUTO, *KERNELS)] = option(  # type: ignore[valid-type]
        AUTO, "Operations of a step: plain torch (reference), or fused Triton kernels",
        envvar="SCALELAB_KERNELS", example="reference"
    )  # fmt: skip
    attention: Literal[(AUTO, *ATTENTIONS)] = option(  # type: ignore[valid-type]
        AUTO, "Attention of a step; auto takes only ways whose results repeat bit for bit",
        envvar="SCALELAB_ATTENTION", example="flash"
    )  # fmt: skip
    micro_batch_seqs: AutoCount = option(
        AUTO, "Sequences in a forward pass of a device; auto is its whole batch, or less if memory "
        "runs out", flag="--micro-batch", example="4", ge=0, validate_default=True
    )  # fmt: skip
    batched_runs: AutoCount = option(
        AUTO, "Maximum number of small runs in one step; auto batches runs where that is faster, "
        "1 trains each run alone", example="1", ge=0, validate_default=True
    )  # fmt: skip
    checkpoint_interval_s: float = option(
        30.0,
        "Seconds between checkpoints of a run; longer if checkpoints would take over 2 % of the "
        "time", flag="--checkpoint-interval", example="300", gt=0
    )  # fmt: skip

    def request(self, device: str, *, keeps_weights: bool = False) -> ExecutionSpec:
        """Return the request to execute runs this way on a device, ``cpu`` or ``cuda``."""
        return ExecutionSpec(device=device, keeps_weights=keeps_weights, **self.model_dump())


class SlurmTable(Table):
    """``[launcher.slurm]``: resources that jobs request from SLURM, and spending caps."""

    panel: ClassVar[str] = SLURM
    model_config = ConfigDict(
        # Editors accept options of sbatch beside the keys of the table.
        json_schema_extra={"additionalProperties": {"type": ["string", "number", "boolean"]}}
    )

    partition: str | None = option(None, "SLURM partition", example="gpu", pattern=SLURM_WORD)
    account: str | None = option(None, "SLURM account", example="lab", pattern=SLURM_WORD)
    qos: str | None = option(None, "SLURM quality of service", example="high", pattern=SLURM_WORD)
    gpus_per_run: int = option(1, "GPUs of a run; 0 trains on the CPU", example="8", ge=0)
    tensor_parallel: int = option(
        1, "GPUs that share each layer of a run (tensor parallelism); must divide --gpus-per-run",
        example="4", ge=1
    )  # fmt: skip
    gpus_per_node: int = option(
        8, "GPUs in a node; a run that needs more uses several nodes", example="4", ge=1
    )
    gpu: str = option(
        "h100", f"GPU model for time and cost estimates: {', '.join(HARDWARE)}", example="a100"
    )
    cpus: int = option(
        4, "CPU cores for each GPU's task, or for the job without a GPU", example="8", ge=1
    )
    mem_gb: Gigabytes = option(
        16.0, "Memory of a job on each node, GB if no unit is given; 0 for all memory of the node",
        flag="--mem", example="80G", ge=0
    )  # fmt: skip
    time_min: Minutes = option(
        240, "Time limit of a job: minutes, H:MM:SS or D-HH:MM:SS", flag="--time",
        example="4:00:00", ge=1
    )  # fmt: skip
    array_parallelism: int = option(
        64, "Maximum number of jobs of the sweep that run at once", example="16", ge=1
    )
    target_job_minutes: float = option(
        30.0,
        "Group small runs into jobs of about this many minutes; 0 gives each run its own job",
        example="60", ge=0
    )  # fmt: skip
    max_gpu_hours: float | None = option(
        None, "Stop if used plus requested GPU-hours would exceed this; retries count",
        panel=LAUNCHER, example="100", gt=0
    )  # fmt: skip
    max_usd: float | None = option(
        None, "Stop if used plus requested cost in US dollars would exceed this; retries count",
        panel=LAUNCHER, example="50", gt=0
    )  # fmt: skip
    sbatch: SiteOptions = option(
        {}, "Option of sbatch that your site requires, such as constraint, reservation, gres or "
        "exclusive; repeatable. KEY=false leaves out an option that the launcher writes",
        example="constraint=a100"
    )  # fmt: skip
    setup: tuple[str, ...] = option(
        (), "Shell line to run before a job's runs; repeatable", example="module load cuda"
    )
    snapshot: bool = option(False, "Run jobs from a frozen copy of the source code", example="true")

    @model_validator(mode="before")
    @classmethod
    def _site_options_at_top(cls, content: Any) -> Any:
        """Move keys that are options of sbatch into ``sbatch``, which takes precedence."""
        if not isinstance(content, Mapping):
            return content
        moved = {key for key in content if key not in cls.model_fields and is_known(key)}
        if not moved:
            return content
        kept = {key: value for key, value in content.items() if key not in moved}
        inner = kept.get("sbatch") or {}
        inner = inner if isinstance(inner, Mapping) else split_pairs(inner)
        top = {option_name(key): content[key] for key in moved}
        return {**kept, "sbatch": {**top, **{option_name(k): v for k, v in inner.items()}}}

    @model_validator(mode="after")
    def _gpus_are_valid(self) -> SlurmTable:
        find_hardware(self.gpu)
        require_divisible_devices(max(1, self.gpus_per_run), self.tensor_parallel)
        return self


class LauncherTable(Table):
    """``[launcher]``: where runs are executed."""

    panel: ClassVar[str] = LAUNCHER

    name: Literal["local", "slurm"] = option(
        "local", "Where to run: on this machine, or as SLURM jobs", flag="--launcher",
        envvar="SCALELAB_LAUNCHER", example="slurm", commands=(*NOT_TUNE, "tune")
    )  # fmt: skip
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = option(
        (),
        "Tracker that also receives the training curves; repeatable",
        flag="--tracker",
        example="tensorboard",
    )
    largest_last: bool = option(
        False, "Train the largest budget after all others, and register forecasts of its runs "
        "before they start (see `scalelab scores`); without budgets, the runs with the most FLOPs",
        example="true", commands=KINDS
    )  # fmt: skip
    slurm: SlurmTable = SlurmTable()

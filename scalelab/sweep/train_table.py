"""The table ``[train]`` of a sweep specification: settings of training, and its named rules."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from scalelab.errors import UsageError
from scalelab.sweep.option import (
    KINDS,
    NOT_TUNE,
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
from scalelab.sweep.train_checks import refuse_double_rule, refuse_unused_settings
from scalelab.sweep.values import (
    Integers,
    StepsOrShare,
)
from scalelab.theory.decay_rules import (
    CONSTANT,
    TIMESCALE,
    WEIGHT_DECAY_RULES,
    find_weight_decay_rule,
)
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
        f"or {TIMESCALE}:0.2, with a timescale of this share of the run's tokens",
        example="powerlines", commands=NOT_TUNE
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
    eval_every: float = option(
        0.0,
        "Share of the schedule between evaluations during training, of the held-out text and of "
        "each --eval-set; 0 evaluates only at the end", example="0.25", ge=0, le=1
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
        (0,), "Random seeds; each size is trained once per seed", example="0,1,2",
        commands=(*KINDS, "mixture"),
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

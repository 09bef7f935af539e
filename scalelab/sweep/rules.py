"""What the rules of a training table give for a run: batch, parts of the schedule, and texts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scalelab.errors import UsageError
from scalelab.sweep.shape_rule import shape_words
from scalelab.sweep.size_table import table_words
from scalelab.sweep.train_table import TrainTable
from scalelab.theory.decay_rules import find_weight_decay_rule
from scalelab.theory.noise_rule import NOISE_PREFIX
from scalelab.theory.schedule import (
    RuleInputs,
    default_decay_steps,
    default_warmup_steps,
    steps_of,
)
from scalelab.theory.shape import BASE_WIDTH
from scalelab.theory.tuned import PREFIX

if TYPE_CHECKING:
    from scalelab.sweep.spec import SweepSpec

FEW_STEPS = 300
MIN_BATCH_SEQS = 8
"""Minimum for published batch rules, which give less than one sequence for very small models."""


def schedule_parts(n_steps: int, train: TrainTable) -> tuple[int, int]:
    """Return the steps of warm-up and of closing decay.

    Raises
    ------
    UsageError
        If they are longer than the run.
    """
    schedule = train.schedule
    decay_steps = default_decay_steps(n_steps, schedule)
    if train.decay is not None:
        decay_steps = steps_of(train.decay, n_steps)
    warmup_steps = default_warmup_steps(n_steps, schedule, min(decay_steps, n_steps))
    if train.warmup is not None:
        warmup_steps = steps_of(train.warmup, n_steps)
    if warmup_steps + decay_steps > n_steps:
        raise UsageError(
            f"warm-up of {warmup_steps:,} and decay of {decay_steps:,} steps in a run of "
            f"{n_steps:,} steps",
            "a warm-up and a decay within each run",
            "Give shares of the steps, for example --warmup 0.05"
            f"{' --decay 0.2' if schedule == 'wsd' else ''}.",
        )
    return warmup_steps, decay_steps


def rule_batch_seqs(inputs: RuleInputs, train: TrainTable) -> int:
    """Return the rule's batch as a power of two that allows at least `FEW_STEPS` steps."""
    wanted = train.find_batch_rule().value(inputs) / train.seq_len
    allowed = inputs.n_tokens / train.seq_len / FEW_STEPS
    exponent = min(round(math.log2(max(wanted, 1))), math.floor(math.log2(max(allowed, 1))))
    # Measured rules know small batches; published rules were not fitted to them.
    is_measured = train.batch_rule.startswith((PREFIX, NOISE_PREFIX))
    floor = 1 if is_measured else MIN_BATCH_SEQS
    return int(max(2**exponent, min(floor, max(allowed, 1))))


def rule_texts(sweep: SweepSpec) -> dict[str, str]:
    """Return the rules of learning rate, batch, weight decay, schedule and shapes, as text."""
    train = sweep.train
    lr_rule, batch_rule = train.find_lr_rule(), train.find_batch_rule()
    decay_rule = find_weight_decay_rule(train.weight_decay_rule)
    preset = f"{sweep.model.preset}: " if sweep.model.preset else ""
    at = ", at the geometric mean of D" if sweep.kind == "ladder" else ""
    base = "" if train.parametrization == "standard" else f", at d_model = {BASE_WIDTH}"
    unused = sweep.program is not None and not {"lr", "lr_end"} & sweep.program.used()
    rows = () if sweep.program is None else sweep.program.rows()
    return {
        "lr": "of the program"
        if unused
        else f"{train.lr:g}, as given"
        if train.lr
        else f"{lr_rule.name}: {lr_rule.formula}{base}{at}",
        "batch": f"{train.batch_seqs} sequences, as given"
        if train.batch_seqs
        else f"{batch_rule.name}: {batch_rule.formula}, to a power of two{at}",
        "weight_decay": f"constant {train.weight_decay:g}"
        if decay_rule is None
        else f"{decay_rule.name}: {decay_rule.formula}{at}",
        "schedule": train.schedule,
        "shapes": table_words(rows) if rows else f"{preset}{shape_words(sweep.shape_rules())}",
        "parametrization": train.parametrization,
    }

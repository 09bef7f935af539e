"""Refusals of training settings that contradict each other or would have no effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalelab.errors import UsageError
from scalelab.theory.decay_rules import CONSTANT
from scalelab.theory.schedule import DEFAULT_LR_RULE
from scalelab.theory.shape import BASE_WIDTH
from scalelab.theory.tuned import PREFIX

if TYPE_CHECKING:
    from scalelab.sweep.train_table import TrainTable


def refuse_unused_settings(train: TrainTable) -> None:
    """Raise if another setting leaves one without effect.

    Raises
    ------
    UsageError
    """
    fields = type(train).model_fields
    is_given = train.weight_decay != fields["weight_decay"].default
    if train.weight_decay_rule != CONSTANT and is_given:
        raise UsageError(
            f"weight_decay = {train.weight_decay:g} with weight_decay_rule = "
            f"{train.weight_decay_rule}",
            "a value or a rule",
            "Remove --weight-decay or --weight-decay-rule.",
        )
    if train.schedule == "cosine" and train.decay is not None:
        raise UsageError(
            f"decay = {train.decay:g} with schedule = cosine",
            "a decay with schedule = wsd; a cosine decays from the end of its warm-up",
            "Write --schedule wsd, or remove --decay.",
        )
    if train.schedule == "wsd" and train.lr_end_ratio != fields["lr_end_ratio"].default:
        raise UsageError(
            f"lr_end_ratio = {train.lr_end_ratio:g} with schedule = wsd",
            "lr_end_ratio with schedule = cosine; wsd decays to zero",
            "Write --schedule cosine, or remove --lr-end-ratio.",
        )


def refuse_double_rule(train: TrainTable) -> None:
    """Raise if both rule and parametrization adapt the learning rate to the size.

    Raises
    ------
    UsageError
    """
    if train.parametrization == "standard" or train.lr is not None:
        return
    rule = train.find_lr_rule()
    if rule.param_convention and not train.lr_rule.startswith(PREFIX):
        raise UsageError(
            f"lr_rule {rule.name!r} with parametrization {train.parametrization!r}: both adapt "
            "the learning rate to the model's size",
            f"a learning rate, the rule {DEFAULT_LR_RULE} (taken at d_model {BASE_WIDTH}), or "
            "tuned:NAME",
            "Try --lr 0.01, or --parametrization standard.",
        )

"""Learning-rate schedules, and the named rules for peak learning rate, batch and warm-up.

A schedule (`learning_rate_ratio`) gives the rate at each step of a run, as a share of its peak. A
rule (`LR_RULES`, `BATCH_RULES`) gives the peak or the batch of a run that was not tuned, and states
its source and its convention for N.

References
----------
Loshchilov and Hutter 2016, arXiv:1608.03983 (cosine).
Hu et al. 2024, arXiv:2404.06395, section 4 (warm-up, stable, decay).
Haegele et al. 2024, arXiv:2405.18392, section 3 (the 1-sqrt cooldown).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scalelab.errors import UsageError, did_you_mean
from scalelab.theory.accounting import train_flops_6nd

WSD_WARMUP_SHARE = 0.1
WSD_DECAY_SHARE = 0.1
WARMUP_SHARE = 0.05
WIDTH_RULE_BATCH_TOKENS = 2048
WARMUP_STEPS_MIN = 10
WARMUP_STEPS_MAX = 2_000


def learning_rate_ratio(
    step: int,
    *,
    schedule: str,
    n_steps: int,
    warmup_steps: int,
    decay_steps: int = 0,
    end_ratio: float = 0.1,
) -> float:
    """Return the learning rate at ``step`` as a share of the peak.

    Parameters
    ----------
    step : int
        Optimizer step, counted from 0; the last is ``n_steps - 1``.
    schedule : str
        ``cosine``: from the peak to ``end_ratio`` at the last step. ``wsd``: constant, then
        ``1 - sqrt`` over the last ``decay_steps`` steps, to zero just after the last step.
    n_steps, warmup_steps, decay_steps : int
        Length of the run, of its linear warm-up and of its closing decay.
    end_ratio : float
        Share of the peak at the last step of the cosine.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(n_steps - 1 - warmup_steps, 1)
        return end_ratio + (1 - end_ratio) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    decayed = step - (n_steps - decay_steps)
    return 1.0 if decayed < 0 else 1 - math.sqrt((decayed + 1) / (decay_steps + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleInputs:
    """Inputs of a rule.

    Attributes
    ----------
    n_params : Mapping[str, int]
        Parameters by convention.
    n_tokens : float
        Training tokens D.
    flops_kaplan : float
        Training FLOPs from matrix products without embedding and head.
    d_model : float
        Width of the residual stream; NaN if it is not known.
    batch_tokens : int
        Tokens in a step; 0 before the batch is decided.
    lr : float
        Peak learning rate; 0 before it is decided.
    """

    n_params: Mapping[str, int]
    n_tokens: float
    flops_kaplan: float
    d_model: float
    batch_tokens: int = 0
    lr: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A rule for one hyperparameter, published or measured with scalelab.

    Attributes
    ----------
    name : str
        Value of the option.
    formula : str
        The rule as text, for the plan.
    source : str
        Paper or measurement.
    param_convention : str
        How the N (or the C) of the rule is counted; empty if the rule has neither.
    value : Callable
        Function of `RuleInputs` that returns the learning rate, the batch in tokens, or the weight
        decay.
    """

    name: str
    formula: str
    source: str
    param_convention: str
    value: Callable[[RuleInputs], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedValue:
    """Values of a published rule for one model; ``batch_tokens`` is None without a batch rule."""

    name: str
    lr: float
    batch_tokens: float | None
    param_convention: str
    source: str


def _kaplan_lr(run: RuleInputs) -> float:
    # The formula is negative above 1e10 parameters, far beyond the fitted sizes.
    return max(0.003239 - 0.0001395 * math.log(run.n_params["kaplan"]), 1e-5)


def _width_lr(run: RuleInputs) -> float:
    # Batches smaller than the measured one follow the square-root rule for Adam.
    batch_factor = min(1.0, math.sqrt(run.batch_tokens / WIDTH_RULE_BATCH_TOKENS))
    return float(0.02 * (32 / run.d_model) ** 0.75 * batch_factor)


LR_RULES = {
    rule.name: rule
    for rule in (
        Rule(
            name="width",
            formula="0.02 (32 / d_model)^0.75 min(1, batch / 2,048 tokens)^0.5",
            source="measured on byte models of 26k to 179k parameters with batches of 2,048 "
            "tokens; smaller batches by Malladi et al. 2022, arXiv:2205.10287",
            param_convention="",
            value=_width_lr,
        ),
        Rule(
            name="kaplan",
            formula="0.003239 - 0.0001395 ln N, N without embeddings",
            source="Kaplan et al. 2020, arXiv:2001.08361, appendix D.6",
            param_convention="kaplan",
            value=_kaplan_lr,
        ),
        Rule(
            name="deepseek",
            formula="0.3118 C^-0.1250, C without embeddings",
            source="DeepSeek-AI 2024, arXiv:2401.02954, section 3.1",
            param_convention="kaplan",
            value=lambda run: 0.3118 * run.flops_kaplan**-0.1250,
        ),
        Rule(
            name="steplaw",
            formula="1.79 N^-0.713 D^0.307, N without embeddings",
            source="Li et al. 2025, arXiv:2503.04715",
            param_convention="kaplan",
            value=lambda run: 1.79 * run.n_params["kaplan"] ** -0.713 * run.n_tokens**0.307,
        ),
        Rule(
            name="olmo",
            formula="0.0047 (N / 108e6)^(-1/3), N without embeddings",
            source="Bhagia et al. 2024, arXiv:2412.04403, after Porian et al. 2024",
            param_convention="kaplan",
            value=lambda run: 0.0047 * (run.n_params["kaplan"] / 108e6) ** (-1 / 3),
        ),
    )
}
BATCH_RULES = {
    rule.name: rule
    for rule in (
        Rule(
            name="steplaw",
            formula="0.58 D^0.571 tokens",
            source="Li et al. 2025, arXiv:2503.04715",
            param_convention="",
            value=lambda run: 0.58 * run.n_tokens**0.571,
        ),
        Rule(
            name="deepseek",
            formula="0.2920 C^0.3271 tokens, C without embeddings",
            source="DeepSeek-AI 2024, arXiv:2401.02954, section 3.1",
            param_convention="kaplan",
            value=lambda run: 0.2920 * run.flops_kaplan**0.3271,
        ),
        Rule(
            name="olmo",
            formula="327,680 (N / 108e6)^(2/3) tokens, N without embeddings",
            source="Bhagia et al. 2024, arXiv:2412.04403, after Porian et al. 2024",
            param_convention="kaplan",
            value=lambda run: 327_680 * (run.n_params["kaplan"] / 108e6) ** (2 / 3),
        ),
    )
}
DEFAULT_LR_RULE = "width"
DEFAULT_BATCH_RULE = "steplaw"


def find_rule(
    rules: Mapping[str, Rule], name: str, *, option: str, also: str = "tuned:NAME"
) -> Rule:
    """Return the rule of this name; ``also`` names the measured rules that the option takes.

    Raises
    ------
    UsageError
        If there is no rule of that name.
    """
    if name not in rules:
        raise UsageError(
            f"{option} {name!r}",
            f"one of {', '.join(sorted(rules))}, or {also}",
            f"{did_you_mean(name, rules)}Use {option} {min(rules)}.",
        )
    return rules[name]


def published_values(n_params: float, n_tokens: float) -> list[PublishedValue]:
    """Return the values of all published rules for a model of N parameters without embeddings."""
    run = RuleInputs(
        n_params={"kaplan": round(n_params)},
        n_tokens=n_tokens,
        flops_kaplan=train_flops_6nd(n_params, n_tokens),
        d_model=1,
    )
    return [
        PublishedValue(
            name=rule.name,
            lr=rule.value(run),
            batch_tokens=BATCH_RULES[rule.name].value(run) if rule.name in BATCH_RULES else None,
            param_convention=rule.param_convention,
            source=rule.source,
        )
        for rule in LR_RULES.values()
        if rule.param_convention
    ]


def steps_of(steps_or_share: float, n_steps: int) -> int:
    """Return the steps of a part of a run: a share below 1 of its steps, or a number of steps."""
    return round(steps_or_share * n_steps if steps_or_share < 1 else steps_or_share)


def default_warmup_steps(n_steps: int, schedule: str, decay_steps: int | None = None) -> int:
    """Return the steps of linear warm-up: 5 % of a cosine run, 10 % of a WSD run, within bounds.

    If the run is too short for both, the warm-up is shorter.

    Parameters
    ----------
    n_steps : int
        Steps of the run.
    schedule : str
        ``cosine`` or ``wsd``.
    decay_steps : int or None
        Steps of the closing decay; None for the default.
    """
    if decay_steps is None:
        decay_steps = default_decay_steps(n_steps, schedule)
    share = WSD_WARMUP_SHARE if schedule == "wsd" else WARMUP_SHARE
    wanted = max(round(share * n_steps), WARMUP_STEPS_MIN)
    return min(wanted, WARMUP_STEPS_MAX, n_steps - decay_steps)


def default_decay_steps(n_steps: int, schedule: str) -> int:
    """Return the steps of the closing decay: 10 % of a WSD run, none under a cosine."""
    return round(WSD_DECAY_SHARE * n_steps) if schedule == "wsd" else 0

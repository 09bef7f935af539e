"""Named rules for the weight decay.

AdamW's weights are a moving average of its updates over 1 / (lr x weight decay) steps. As a share
of the run's tokens this timescale is tau = batch / (lr x weight decay x D), so a rule for tau gives
the weight decay. The learning rate is the peak.

References
----------
Wang and Aitchison 2024, arXiv:2405.13698 (the timescale in epochs stays constant).
Bergsma et al. 2025, arXiv:2505.13738, section 3 (it falls with the tokens per parameter).
"""

from __future__ import annotations

import math

from scalelab.errors import UsageError
from scalelab.theory.schedule import Rule, RuleInputs, find_rule

CONSTANT = "constant"
TIMESCALE = "timescale"
DEFAULT_TIMESCALE = 1.0
POWERLINES_TAU, POWERLINES_EXPONENT = 1.084, -0.527


def weight_decay_of(run: RuleInputs, timescale: float) -> float:
    """Return the weight decay whose timescale is this share of the run's tokens."""
    return run.batch_tokens / (run.lr * timescale * run.n_tokens)


def _powerlines(run: RuleInputs) -> float:
    ratio = run.n_tokens / run.n_params["chinchilla"]
    return weight_decay_of(run, POWERLINES_TAU * ratio**POWERLINES_EXPONENT)


def _timescale(timescale: float) -> Rule:
    return Rule(
        name=TIMESCALE if timescale == DEFAULT_TIMESCALE else f"{TIMESCALE}:{timescale:g}",
        formula=f"batch / (lr tau D), tau = {timescale:g}",
        source="Wang and Aitchison 2024, arXiv:2405.13698",
        param_convention="",
        value=lambda run: weight_decay_of(run, timescale),
    )


WEIGHT_DECAY_RULES = {
    rule.name: rule
    for rule in (
        _timescale(DEFAULT_TIMESCALE),
        Rule(
            name="powerlines",
            formula=f"batch / (lr tau D), tau = {POWERLINES_TAU} (D / N)^{POWERLINES_EXPONENT}, "
            "N all parameters",
            source="Bergsma et al. 2025, arXiv:2505.13738, fitted from 20 to 1,280 tokens per "
            "parameter with muP",
            param_convention="chinchilla",
            value=_powerlines,
        ),
    )
}
ALSO = f"{CONSTANT}, or {TIMESCALE}:TAU such as {TIMESCALE}:0.2"


def find_weight_decay_rule(name: str) -> Rule | None:
    """Return the rule of this name; None for the constant.

    Raises
    ------
    UsageError
        If there is none of that name, or the timescale is not a number above 0.
    """
    if name == CONSTANT:
        return None
    kind, separator, value = name.partition(":")
    if kind != TIMESCALE or not separator:
        return find_rule(WEIGHT_DECAY_RULES, name, option="weight_decay_rule", also=ALSO)
    try:
        timescale = float(value)
    except ValueError:
        timescale = math.nan
    if not 0 < timescale < math.inf:
        raise UsageError(
            f"weight_decay_rule {name!r}",
            f"a timescale above 0, as a share of the run's tokens, such as {TIMESCALE}:0.2",
            f"Use weight_decay_rule {TIMESCALE}, whose timescale is {DEFAULT_TIMESCALE:g}.",
        )
    return _timescale(timescale)

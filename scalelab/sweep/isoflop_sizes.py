"""Model sizes of an isoFLOP curve: a geometric grid around the expected optimum of a budget."""

from __future__ import annotations

import math

from scalelab.errors import UsageError
from scalelab.sweep.shapes import DEFAULT_RULE, FINE, ShapeRule, nearest_shape, size_limits
from scalelab.theory.accounting import (
    DEFAULT_FLOP_CONVENTION,
    DEFAULT_PARAM_CONVENTION,
    count_params,
    tokens_at_6nd,
    train_flops_per_token,
)
from scalelab.units import format_flops, format_quantity

TOKENS_PER_PARAM = 20.0
BYTE_TOKENS_PER_PARAM = 40.0


def expected_tokens_per_param(tokenizer: str) -> float:
    """Return the tokens per parameter expected at the optimum, by tokenizer."""
    return BYTE_TOKENS_PER_PARAM if tokenizer == "bytes" else TOKENS_PER_PARAM


def isoflop_targets(
    flops: float,
    *,
    sizes: int,
    span: float,
    tokens_per_param: float,
    vocab_size: int,
    seq_len: int,
    rule: ShapeRule = DEFAULT_RULE,
) -> list[float]:
    """Return target sizes, geometrically spaced around the expected optimum of a budget.

    At the centre, ``D = tokens_per_param * N`` tokens cost the budget in exact FLOPs. The
    span is clipped to the sizes that the rule of the shapes has.
    """
    smallest, largest = size_limits(vocab_size, rule)

    def within(n_params: float) -> float:
        return min(max(n_params, smallest), largest)

    centre = within(math.sqrt(tokens_at_6nd(flops, tokens_per_param)))
    for _ in range(4):
        shape = nearest_shape(centre, vocab_size, rule)
        n_params = count_params(shape).by_convention()[DEFAULT_PARAM_CONVENTION]
        per_param = train_flops_per_token(shape, seq_len)[DEFAULT_FLOP_CONVENTION] / n_params
        centre = within(math.sqrt(flops / (per_param * tokens_per_param)))
    if sizes == 1:
        return [centre]
    low, high = within(centre / math.sqrt(span)), within(centre * math.sqrt(span))
    return [low * (high / low) ** (i / (sizes - 1)) for i in range(sizes)]


def refuse_small_budget(
    flops: float, tokens_per_param: float, vocab_size: int, rule: ShapeRule = DEFAULT_RULE
) -> None:
    """Raise UsageError if the expected optimum of a budget is below the smallest shape."""
    smallest, _ = size_limits(vocab_size, rule)
    optimum = math.sqrt(tokens_at_6nd(flops, tokens_per_param))
    if optimum < smallest:
        raise UsageError(
            f"a budget of {format_flops(flops)} FLOPs, whose expected optimum has "
            f"{format_quantity(optimum)} parameters",
            f"an optimum above the smallest model, {format_quantity(smallest)} parameters",
            "Use larger budgets, for example --budgets "
            + ("1e12..1e13." if rule.table == FINE else "1e15..1e16, or --shapes fine."),
        )

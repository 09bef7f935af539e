"""Model sizes of an isoFLOP curve: a geometric grid around the expected optimum of a budget."""

from __future__ import annotations

import math

from scalelab.errors import UsageError
from scalelab.sweep.shape_rule import DEFAULT_RULE, ShapeRule
from scalelab.sweep.shapes import (
    distinct_shapes,
    finer_words,
    listed_shapes,
    nearest_shape,
    size_limits,
)
from scalelab.sweep.spec import SweepSpec
from scalelab.theory.accounting import (
    DEFAULT_FLOP_CONVENTION,
    tokens_at_6nd,
    train_flops_6nd,
    train_flops_per_token,
)
from scalelab.theory.shape import ModelShape
from scalelab.units import format_flops, format_quantity

TOKENS_PER_PARAM = 20.0
BYTE_TOKENS_PER_PARAM = 40.0
SPARE = 4.0
"""Optimum of a budget that a message suggests, relative to the smallest shape."""


def expected_tokens_per_param(tokenizer: str) -> float:
    """Return the tokens per parameter expected at the optimum, by tokenizer."""
    return BYTE_TOKENS_PER_PARAM if tokenizer == "bytes" else TOKENS_PER_PARAM


def budget_shapes(
    sweep: SweepSpec, budget: float, tokenizer: str, vocab_size: int
) -> list[ModelShape]:
    """Return the shapes of an isoFLOP sweep at a budget, smallest first.

    Raises
    ------
    UsageError
        When the budget is too small, or the sizes are more than there are shapes.
    """
    (rule,) = sweep.shape_rules()
    if rule.shape_list:
        return listed_shapes(vocab_size, rule)
    if sweep.n_params:
        return distinct_shapes(sweep.n_params, vocab_size, rule)
    ratio = sweep.tokens_per_param or expected_tokens_per_param(tokenizer)
    targets = isoflop_targets(
        budget,
        sizes=sweep.sizes,
        span=sweep.span,
        tokens_per_param=ratio,
        vocab_size=vocab_size,
        seq_len=sweep.train.seq_len,
        rule=rule,
    )
    try:
        return distinct_shapes(targets, vocab_size, rule)
    except UsageError:
        refuse_small_budget(budget, ratio, vocab_size, rule)
        raise


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
        per_token = train_flops_per_token(shape, seq_len)[DEFAULT_FLOP_CONVENTION]
        per_param = per_token / rule.size(shape)
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
        n_params = SPARE * smallest
        enough = math.ceil(math.log10(train_flops_6nd(n_params, tokens_per_param * n_params)))
        raise UsageError(
            f"a budget of {format_flops(flops)} FLOPs, whose expected optimum has "
            f"{format_quantity(optimum)} parameters",
            f"an optimum above the smallest model, {format_quantity(smallest)} parameters",
            f"Use larger budgets, for example --budgets 1e{enough}..1e{enough + 1}"
            f"{finer_words(rule)}.",
        )

"""Schedules at their corners, rules against hand-computed values."""

import dataclasses
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.errors import UsageError
from scalelab.theory.schedule import (
    BATCH_RULES,
    LR_RULES,
    RuleInputs,
    default_decay_steps,
    default_warmup_steps,
    find_rule,
    learning_rate_ratio,
)

RUN = RuleInputs(
    n_params={"kaplan": 100_000_000, "chinchilla": 130_000_000},
    n_tokens=2e9,
    flops_kaplan=1.2e18,
    d_model=768,
    batch_tokens=100_000,
)


@given(st.integers(20, 500), st.integers(0, 10), st.floats(0, 0.5))
def test_a_cosine_rises_to_the_peak_and_ends_at_its_share(n_steps, warmup, end):
    ratios = [
        learning_rate_ratio(
            step, schedule="cosine", n_steps=n_steps, warmup_steps=warmup, end_ratio=end
        )
        for step in range(n_steps)
    ]
    assert max(ratios) == ratios[max(warmup - 1, 0)] == 1.0
    assert ratios[-1] == pytest.approx(end, abs=1e-12)
    assert all(a <= b for a, b in itertools.pairwise(ratios[:warmup]))
    assert all(a >= b for a, b in itertools.pairwise(ratios[warmup:]))


def test_the_middle_of_a_cosine_is_half_way():
    middle = learning_rate_ratio(50, schedule="cosine", n_steps=101, warmup_steps=0, end_ratio=0.2)
    assert middle == pytest.approx(0.6)


@given(st.integers(30, 400), st.integers(1, 10), st.integers(1, 15))
def test_wsd_is_flat_and_then_falls_as_one_minus_root(n_steps, warmup, decay):
    def ratio(step):
        return learning_rate_ratio(
            step, schedule="wsd", n_steps=n_steps, warmup_steps=warmup, decay_steps=decay
        )

    assert all(ratio(step) == 1.0 for step in range(warmup, n_steps - decay))
    for done in range(1, decay + 1):
        expected = 1 - math.sqrt(done / (decay + 1))
        assert ratio(n_steps - decay + done - 1) == pytest.approx(expected)
    assert ratio(n_steps - 1) > 0


def test_rules_give_what_their_formula_says():
    values = {name: rule.value(RUN) for name, rule in LR_RULES.items()}
    assert values["width"] == pytest.approx(0.02 * (32 / 768) ** 0.75)
    small = dataclasses.replace(RUN, batch_tokens=512)
    assert LR_RULES["width"].value(small) == pytest.approx(values["width"] / 2)
    assert values["kaplan"] == pytest.approx(0.003239 - 0.0001395 * math.log(1e8))
    assert values["deepseek"] == pytest.approx(0.3118 * 1.2e18**-0.125)
    assert values["steplaw"] == pytest.approx(1.79 * 1e8**-0.713 * 2e9**0.307)
    assert values["olmo"] == pytest.approx(0.0047 * (1e8 / 108e6) ** (-1 / 3))
    assert BATCH_RULES["steplaw"].value(RUN) == pytest.approx(0.58 * 2e9**0.571)
    assert BATCH_RULES["deepseek"].value(RUN) == pytest.approx(0.2920 * 1.2e18**0.3271)


def test_every_rule_names_its_source():
    for rule in (*LR_RULES.values(), *BATCH_RULES.values()):
        assert rule.source
        assert rule.formula


def test_an_unknown_rule_lists_the_known_ones():
    with pytest.raises(UsageError, match="steplaw"):
        find_rule(LR_RULES, "chinchila", option="lr_rule")


@given(st.integers(1, 10**7), st.sampled_from(["cosine", "wsd"]))
def test_warm_up_and_decay_fit_in_the_run(n_steps, schedule):
    warmup = default_warmup_steps(n_steps, schedule)
    decay = default_decay_steps(n_steps, schedule)
    assert 0 < warmup <= n_steps
    assert 0 <= decay <= max(n_steps - warmup, 0) or n_steps < 20


@given(st.integers(1, 60), st.sampled_from(["cosine", "wsd"]))
def test_warm_up_and_decay_fit_into_any_run(n_steps, schedule):
    warmup = default_warmup_steps(n_steps, schedule)
    decay = default_decay_steps(n_steps, schedule)
    assert 1 <= warmup <= n_steps - decay

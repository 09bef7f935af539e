"""Rules of the weight decay, at values computed by hand."""

import pytest

from scalelab.errors import UsageError
from scalelab.theory.decay_rules import WEIGHT_DECAY_RULES, find_weight_decay_rule
from scalelab.theory.schedule import RuleInputs

RUN = RuleInputs(
    n_params={"chinchilla": 100_000_000, "kaplan": 80_000_000},
    n_tokens=2e9,
    flops_kaplan=1e18,
    d_model=512,
    batch_tokens=262_144,
    lr=3e-3,
)


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        # 262,144 / (0.003 x 2e9) = 0.04369; at 20 tokens per parameter tau is 0.2236.
        ("timescale", 0.0436907),
        ("timescale:0.2", 0.2184533),
        ("powerlines", 0.1954),
    ],
)
def test_rules_give_the_published_values(name, golden):
    rule = find_weight_decay_rule(name)
    assert rule.name == name
    assert rule.value(RUN) == pytest.approx(golden, rel=1e-3)
    assert "arXiv" in rule.source


def test_a_constant_has_no_rule():
    assert find_weight_decay_rule("constant") is None


@pytest.mark.parametrize("name", ["timescale:0", "timescale:x", "timescale:", "timescale:inf"])
def test_a_timescale_that_is_no_positive_number_is_refused(name):
    with pytest.raises(UsageError, match=r"timescale above 0"):
        find_weight_decay_rule(name)


def test_an_unknown_rule_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"powerlines, timescale, or constant"):
        find_weight_decay_rule("power")
    assert set(WEIGHT_DECAY_RULES) == {"timescale", "powerlines"}

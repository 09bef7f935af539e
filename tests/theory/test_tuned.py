import re
from pathlib import Path

import pytest

from scalelab.errors import SpecError
from scalelab.theory.schedule import LR_RULES, RuleInputs, published_values
from scalelab.theory.tuned import TunedConstants, constants_from_law

CONSTANTS = TunedConstants("small", (3.0, -0.5, 0.2), (0.4, 0.1, 0.5), 0.3, "chinchilla")
RUN = RuleInputs(
    n_params={"chinchilla": 40_000, "kaplan": 30_000},
    n_tokens=2e6,
    flops_kaplan=1e11,
    d_model=32,
)


def test_the_rule_is_its_power_law_in_its_own_convention():
    assert CONSTANTS.lr_rule().value(RUN) == pytest.approx(3 * 40_000**-0.5 * 2e6**0.2)
    assert CONSTANTS.batch_rule().value(RUN) == pytest.approx(0.4 * 40_000**0.1 * 2e6**0.5)


def test_off_the_best_batch_the_rate_follows_the_ridge():
    best = CONSTANTS.batch_rule().value(RUN)
    at = {
        batch: CONSTANTS.lr_rule().value(
            RuleInputs(
                n_params=RUN.n_params,
                n_tokens=RUN.n_tokens,
                flops_kaplan=RUN.flops_kaplan,
                d_model=RUN.d_model,
                batch_tokens=batch,
            )
        )
        for batch in (round(best), round(4 * best))
    }
    small, large = at.values()
    assert small == pytest.approx(CONSTANTS.lr_rule().value(RUN), rel=1e-3)
    assert large == pytest.approx(small * 4**0.3, rel=1e-3)


def test_the_answer_of_tune_becomes_the_rule():
    def law(*values):
        return {name: {"value": v} for name, v in zip("kpq", values, strict=True)}

    answer = {
        "lr": law(3.0, -0.5, 0.2),
        "batch_tokens": None,
        "valley": {"ridge": None},
        "param_convention": "kaplan",
    }
    constants = constants_from_law("x", answer)
    assert constants.batch_rule() is None
    assert constants.lr_rule().value(RUN) == pytest.approx(3 * 30_000**-0.5 * 2e6**0.2)
    with pytest.raises(SpecError, match="tuning 'x'"):
        constants_from_law("x", {"lr": {}})


def test_the_page_lists_every_published_rule_with_its_source():
    page = (Path(__file__).parents[2] / "docs/howto/tune.md").read_text()
    for rule in LR_RULES.values():
        if rule.param_convention:
            formula = rule.formula.partition(", ")[0]
            source = re.search(r"arXiv:[\d.]+", rule.source)[0]
            assert f"| `{rule.name}` | {formula} |" in page
            assert source in page


def test_published_values_are_the_rules():
    by_name = {value.name: value for value in published_values(1e9, 1e11)}
    assert set(by_name) == {"kaplan", "deepseek", "steplaw", "olmo"}
    # 1.79 N^-0.713 D^0.307 and 0.58 D^0.571: arXiv:2503.04715, abstract.
    assert by_name["steplaw"].lr == pytest.approx(1.6323e-3, rel=1e-3)
    assert by_name["steplaw"].batch_tokens == pytest.approx(1.1077e6, rel=1e-3)
    assert by_name["olmo"].batch_tokens == pytest.approx(160 * 2048 * (1e9 / 108e6) ** (2 / 3))
    assert by_name["kaplan"].batch_tokens is None

import pytest

from scalelab.errors import SpecError
from scalelab.theory.schedule import RuleInputs
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

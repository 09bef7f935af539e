"""Evaluation in the plan: its share of the compute, its warning, and its refusals."""

import dataclasses

import pytest

from scalelab.errors import UsageError
from scalelab.sweep.cost import plan_cost
from scalelab.sweep.evaluation import MUCH_EVALUATION, evaluated_tokens, evaluation_share
from scalelab.sweep.run_spec import EvalSetRef
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.sweep.speeds import unmeasured_cpu_speed

GRID = {"kind": "grid", "n_params": "100K,300K", "n_tokens": "3M"}
CODE = EvalSetRef("code", "c" * 16, 100_000)


@pytest.fixture
def with_code(facts):
    return dataclasses.replace(facts, eval_sets=(CODE,))


def test_runs_have_the_sets_and_the_interval(plan_of, with_code):
    plan = plan_of(with_code, **GRID, train={"eval_every": 0.25})
    assert {row.spec.eval_sets for row in plan.rows} == {(CODE,)}
    assert {row.spec.eval_every for row in plan.rows} == {0.25}


def test_evaluated_tokens_are_those_of_all_sets_each_time(plan_of, with_code):
    (spec,) = {row.spec for row in plan_of(with_code, **{**GRID, "n_params": "100K"}).rows}
    assert evaluated_tokens(spec, 262_144) == 362_144
    often = dataclasses.replace(spec, eval_every=0.25)
    assert evaluated_tokens(often, 262_144) == 4 * 362_144
    averaged = dataclasses.replace(often, ema_decay=0.99)
    assert evaluated_tokens(averaged, 262_144) == 8 * 362_144


def test_the_share_is_that_of_forward_passes(plan_of, with_code):
    (spec,) = {row.spec for row in plan_of(with_code, **{**GRID, "n_params": "100K"}).rows}
    forward = 362_144 / 3
    assert evaluation_share([spec], 262_144) == pytest.approx(forward / (forward + spec.n_tokens))


def test_the_cost_includes_every_evaluation(plan_of, with_code, facts):
    speed = unmeasured_cpu_speed(1)
    plain, coded = (plan_cost(plan_of(each, **GRID), speed) for each in (facts, with_code))
    often = plan_cost(plan_of(with_code, **GRID, train={"eval_every": 0.1}), speed)
    assert plain.worker_hours < coded.worker_hours < often.worker_hours


def test_more_than_a_fifth_warns_and_says_what_to_do(plan_of, with_code, facts):
    plan = plan_of(with_code, **GRID, train={"eval_every": 0.1})
    assert plan.evaluation_share > MUCH_EVALUATION
    (warning,) = [text for text in plan.warnings() if "evaluation takes" in text]
    assert "--eval-tokens 65536," in warning
    assert "--eval-every" in warning
    less = dataclasses.replace(
        facts, n_eval_tokens=65_536, eval_sets=(EvalSetRef("code", "c" * 16, 65_536),)
    )
    fewer = plan_of(less, **GRID, train={"eval_every": 0.1})
    assert not [text for text in fewer.warnings() if "evaluation takes" in text]


def test_a_plan_without_sets_says_nothing_of_evaluation(plan_of, facts):
    many = dataclasses.replace(facts, n_eval_tokens=20_000_000)
    plan = plan_of(many, **GRID)
    assert plan.evaluation_share > MUCH_EVALUATION
    assert not plan.names_evaluation
    assert not [text for text in plan.warnings() if "evaluation takes" in text]


def test_a_set_shorter_than_a_sequence_is_refused(plan_of, facts):
    tiny = dataclasses.replace(facts, eval_sets=(EvalSetRef("tiny", "c" * 16, 3),))
    with pytest.raises(UsageError) as caught:
        plan_of(tiny, **GRID)
    assert caught.value.given == "sequences of 256 tokens from 3 tokens of evaluation set tiny"
    assert "--eval-set tiny=" in caught.value.do


def test_a_program_evaluates_its_own_sets():
    content = {**GRID, "program": {"command": ["train", "{lr}"], "vocab_size": 256}}
    with pytest.raises(UsageError, match=r"evaluation set code .* with \[program\]"):
        sweep_from_mapping({**content, "data": {"eval": {"code": "a.txt"}}}, source="a test")
    with pytest.raises(UsageError, match="eval_every"):
        sweep_from_mapping({**content, "train": {"eval_every": 0.5}}, source="a test")


def test_a_set_has_no_name_of_a_source():
    mixed = {"mix": {"code": {"paths": "a", "weight": 0.5}, "web": {"paths": "b", "weight": 0.5}}}
    with pytest.raises(UsageError, match="evaluation set code, which is also a source"):
        sweep_from_mapping({**GRID, "data": {**mixed, "eval": {"code": "c"}}}, source="a test")


def test_saved_sweeps_without_sets_stay_equal():
    plain = sweep_from_mapping(GRID, source="a test").science()
    named = sweep_from_mapping({**GRID, "data": {"eval": {"code": "a"}}}, source="a test").science()
    assert "eval" not in plain["data"]
    assert "eval_every" not in plain["train"]
    assert named["data"]["eval"] == {"code": {"paths": ["a"], "tokens": None}}
    again = sweep_from_mapping({**GRID, "data": named["data"]}, source="a test")
    assert again.science() == named

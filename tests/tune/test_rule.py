import json

import pytest

from scalelab.errors import NotIdentifiedError, SpecError, UsageError
from scalelab.records.sweep_dir import Results
from scalelab.sweep.plan import make_plan
from scalelab.sweep.planned_run import DataFacts
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.theory.accounting import count_params
from scalelab.tune.rule import LAW_FILE, save_law, with_tuned_rule

FACTS = DataFacts(
    fingerprint="f",
    eval_fingerprint="e",
    tokenizer="bytes",
    vocab_size=256,
    n_train_tokens=10**9,
    n_eval_tokens=10**5,
)


def power_law(*values):
    return {name: {"value": v} for name, v in zip("kpq", values, strict=True)}


LAW = {
    "lr": power_law(0.9, -0.5, 0.05),
    "batch_tokens": power_law(0.8, 0.0, 0.6),
    "valley": {"ridge": 0.4},
    "param_convention": "chinchilla",
}


@pytest.fixture
def results(tmp_path):
    found = Results(tmp_path)
    found.sweep("small").mkdir(parents=True)
    save_law(found, "small", {"law": LAW, "warnings": []})
    return found


def sweep(**train):
    content = {"kind": "grid", "name": "g", "n_params": "40K", "n_tokens": "2M", "train": train}
    return sweep_from_mapping(content, source="the test")


def test_a_tuned_rule_sets_rate_and_batch_of_a_plan(results):
    tuned = with_tuned_rule(sweep(lr_rule="tuned:small"), results)
    plan = make_plan(tuned, FACTS, precision="fp32")
    (row,) = plan.rows
    n_params = count_params(row.spec.shape).total
    best = 0.8 * 2e6**0.6
    lr = 0.9 * n_params**-0.5 * 2e6**0.05 * (row.spec.tokens_per_step / best) ** 0.4
    assert row.spec.lr == pytest.approx(lr, rel=1e-3)
    assert 0.7 < row.spec.tokens_per_step / best < 1.42
    assert plan.rules["lr"].startswith("tuned:small")
    assert plan.rules["batch"].startswith("tuned:small")


def test_a_tuned_batch_may_be_smaller_than_any_published_rule_is_trusted_with(results):
    law = {**LAW, "batch_tokens": power_law(2e-3, 0.0, 0.8)}
    save_law(results, "small", {"law": law, "warnings": []})
    tuned = with_tuned_rule(sweep(lr_rule="tuned:small"), results)
    (row,) = make_plan(tuned, FACTS, precision="fp32").rows
    best = 2e-3 * 2e6**0.8
    assert row.spec.batch_seqs < 8
    assert 0.7 < row.spec.tokens_per_step / best < 1.42


def test_an_explicit_batch_stays_and_the_rate_follows_it(results):
    tuned = with_tuned_rule(sweep(lr_rule="tuned:small", batch_seqs=64), results)
    (row,) = make_plan(tuned, FACTS, precision="fp32").rows
    assert row.spec.batch_seqs == 64


def test_the_constants_are_part_of_the_sweep(results):
    science = with_tuned_rule(sweep(lr_rule="tuned:small"), results).science()
    assert science["train"]["tuned"]["lr"] == [0.9, -0.5, 0.05]
    assert "tuned" not in sweep().science()["train"]


def test_a_missing_tuning_names_those_that_exist(results):
    with pytest.raises(UsageError, match="tuned:small"):
        with_tuned_rule(sweep(lr_rule="tuned:other"), results)


def test_two_tunings_are_refused(results):
    with pytest.raises(UsageError, match="one tuning for both"):
        sweep(lr_rule="tuned:a", batch_rule="tuned:b")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"law": None, "warnings": [{"code": "not_identified"}]}, NotIdentifiedError),
        ({"law": LAW, "warnings": [{"code": "collinear"}]}, NotIdentifiedError),
        ({"nothing": 1}, SpecError),
    ],
)
def test_a_law_that_cannot_be_a_rule_is_refused(results, content, error):
    save_law(results, "small", content)
    with pytest.raises(error, match="small"):
        with_tuned_rule(sweep(lr_rule="tuned:small"), results)


def test_a_torn_law_is_refused(results):
    (results.sweep("small") / LAW_FILE).write_text(json.dumps(LAW)[:40])
    with pytest.raises(SpecError, match="small"):
        with_tuned_rule(sweep(lr_rule="tuned:small"), results)


def test_an_unknown_rule_is_refused_with_the_way_to_get_one():
    with pytest.raises(UsageError, match="tuned:NAME"):
        sweep(lr_rule="best")

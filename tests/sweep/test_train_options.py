"""Training settings reach the runs, and settings that would have no effect are refused."""

import dataclasses

import pytest

from scalelab.errors import UsageError
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.sweep.trunk import trunk_id

GRID = {"kind": "grid", "n_params": "50K,100K", "n_tokens": "1M,4M"}


def specs(plan_of, **content):
    return [row.spec for row in plan_of(**{**GRID, **content}).rows]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("beta1", 0.85),
        ("epsilon", 1e-10),
        ("init_std", 0.05),
        ("lr_end_ratio", 0.0),
        ("z_loss", 1e-4),
        ("logit_softcap", 30.0),
        ("is_document_masked", True),
    ],
)
def test_a_key_sets_its_field_and_only_that(plan_of, key, value):
    plain, changed = specs(plan_of), specs(plan_of, train={key: value})
    assert changed == [dataclasses.replace(spec, **{key: value}) for spec in plain]
    assert {spec.run_id for spec in plain}.isdisjoint(spec.run_id for spec in changed)


def test_warm_up_and_decay_are_shares_or_steps(plan_of):
    for spec in specs(plan_of, train={"warmup": "0.02", "decay": "0.25", "schedule": "wsd"}):
        assert spec.warmup_steps == round(0.02 * spec.n_steps)
        assert spec.decay_steps == round(0.25 * spec.n_steps)
    for spec in specs(plan_of, train={"warmup": 30, "decay": "1e2", "schedule": "wsd"}):
        assert (spec.warmup_steps, spec.decay_steps) == (30, 100)
    assert {spec.warmup_steps for spec in specs(plan_of, train={"warmup": 0})} == {0}


def test_branches_of_a_ladder_share_warm_up_and_weight_decay(plan_of):
    train = {"warmup": "0.02", "decay": "0.2", "weight_decay_rule": "timescale"}
    found = specs(plan_of, kind="ladder", train=train)
    assert len(found) == 4
    for shape in {spec.shape for spec in found}:
        branches = [spec for spec in found if spec.shape == shape]
        assert len({trunk_id(spec) for spec in branches}) == 1
        (weight_decay,) = {spec.weight_decay for spec in branches}
        # A timescale of 1 at the geometric mean of 1M and 4M tokens.
        expected = branches[0].tokens_per_step / (branches[0].lr * 2e6)
        assert weight_decay == pytest.approx(expected, rel=1e-3)
        shortest = min(spec.n_steps for spec in branches)
        assert {spec.warmup_steps for spec in branches} == {round(0.02 * shortest)}
        assert [spec.decay_steps for spec in branches] == [
            round(0.2 * spec.n_steps) for spec in branches
        ]


def test_a_rule_sets_each_weight_decay_and_the_plan_names_it(plan_of):
    plan = plan_of(**GRID, train={"weight_decay_rule": "timescale:0.5"})
    for row in plan.rows:
        spec = row.spec
        timescale = spec.tokens_per_step / (spec.lr * spec.weight_decay * spec.n_tokens)
        assert timescale == pytest.approx(0.5, rel=2e-3)
    assert plan.rules["weight_decay"] == "timescale:0.5: batch / (lr tau D), tau = 0.5"
    assert plan_of(**GRID).rules["weight_decay"] == "constant 0.1"


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ({"weight_decay": 0.2, "weight_decay_rule": "timescale"}, "a value or a rule"),
        ({"decay": 0.2}, "schedule = cosine"),
        ({"schedule": "wsd", "lr_end_ratio": 0.0}, "wsd decays to zero"),
        ({"warmup": 2.5}, "whole number of steps"),
        ({"warmup": "2.5"}, "whole number of steps"),
        ({"decay": 0, "schedule": "wsd"}, "decay = 0"),
        ({"logit_softcap": -1}, "logit_softcap"),
        ({"is_document_masked": "perhaps"}, "is_document_masked"),
        ({"weight_decay_rule": "none"}, "weight_decay_rule 'none'"),
    ],
)
def test_settings_without_effect_or_meaning_are_refused(train, problem):
    with pytest.raises(UsageError, match=problem):
        sweep_from_mapping({**GRID, "train": train}, source="a test")


def test_a_warm_up_longer_than_a_run_is_refused(plan_of):
    with pytest.raises(UsageError, match="warm-up of 9,000"):
        plan_of(**GRID, train={"warmup": 9000})


def test_new_settings_at_their_defaults_leave_a_saved_sweep_as_it_was():
    sweep = sweep_from_mapping(GRID, source="a test")
    assert set(sweep.science()["train"]) == {
        *("seq_len", "batch_seqs", "batch_rule", "lr", "lr_rule", "schedule", "optimizer"),
        *("weight_decay", "beta2", "grad_clip", "ema_decay", "precision", "seeds"),
    }
    changed = sweep_from_mapping({**GRID, "train": {"z_loss": 1e-4}}, source="a test")
    assert changed.science()["train"]["z_loss"] == 1e-4
    names = {field.name for field in dataclasses.fields(RunSpec)}
    assert {"logit_softcap", "is_document_masked"} <= names

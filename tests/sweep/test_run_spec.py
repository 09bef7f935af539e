"""A run is named by what defines it, and by nothing else."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.errors import SpecError
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.program import ProgramExecution, ProgramSpec
from scalelab.sweep.run_spec import (
    EvalSetRef,
    RunSpec,
    SourceWeight,
    canonical,
    run_spec_from_mapping,
    to_json,
)
from scalelab.theory.shape import ModelShape

SHAPE = ModelShape(n_layers=3, d_model=48, n_heads=3, d_head=16, d_ff=128, vocab_size=256)
SPEC = RunSpec(
    shape=SHAPE,
    seq_len=128,
    batch_seqs=8,
    n_steps=777,
    lr=0.0123,
    warmup_steps=39,
    data_fingerprint="d1",
    eval_fingerprint="e1",
    tokenizer="bytes",
    seed=5,
)
OTHER = {
    "seq_len": 64,
    "batch_seqs": 9,
    "n_steps": 778,
    "lr": 0.0124,
    "warmup_steps": 40,
    "data_fingerprint": "d2",
    "eval_fingerprint": "e2",
    "tokenizer": "bpe:4096",
    "seed": 6,
    "schedule": "wsd",
    "decay_steps": 7,
    "lr_end_ratio": 0.2,
    "optimizer": "muon",
    "beta1": 0.8,
    "beta2": 0.99,
    "epsilon": 1e-7,
    "weight_decay": 0.0,
    "grad_clip": 2.0,
    "z_loss": 1e-4,
    "logit_softcap": 30.0,
    "is_document_masked": True,
    "end_token": 256,
    "init_std": 0.03,
    "parametrization": "mup",
    "precision": "bf16",
    "ema_decay": 0.999,
    "balance_weight": 0.02,
    "router_z_weight": 1e-3,
    "program": ProgramSpec(command=("train",), size=(("depth", 12),)),
    "eval_sets": (EvalSetRef("code", "f1", 4096),),
    "eval_every": 0.25,
    "mixture": (SourceWeight("code", "f1", 0.7), SourceWeight("web", "f2", 0.3)),
    "numerics_revision": 2,
    "shape": dataclasses.replace(SHAPE, n_layers=4),
}
MIXTURE = dataclasses.replace(
    SPEC, shape=dataclasses.replace(SHAPE, n_experts=4, n_active_experts=2)
)


def test_every_field_changes_the_identity():
    # A dense model has no router.
    bases = {"balance_weight": MIXTURE, "router_z_weight": MIXTURE}
    ids = {
        dataclasses.replace(bases.get(name, SPEC), **{name: value}).run_id
        for name, value in OTHER.items()
    }
    assert set(OTHER) == {field.name for field in dataclasses.fields(RunSpec)}
    assert len(ids | {SPEC.run_id, MIXTURE.run_id}) == len(OTHER) + 2


def test_the_identity_is_the_same_on_every_machine_and_day():
    # Fixed: a change here orphans every result that was ever trained.
    assert SPEC.run_id == "ef160c9c05be"


@given(st.floats(1e-6, 1.0))
def test_the_seventh_digit_is_the_same_run(lr):
    lr = float(f"{lr:.5e}")
    nudged = dataclasses.replace(SPEC, lr=lr * (1 + 1e-8))
    assert nudged.run_id == dataclasses.replace(SPEC, lr=lr).run_id


PROGRAM = ProgramSpec(command=("train",), n_params=10)
OTHER_PROGRAM = {
    "command": ("train", "--fast"),
    "derive": (("half", "n_steps // 2"),),
    "files": (("run.yaml", "lr: {lr}"),),
    "env": (("SEED", "{seed}"),),
    "version": "v2",
    "container": "sha256:1",
    "reader": "nanogpt",
    "result_path": "*.log",
    "final_step": "n_steps - 1",
    "loss_unit": "bits",
    "bytes_per_token": 4.5,
    "size_by": "table",
    "size": (("depth", 12),),
    "n_params": 11,
    "flops_per_token": 60.0,
}


def test_every_field_of_a_program_changes_the_identity():
    assert set(OTHER_PROGRAM) == names_of(ProgramSpec)
    programs = [
        PROGRAM,
        *(dataclasses.replace(PROGRAM, **{k: v}) for k, v in OTHER_PROGRAM.items()),
    ]
    ids = {dataclasses.replace(SPEC, program=program).run_id for program in programs}
    assert len(ids) == len(programs)


def test_a_field_at_its_default_is_left_out_of_the_hash():
    assert "schedule" not in canonical(SPEC)
    assert "is_tied" not in canonical(SPEC)["shape"]
    assert canonical(dataclasses.replace(SPEC, schedule="wsd"))["schedule"] == "wsd"


def test_a_spec_survives_its_file():
    assert run_spec_from_mapping(json.loads(to_json(SPEC))) == SPEC
    shape = dataclasses.replace(MIXTURE.shape, d_shared_expert=64)
    program = ProgramSpec(**OTHER_PROGRAM)
    changes = {"shape": shape, "parametrization": "standard", "program": program}
    other = dataclasses.replace(MIXTURE, **{**OTHER, **changes})
    assert run_spec_from_mapping(json.loads(to_json(other))) == other
    assert run_spec_from_mapping(json.loads(to_json(other))).run_id == other.run_id


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lrr": 1}, "lrr"),
        ({"lr": "fast"}, "lr"),
        ({"n_steps": 1.5}, "n_steps"),
        ({"n_steps": True}, "n_steps"),
        ({"shape": 3}, "shape"),
        ({"n_steps": 0}, "n_steps"),
        ({"schedule": "step"}, "schedule"),
        ({"warmup_steps": 778}, "warmup_steps"),
    ],
)
def test_a_file_that_was_edited_wrongly_is_refused(change, words):
    content = {**json.loads(to_json(SPEC)), **change}
    with pytest.raises(SpecError, match=words):
        run_spec_from_mapping(content)


def names_of(*types):
    return {field.name for kind in types for field in dataclasses.fields(kind)}


def test_how_it_is_executed_is_not_part_of_the_run():
    # Both have a program: what it computes, and how it is started.
    assert names_of(ExecutionSpec) & names_of(RunSpec) == {"program"}
    both = names_of(ProgramSpec) & names_of(ProgramExecution)
    # The name of the container is part of a run, the arguments that start it are not.
    assert both == {"container"}


def test_tokens_are_steps_times_batch():
    assert SPEC.n_tokens == 777 * 8 * 128


WITH_SETS = dataclasses.replace(
    SPEC,
    eval_sets=(EvalSetRef("web", "f2", 512), EvalSetRef("code", "f1", 4096)),
    eval_every=0.25,
    mixture=(SourceWeight("web", "f4", 0.3), SourceWeight("code", "f3", 0.7)),
)


def test_the_order_of_sets_and_sources_is_not_part_of_the_identity():
    turned = {name: tuple(reversed(getattr(WITH_SETS, name))) for name in ("eval_sets", "mixture")}
    assert dataclasses.replace(WITH_SETS, **turned).run_id == WITH_SETS.run_id
    assert [ref.name for ref in WITH_SETS.eval_sets] == ["code", "web"]


def test_a_spec_with_sets_survives_json():
    assert run_spec_from_mapping(json.loads(to_json(WITH_SETS))) == WITH_SETS


def test_each_part_of_a_set_changes_the_identity():
    (code, web) = WITH_SETS.eval_sets
    changed = [
        dataclasses.replace(code, name="cade"),
        dataclasses.replace(code, fingerprint="f9"),
        dataclasses.replace(code, n_tokens=4097),
    ]
    ids = {dataclasses.replace(WITH_SETS, eval_sets=(ref, web)).run_id for ref in changed}
    assert len(ids | {WITH_SETS.run_id}) == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eval_every", 1.5),
        ("eval_every", -0.1),
        ("eval_sets", (EvalSetRef("a", "f", 1), EvalSetRef("a", "g", 1))),
        ("mixture", (SourceWeight("a", "f", 0.5), SourceWeight("b", "g", 0.4))),
    ],
)
def test_invalid_sets_and_mixtures_are_refused(field, value):
    with pytest.raises(SpecError, match=field):
        dataclasses.replace(SPEC, **{field: value})


@pytest.mark.parametrize("name", ["heldout", "Code", "a b", "", "1a", "../a"])
def test_names_of_sets_that_are_refused(name):
    with pytest.raises(SpecError, match="lower-case"):
        EvalSetRef(name, "f", 1)
    with pytest.raises(SpecError, match="lower-case"):
        SourceWeight(name, "f", 1.0)


@pytest.mark.parametrize("field", ["eval_sets", "mixture"])
def test_parts_that_are_no_tables_are_refused(field):
    content = {**json.loads(to_json(SPEC)), field: ["code"]}
    with pytest.raises(SpecError, match=field):
        run_spec_from_mapping(content)

"""Templates of a program become its arguments: exact values, and no shell."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.errors import UsageError
from scalelab.sweep.program import ProgramExecution, ProgramSpec
from scalelab.sweep.program_render import (
    PLACEHOLDERS,
    Place,
    evaluation_interval,
    final_step,
    placeholders,
    rendered,
    step_ratio,
    steps_with_evaluations,
    values,
)
from scalelab.sweep.run_size import NO_SHAPE
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import ModelShape

SHAPE = ModelShape(
    n_layers=2, d_model=64, n_heads=2, d_head=32, d_ff=176, vocab_size=96, n_kv_heads=1
)
SPEC = RunSpec(
    shape=SHAPE,
    seq_len=64,
    batch_seqs=8,
    n_steps=40,
    lr=1e-3,
    warmup_steps=4,
    data_fingerprint="d",
    eval_fingerprint="e",
    tokenizer="bytes",
    seed=7,
)
EXECUTION = ProgramExecution(cwd="/src", python="/venv/bin/python")
PLACE = Place(
    run_id="abc",
    sweep="demo",
    out_dir="/r/out",
    metrics="/r/out/metrics.jsonl",
    run_json="/r/spec.json",
)


def run(*command: str, **fields) -> RunSpec:
    return dataclasses.replace(SPEC, program=ProgramSpec(command=command, **fields))


def argv(*command: str, execution: ProgramExecution = EXECUTION, place: Place = PLACE, **fields):
    return list(rendered(run(*command, **fields), execution, place).argv)


def test_nanogpt_gets_the_command_of_its_sample() -> None:
    # The overrides that samples/nanogpt_stdout/run1.log prints.
    command = (
        *("{python}", "train.py", "--dataset=std", "--device=cpu", "--n_layer={n_layers}"),
        *("--n_head={n_heads}", "--n_embd={d_model}", "--block_size={seq_len}"),
        *("--batch_size={micro_batch_seqs}", "--gradient_accumulation_steps={accum}"),
        *("--max_iters={n_steps}", "--lr_decay_iters={n_steps}", "--warmup_iters={warmup_steps}"),
        *("--learning_rate={lr}", "--min_lr={lr_end}", "--eval_interval={every}"),
        "--out_dir={out_dir}",
    )
    fields = {"derive": (("accum", "grad_accum * n_devices"), ("every", "n_steps // 2"))}
    resume = ("--init_from=resume",)
    execution = dataclasses.replace(EXECUTION, resume=resume, checkpoint="{out_dir}/ckpt.pt")
    expected = [
        *("/venv/bin/python", "train.py", "--dataset=std", "--device=cpu", "--n_layer=2"),
        *("--n_head=2", "--n_embd=64", "--block_size=64"),
        *("--batch_size=8", "--gradient_accumulation_steps=1"),
        *("--max_iters=40", "--lr_decay_iters=40", "--warmup_iters=4"),
        *("--learning_rate=0.001", "--min_lr=0.0001", "--eval_interval=20"),
        "--out_dir=/r/out",
    ]
    assert argv(*command, execution=execution, **fields) == expected
    resumed = dataclasses.replace(PLACE, checkpoint="/r/out/ckpt.pt", checkpoint_step=20)
    found = argv(*command, execution=execution, place=resumed, **fields)
    assert found == [*expected, "--init_from=resume"]
    # nanoGPT divides the accumulation by the number of processes.
    two = dataclasses.replace(PLACE, n_devices=2, micro_batch_seqs=2)
    found = argv(*command, execution=execution, place=two, **fields)
    assert "--batch_size=2" in found
    assert "--gradient_accumulation_steps=4" in found


def test_nanochat_gets_the_command_of_its_sample() -> None:
    # user_config of samples/nanochat_stdout/meta_000030.json, whose run resumed from step 15.
    command = (
        *("{python}", "-m", "scripts.base_train", "--depth={size.depth}", "--head-dim=32"),
        *("--aspect-ratio=32", "--max-seq-len={seq_len}", "--device-batch-size={micro_batch_seqs}"),
        *("--total-batch-size={batch_tokens}", "--num-iterations={n_steps}"),
        *("--eval-every={half}", "--save-every={half}", "--model-tag={run_id}"),
    )
    spec = dataclasses.replace(
        SPEC,
        shape=NO_SHAPE,
        n_steps=30,
        warmup_steps=0,
        program=ProgramSpec(
            command=command,
            derive=(("half", "n_steps // 2"),),
            size_by="table",
            size=(("depth", 2),),
            n_params=196_662,
            flops_per_token=885_024.0,
        ),
    )
    execution = dataclasses.replace(EXECUTION, resume=("--resume-from-step={checkpoint_step}",))
    place = dataclasses.replace(
        PLACE, micro_batch_seqs=4, checkpoint="/r/out/model_000015.pt", checkpoint_step=15
    )
    assert list(rendered(spec, execution, place).argv) == [
        *("/venv/bin/python", "-m", "scripts.base_train", "--depth=2", "--head-dim=32"),
        *("--aspect-ratio=32", "--max-seq-len=64", "--device-batch-size=4"),
        *("--total-batch-size=512", "--num-iterations=30"),
        *("--eval-every=15", "--save-every=15", "--model-tag=abc", "--resume-from-step=15"),
    ]
    # "Total training FLOPs estimate: 1.359397e+10" in the log.
    assert values(spec, execution, place)["flops"] == pytest.approx(1.359397e10, rel=1e-6)


def test_every_placeholder_has_a_value() -> None:
    found = values(run("train"), EXECUTION, PLACE)
    assert set(PLACEHOLDERS) == set(found)
    assert found["n_kv_heads"] == 1
    assert found["n_samples"] == 320
    assert found["n_tokens"] == 40 * 8 * 64


def test_numbers_are_plain_digits_or_the_shortest_decimal() -> None:
    changed = dataclasses.replace(run("{n_tokens}", "{lr}", "{weight_decay}"), lr=3e-5)
    assert rendered(changed, EXECUTION, PLACE).argv == ("20480", "3e-05", "0.1")
    assert float("3e-05") == changed.lr


def test_a_number_in_a_yaml_file_is_a_number_there() -> None:
    files = (
        ("{run_id}.yaml", "lr: {lr}\nmap: {{a: {n_layers}}}\n"),
        ("run.json", '{{"lr": {lr}}}'),
    )
    spec = dataclasses.replace(run("train", files=files), lr=3e-5)
    found = rendered(spec, EXECUTION, PLACE).files
    assert found == {"abc.yaml": "lr: 3.0e-05\nmap: {a: 2}\n", "run.json": '{"lr": 3e-05}'}


@given(part=st.integers(0, 5000), rest=st.integers(1, 5000))
def test_a_ratio_gives_its_steps_back_however_they_are_rounded(part: int, rest: int) -> None:
    n_steps = part + rest
    product = step_ratio(part, n_steps) * n_steps
    assert math.ceil(product) == round(product) == part


@given(st.integers(1, 20_000))
def test_the_last_evaluation_is_of_the_last_step(n_steps: int) -> None:
    every = evaluation_interval(n_steps)
    assert n_steps % every == 0
    assert n_steps / every <= 10


def test_the_final_step_is_an_expression() -> None:
    assert final_step(run("train")) == 40
    assert final_step(run("train", final_step="last - 1", derive=(("last", "n_steps"),))) == 39
    with pytest.raises(UsageError, match="whole number"):
        final_step(run("train", final_step="n_steps / 3"))


@pytest.mark.parametrize(
    ("command", "derive", "words"),
    [
        ("{n_layer}", (), "Did you mean n_layers"),
        ("{size.depth}", (), "size.depth"),
        ("{x}", (("x", "y + 1"),), "unknown placeholder {y}"),
        ("{x}", (("x", "y + 1"), ("y", "x")), "x -> y -> x"),
        ("{lr", (), "Double every brace"),
        ("lr}", (), "Double every brace"),
        ("{lr:.2f}", (), "Double every brace"),
        ("{}", (), "Double every brace"),
    ],
)
def test_a_wrong_template_is_refused(command, derive, words) -> None:
    with pytest.raises(UsageError, match=words):
        argv(command, derive=derive)


def test_a_batch_that_devices_do_not_divide_is_refused_where_it_is_used() -> None:
    place = dataclasses.replace(PLACE, n_devices=3)
    assert argv("{batch_seqs}", place=place) == ["8"]
    with pytest.raises(UsageError, match="the batch is not a multiple"):
        argv("{grad_accum}", place=place)


ARGUMENT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@settings(max_examples=100)
@given(st.lists(ARGUMENT, min_size=1, max_size=5))
def test_text_without_placeholders_is_unchanged(texts: list[str]) -> None:
    escaped = [text.replace("{", "{{").replace("}", "}}") for text in texts]
    assert argv(*escaped) == texts
    assert all(placeholders(text) == () for text in escaped)


@settings(max_examples=5, deadline=None)
@given(st.lists(ARGUMENT, max_size=30))
def test_a_program_gets_its_arguments_and_no_shell_reads_them(texts: list[str]) -> None:
    nasty = [
        "; rm -rf /",
        "$(id)",
        "`id`",
        "a b",
        'it\'s "so"',
        "line\nbreak\t",
        "*",
        "~",
        "Größe 模型",
        "",
    ]
    given = [*nasty, *texts]
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    escaped = [text.replace("{", "{{").replace("}", "}}") for text in (code, *given)]
    execution = dataclasses.replace(EXECUTION, python=sys.executable)
    command = argv("{python}", "-c", *escaped, execution=execution)
    done = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(done.stdout) == given


@given(n_steps=st.integers(1, 10**7))
def test_planned_steps_have_evaluations_and_change_by_at_most_a_percent(n_steps: int) -> None:
    steps = steps_with_evaluations(n_steps)
    assert abs(steps - n_steps) <= 0.01 * n_steps
    assert steps // evaluation_interval(steps) >= min(5, 1 + n_steps // 150)

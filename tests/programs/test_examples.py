"""The example sweep files of other trainers: their commands, and what they say of each program."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from scalelab.launch.programs.result import difference, sizes_of
from scalelab.launch.programs.speed import learned_rates
from scalelab.launch.proposal import propose
from scalelab.records.sweep_dir import Results
from scalelab.records.types import RunRecord
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.program_render import Place, final_step, rendered
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.spec import read_mapping, sweep_from_mapping
from scalelab.sweep.speeds import unmeasured_cpu_speed

EXAMPLES = Path(__file__).parents[2] / "examples/programs"
SAMPLES = Path(__file__).parents[1] / "logs/samples"
NAMES = ("hf_trainer", "litgpt", "megatron", "nanochat", "nanogpt", "torchtitan")
PLACE = Place(
    run_id="abc", sweep="s", out_dir="/out", metrics="/m.jsonl", run_json="/r.json", python="python"
)


class Output:
    """What a program reports of its size."""

    final, last_step, flops_per_token, problem = None, None, None, ""

    def __init__(self, n_params: int | None = None) -> None:
        self.n_params = n_params


def planned(
    name: str, tmp_path: Path, *, size: dict[str, Any] | None = None, **changes: Any
) -> tuple[list[RunSpec], ExecutionSpec]:
    """Return the runs of an example, which other tables or keys change."""
    content = read_mapping(EXAMPLES / name / "sweep.toml")
    for key, value in changes.items():
        if isinstance(value, dict):
            content[key] = {**content.get(key, {}), **value}
        elif value is None:
            content.pop(key, None)
        else:
            content[key] = value
    if size is not None:
        content["program"]["size"] = {"by": "table", "table": [size]}
    sweep = sweep_from_mapping(content, source=name)
    assert sweep.program is not None
    execution = ExecutionSpec(program=sweep.program.execution())
    proposal = propose(
        sweep,
        Results(tmp_path),
        execution=execution,
        n_workers=1,
        is_dry_run=True,
        speed=unmeasured_cpu_speed(1),
    )
    return [row.spec for row in proposal.plan.rows], execution


def argv(spec: RunSpec, execution: ExecutionSpec, **place: Any) -> list[str]:
    from dataclasses import replace

    assert execution.program is not None
    return list(rendered(spec, execution.program, replace(PLACE, **place)).argv)


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_planned_and_names_the_version_it_was_tried_with(
    name: str, tmp_path: Path
) -> None:
    specs, execution = planned(name, tmp_path)
    assert len(specs) >= 12
    for spec in specs:
        place = {"n_devices": 8, "gpus_per_node": 8, "checkpoint": "/c", "checkpoint_step": 7}
        words = argv(spec, execution, **(place if name != "hf_trainer" else {"checkpoint": "/c"}))
        assert not [word for word in words if "{{" in word]
    header = " ".join(re.findall(r"^#.*", (EXAMPLES / name / "sweep.toml").read_text(), re.M))
    assert re.search(r"[Tt]ried|written against", header)
    assert re.search(r"commit [0-9a-f]{7}|\d+\.\d+\.\d+", header)


def test_nanogpts_command_is_the_one_of_its_log(tmp_path: Path) -> None:
    row = {"n_layers": 2, "d_model": 64, "n_heads": 2, "n_params": 108_864}
    (spec,), execution = planned(
        "nanogpt",
        tmp_path,
        size=row,
        kind="grid",
        budgets=None,
        n_tokens=40 * 512,
        train={"seq_len": 64, "batch_seqs": 8, "lr": 1e-3, "warmup": 4},
        execution={"micro_batch_seqs": 8},
    )
    assert argv(spec, execution, checkpoint="/out/ckpt.pt", micro_batch_seqs=8) == [
        *("python", "train.py", "--n_layer=2", "--n_head=2", "--n_embd=64", "--block_size=64"),
        *("--batch_size=8", "--gradient_accumulation_steps=1", "--max_iters=40"),
        *("--lr_decay_iters=40", "--warmup_iters=4", "--learning_rate=0.001", "--min_lr=0.0001"),
        *("--weight_decay=0.1", "--beta1=0.9", "--beta2=0.95", "--grad_clip=1.0"),
        *("--eval_interval=4", "--eval_iters=200", "--log_interval=10"),
        *("--dataset=openwebtext", "--out_dir=/out", "--init_from=resume"),
    ]
    log = (SAMPLES / "nanogpt/run1.log").read_text()
    printed = dict(re.findall(r"^Overriding: (\w+) = (.*)$", log, re.M))
    ours = dict(word[2:].split("=", 1) for word in argv(spec, execution, micro_batch_seqs=8)[2:])
    differing = {"eval_interval", "eval_iters", "log_interval", "dataset", "out_dir"}
    assert {k: v for k, v in printed.items() if k in ours and k not in differing} == {
        k: v for k, v in ours.items() if k in printed and k not in differing
    }
    # nanoGPT ties its head and learns positions; the table of sizes counts them, a shape does not.
    assert sizes_of(spec, Output(108_864), None) == {"report": 108_864, "table": 108_864}
    assert difference(sizes_of(spec, Output(104_768), None))


def test_on_eight_gpus_nanogpt_divides_the_accumulation_itself(tmp_path: Path) -> None:
    specs, execution = planned("nanogpt", tmp_path)
    words = argv(specs[0], execution, n_devices=8, gpus_per_node=8, micro_batch_seqs=12)
    assert "--batch_size=12" in words
    assert "--gradient_accumulation_steps=40" in words  # 480 sequences / 12, over all GPUs


def test_nanochats_command_is_the_one_of_its_checkpoint(tmp_path: Path) -> None:
    row = {"depth": 2, "n_params": 196_662, "flops_per_token": 885_024}
    (spec,), execution = planned(
        "nanochat",
        tmp_path,
        size=row,
        kind="grid",
        budgets=None,
        n_tokens=30 * 512,
        train={"seq_len": 64, "batch_seqs": 8},
        execution={"micro_batch_seqs": 4},
    )
    words = argv(spec, execution, checkpoint="/o/model_000015.pt", checkpoint_step=15,
                 micro_batch_seqs=4)  # fmt: skip
    assert words[1:] == [
        *("-m", "scripts.base_train", "--depth=2", "--max-seq-len=64", "--window-pattern=SSSL"),
        *("--num-iterations=30", "--total-batch-size=512", "--device-batch-size=4"),
        *("--eval-every=250", "--eval-tokens=52428800", "--core-metric-every=-1"),
        *("--sample-every=-1", "--save-every=500", "--model-tag=/out", "--resume-from-step=15"),
    ]
    about = json.loads((SAMPLES / "nanochat/meta_000030.json").read_text())["user_config"]
    ours = {w[2:].split("=")[0].replace("-", "_"): w.split("=")[1] for w in words if "--" in w}
    for name in ("depth", "max_seq_len", "num_iterations", "total_batch_size", "device_batch_size"):
        assert str(about[name]) == ours[name]


def test_the_table_of_nanochat_has_what_base_train_prints() -> None:
    for row in csv.DictReader((EXAMPLES / "nanochat/sizes.csv").read_text().splitlines()):
        depth, vocab = int(row["depth"]), 32_768
        width = -(-depth * 64 // 128) * 128
        tables = 2 * vocab * width + depth // 2 * vocab * width  # wte, lm_head, value embeddings
        assert int(row["n_params"]) == tables + int(row["n_params_kaplan"])
        # 12 width^2 a layer, and little more: gates and scalars.
        assert 1 < int(row["n_params_kaplan"]) / (12 * depth * width**2) < 1.0001


def test_nanogpts_table_of_sizes_is_what_its_script_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = EXAMPLES / "nanogpt/sizes.py"
    exec(compile(script.read_text(), str(script), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == (EXAMPLES / "nanogpt/sizes.csv").read_text()


def test_litgpts_log_counts_micro_batches(tmp_path: Path) -> None:
    specs, _ = planned("litgpt", tmp_path)
    assert final_step(specs[0]) == specs[0].n_steps * 16


def test_torchtitans_configuration_is_a_module(tmp_path: Path) -> None:
    specs, execution = planned("torchtitan", tmp_path)
    assert execution.program is not None
    from dataclasses import replace

    place = replace(PLACE, n_devices=8, gpus_per_node=8, micro_batch_seqs=8)
    command = rendered(specs[0], execution.program, place)
    text = command.files["scalelab_run.py"]
    compile(text, "scalelab_run.py", "exec")
    assert f"steps={specs[0].n_steps}," in text
    assert command.env == {"PYTHONPATH": "/out"}


def test_a_speed_is_learned_only_from_runs_of_the_same_command(tmp_path: Path) -> None:
    results = Results(tmp_path)
    specs, _ = planned("hf_trainer", tmp_path)
    run = results.run(specs[0].run_id)
    run.write_spec(specs[0])
    attempt = run.claim()
    record = RunRecord(
        run_id=run.run_id, attempt=1, token=attempt.token, status="done", loss_nats=3.0,
        loss_se_nats=None, n_params={"chinchilla": 1}, flops={"exact": 1.0}, n_tokens=1000,
        unique_tokens=1000, n_steps=1, wall_s=2.0,
    )  # fmt: skip
    attempt.write_record(record)
    assert attempt.accept()
    assert specs[0].program is not None
    for command in (None, specs[0].program.command):
        ((_, rate),) = learned_rates(results, [run.run_id], command)
        assert rate == 500.0
    assert learned_rates(results, [run.run_id], ("another",)) == ()

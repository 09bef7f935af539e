"""The table [program]: what it accepts, what it refuses, and which runs it plans."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from scalelab.errors import DataError, UsageError
from scalelab.sweep.plan import Plan, make_plan
from scalelab.sweep.planned_run import DataFacts
from scalelab.sweep.run_size import NO_SHAPE, has_shape, planned_flops, run_size
from scalelab.sweep.spec import SweepSpec, read_sweep_file, sweep_from_mapping

FACTS = DataFacts(
    fingerprint="undeclared",
    eval_fingerprint="undeclared",
    tokenizer="undeclared",
    vocab_size=96,
    n_train_tokens=None,
    n_eval_tokens=0,
)
COMMAND = ["train", "--lr={lr}", "--layers={n_layers}", "--steps={n_steps}"]
DEPTHS = [
    {"depth": 2, "n_params": "40K", "flops_per_token": 240_000},
    {"depth": 4, "n_params": "100K", "flops_per_token": 600_000},
    {"depth": 8, "n_params": "300K", "flops_per_token": 1_800_000},
]
BY_DEPTH = {
    "command": ["train", "--depth={size.depth}", "--steps={n_steps}"],
    "size": {"by": "table", "table": DEPTHS},
}


def sweep_of(program: dict[str, Any], **keys: Any) -> SweepSpec:
    content = {"kind": "isoflop", "budgets": "1e12,4e12", "program": program, **keys}
    return sweep_from_mapping(content, source="the test")


def plan_of(sweep: SweepSpec, facts: DataFacts = FACTS) -> Plan:
    assert sweep.program is not None
    return make_plan(sweep, facts, precision="fp32", program=sweep.program.spec(version="v1"))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ({"command": "python train.py"}, r'Write command = \["python", "train.py"\]'),
        ({"command": []}, r"program.command = \[\]"),
        ({}, "no program.command"),
        ({"command": COMMAND, "comand": 1}, "Did you mean command"),
        ({"command": COMMAND, "result": {"formatt": "x"}}, "Did you mean format"),
        ({"command": COMMAND, "file": [{"pth": "a"}]}, "Did you mean path"),
        ({"command": ["{n_layer}", "{epochs}"]}, "Did you mean n_layers"),
        ({"command": ["{n_layer}", "{epochs}"]}, r"unknown placeholder \{epochs\}"),
        ({"command": ["{lr"]}, "Double every brace"),
        ({"command": COMMAND, "derive": {"lr": "1"}}, "not a placeholder"),
        ({"command": COMMAND, "derive": {"a": "b * 2"}}, "the name b"),
        ({"command": COMMAND, "derive": {"a": "lr *"}}, "unfinished"),
        ({"command": COMMAND, "result": {"final_step": "steps"}}, "Did you mean n_steps"),
        ({"command": COMMAND, "resume": ["--resume"]}, "without program.checkpoint"),
        ({"command": COMMAND, "in_place": True}, "without program.checkpoint"),
        ({"command": COMMAND, "stop_signal": "KILL"}, "a signal that a program can handle"),
        ({"command": COMMAND, "stop_signal": "TREM"}, "a signal that a program can handle"),
        ({"command": COMMAND, "launcher": "mpirun"}, "single or torchrun or srun"),
        ({"command": COMMAND, "size": {"by": "table"}}, "without program.size.table"),
        ({"command": COMMAND, "size": {"table": DEPTHS}}, "with program.size.table"),
        ({"command": COMMAND, "result": {"loss_unit": "bits_per_byte"}}, "bytes_per_token"),
        ({"command": COMMAND, "file": [{"path": "../a", "text": ""}]}, "below the output"),
        ({"command": COMMAND, "file": [{"path": "a"}]}, "one of them"),
    ],
)
def test_a_wrong_table_is_refused_with_what_to_type(program, words) -> None:
    with pytest.raises(UsageError, match=words):
        sweep_of(program)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"train": {"z_loss": 1e-4}}, "train.z_loss"),
        ({"train": {"optimizer": "muon"}}, "train.optimizer"),
        ({"train": {"precision": "bf16"}}, "train.precision"),
        ({"train": {"seeds": [0, 1]}}, r"--seed=\{seed\}"),
        ({"data": {"paths": ["corpus"]}}, "does not receive it"),
        ({"execution": {"kernels": "triton"}}, "execution.kernels"),
        ({"execution": {"batched_runs": 4}}, "execution.batched_runs"),
        ({"model": {"n_experts": 8}}, "mixtures of experts"),
        ({"kind": "ladder", "budgets": (), "n_params": "1M", "n_tokens": "1M,2M"}, "a ladder"),
    ],
)
def test_settings_that_a_program_cannot_receive_are_refused(keys, words) -> None:
    with pytest.raises(UsageError, match=words):
        sweep_of({"command": COMMAND}, **keys)


def test_runs_are_planned_by_shape_as_ours_and_carry_the_program() -> None:
    ours = make_plan(
        sweep_from_mapping({"kind": "isoflop", "budgets": "1e12,4e12"}, source="the test"),
        FACTS,
        precision="fp32",
    )
    theirs = plan_of(sweep_of({"command": COMMAND}))
    assert [row.n_params for row in theirs.rows] == [row.n_params for row in ours.rows]
    assert [row.flops for row in theirs.rows] == [row.flops for row in ours.rows]
    assert not {r.spec.run_id for r in theirs.rows} & {r.spec.run_id for r in ours.rows}
    assert all(row.spec.program.version == "v1" for row in theirs.rows)
    assert theirs.epochs(theirs.rows[0]) is None
    theirs.refuse_repeats(allow_repeats=False)


def test_a_table_of_sizes_gives_n_and_flops() -> None:
    plan = plan_of(sweep_of(BY_DEPTH, train={"batch_seqs": 8, "seq_len": 64}))
    assert [row.n_params for row in plan.rows] == [40_000, 100_000, 300_000] * 2
    for row in plan.rows:
        # Within one step of the budget, in reported FLOPs.
        step = row.spec.tokens_per_step * row.spec.program.flops_per_token
        assert abs(row.flops - row.budget_flops) <= step
        assert row.flops == planned_flops(row.spec)
        size = run_size(row.spec)
        assert size.flop_convention == "reported"
        assert set(size.n_params) == {"chinchilla"}
        assert set(size.flops_per_token) == {"6nd", "reported"}
        assert row.spec.shape == NO_SHAPE
        assert not has_shape(row.spec)
        # The command has no {lr}: no rule is asked for it.
        assert row.spec.lr == 1.0


def test_a_budget_takes_the_rows_within_the_span_around_its_optimum() -> None:
    table = [
        {"depth": d, "n_params": 1000 * 2**d, "flops_per_token": 6000 * 2**d} for d in range(14)
    ]
    program = {**BY_DEPTH, "size": {"by": "table", "table": table}}

    def sizes(**keys: Any) -> dict[float, list[int]]:
        found: dict[float, list[int]] = {}
        for row in plan_of(sweep_of(program, train={"batch_seqs": 8}, **keys)).rows:
            found.setdefault(row.budget_flops, []).append(row.spec.program.size[0][1])
        return found

    # 20 tokens a parameter: N = sqrt(C / 120) is 91K and 183K, nearest to 2^7 K and 2^8 K.
    assert sizes() == {1e12: [5, 6, 7, 8, 9], 4e12: [6, 7, 8, 9, 10]}
    assert sizes(span=4) == {1e12: [6, 7, 8], 4e12: [7, 8, 9]}
    assert {len(found) for found in sizes(sizes=9).values()} == {9}
    assert {len(found) for found in sizes(span=1.01).values()} == {3}


def test_a_table_without_flops_counts_six_n_d() -> None:
    table = [{"depth": 2, "n_params": "40K"}, {"depth": 4, "n_params": "100K"}]
    program = {**BY_DEPTH, "size": {"by": "table", "table": table}}
    row = plan_of(sweep_of(program, train={"batch_seqs": 8})).rows[0]
    assert row.flops == 6 * 40_000 * row.spec.n_tokens


def test_a_grid_takes_every_row_of_a_table_or_the_nearest_ones() -> None:
    keys = {"kind": "grid", "budgets": (), "n_tokens": "1M,2M", "train": {"batch_seqs": 8}}
    plan = plan_of(sweep_of(BY_DEPTH, **keys))
    assert [row.n_params for row in plan.rows] == [40_000] * 2 + [100_000] * 2 + [300_000] * 2
    plan = plan_of(sweep_of(BY_DEPTH, **keys, n_params="110K"))
    assert [row.n_params for row in plan.rows] == [100_000] * 2
    with pytest.raises(UsageError, match="at most 3 sizes"):
        plan_of(sweep_of(BY_DEPTH, **keys, n_params="10K..1M:4"))


def test_a_rule_that_needs_a_shape_asks_for_the_value() -> None:
    program = {**BY_DEPTH, "command": [*BY_DEPTH["command"], "--lr={lr}"]}
    with pytest.raises(UsageError, match=r"lr_rule = width.*Write train\.lr"):
        plan_of(sweep_of(program, train={"batch_seqs": 8}))
    plan = plan_of(sweep_of(program, train={"batch_seqs": 8, "lr": 3e-4}))
    assert {row.spec.lr for row in plan.rows} == {3e-4}


def test_shape_columns_of_a_table_are_placeholders(tmp_path: Path) -> None:
    (tmp_path / "sizes.csv").write_text(
        "n_layers,d_model,n_heads,n_params\n2,64,2,108864\n4,128,4,500K\n"
    )
    (tmp_path / "sweep.toml").write_text(
        'kind = "grid"\nn_tokens = "1M"\n[program]\n'
        'command = ["train", "--n_layer={n_layers}", "--n_head={n_heads}"]\n'
        'size = {by = "table", table = "sizes.csv"}\n[train]\nbatch_seqs = 8\n'
    )
    sweep = read_sweep_file(tmp_path / "sweep.toml")
    rows = plan_of(sweep).rows
    assert [row.spec.shape.n_layers for row in rows] == [2, 4]
    assert [row.n_params for row in rows] == [108_864, 500_000]


def test_a_table_that_was_not_probed_says_how(tmp_path: Path) -> None:
    (tmp_path / "sizes.csv").write_text("depth\n2\n4\n")
    program = {**BY_DEPTH, "folder": str(tmp_path), "size": {"by": "table", "table": "sizes.csv"}}
    with pytest.raises(UsageError, match="scalelab program probe"):
        plan_of(sweep_of(program))


def test_paths_start_from_the_folder_of_the_sweep_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("lr: {lr}\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "sweeps").mkdir()
    path = tmp_path / "sweeps" / "one.toml"
    path.write_text(
        'kind = "isoflop"\nbudgets = "1e12"\n[program]\n'
        'command = ["train", "--lr={lr}"]\ncwd = ".."\ntrain_data = "../data"\n'
        '[[program.file]]\npath = "run.yaml"\ntemplate = "../config.yaml"\n'
    )
    program = read_sweep_file(path).program
    assert program is not None
    how = program.execution()
    assert Path(how.cwd).resolve() == tmp_path
    assert Path(how.train_data).resolve() == tmp_path / "data"
    assert program.files() == (("run.yaml", "lr: {lr}\n"),)
    # The same by the path of the file, as --program gives it.
    named = sweep_from_mapping(
        {"kind": "isoflop", "budgets": "1e12", "program": str(path)}, source="the options"
    )
    assert named.program == program
    for wrong in (tmp_path / "none.toml", tmp_path / "config.yaml"):
        with pytest.raises((DataError, UsageError)):
            sweep_of(str(wrong))  # type: ignore[arg-type]


def test_how_a_program_is_started_does_not_change_the_sweep() -> None:
    base = sweep_of({"command": COMMAND}).science()
    for key, value in {
        "cwd": "/elsewhere",
        "python": "/venv/bin/python",
        "grace_s": 5,
        "tokens_per_s": "1K",
        "launcher": "torchrun",
    }.items():
        assert sweep_of({"command": COMMAND, key: value}).science() == base
    for key, value in {"vocab_size": 7, "derive": {"a": "1"}, "env": {"A": "1"}}.items():
        assert sweep_of({"command": COMMAND, key: value}).science() != base
    assert (
        "program"
        not in sweep_from_mapping(
            {"kind": "isoflop", "budgets": "1e12"}, source="the test"
        ).science()
    )


def test_the_example_of_the_issue_is_accepted() -> None:
    content = tomllib.loads("""
kind = "isoflop"
budgets = "1e12"
[program]
command = ["{python}", "train.py", "--n_layer={n_layers}", "--max_iters={n_steps}",
           "--learning_rate={lr}", "--out_dir={out_dir}"]
resume = ["--init_from=resume"]
checkpoint = "{out_dir}/ckpt.pt"
cwd = "../nanoGPT"
launcher = "single"
result = { format = "nanogpt", final_step = "n_steps" }
size = { by = "report" }
""")
    assert sweep_from_mapping(content, source="the test").program is not None

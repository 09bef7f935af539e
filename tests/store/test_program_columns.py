"""Rows of the runs of a program: its own counts, and NULL for what it did not receive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scalelab.records.run_dir import RunDir
from scalelab.records.run_files import read_run
from scalelab.store.rows import run_row
from scalelab.store.schema import RUNS
from scalelab.sweep.program import ProgramSpec
from scalelab.sweep.run_size import NO_SHAPE
from scalelab.sweep.run_spec import RunSpec

BY_DEPTH = ProgramSpec(
    command=("train", "--depth={size.depth}", "--lr={lr}"),
    version="v1",
    reader="nanochat",
    size_by="table",
    size=(("depth", 12), ("n_params_kaplan", 80_000)),
    n_params=100_000,
    flops_per_token=700_000.0,
)


def row_of(spec: RunSpec, tmp_path: Path) -> dict:
    run = RunDir(tmp_path / "runs" / spec.run_id)
    run.write_spec(spec)
    return run_row(read_run(str(run.path)))


def test_a_planned_run_of_a_table_has_the_counts_of_its_row(base_spec, tmp_path) -> None:
    spec = replace(base_spec, shape=NO_SHAPE, program=BY_DEPTH)
    row = row_of(spec, tmp_path)
    assert (row["n_params"], row["n_params_kaplan"]) == (100_000, 80_000)
    assert row["flops"] == row["flops_reported"] == 700_000.0 * spec.n_tokens
    assert row["flop_convention"] == "reported"
    assert row["flops_6nd"] == 6 * 100_000 * spec.n_tokens
    assert "flops_exact" not in row
    for name in ("n_layers", "d_model", "vocab_size", "optimizer", "precision", "beta1", "seed"):
        assert row[name] is None, name
    assert row["lr"] == spec.lr
    assert (row["program_version"], row["program_format"]) == ("v1", "nanochat")
    assert row["program_size"] == '{"depth": 12, "n_params_kaplan": 80000}'
    assert row["program"] == '["train", "--depth={size.depth}", "--lr={lr}"]'


def test_a_run_planned_by_shape_has_our_counts(base_spec, tmp_path) -> None:
    program = ProgramSpec(command=("train", "--seed={seed}"))
    ours = row_of(base_spec, tmp_path)
    theirs = row_of(replace(base_spec, program=program), tmp_path)
    for name in ("n_params", "flops", "flop_convention", "n_layers", "vocab_size", "seed"):
        assert theirs[name] == ours[name]
    assert ours["flop_convention"] == "exact"
    assert ours.get("program") is None
    assert (theirs["lr"], theirs["program_size"]) == (None, None)


def test_the_columns_are_in_the_table(base_spec, tmp_path) -> None:
    names = set(RUNS.column_names())
    assert {"program", "program_version", "program_size", "program_format"} <= names
    assert {"flop_convention", "flops_reported"} <= names

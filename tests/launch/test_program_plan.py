"""Plans of a program: its commands, version, data and speed, and what a launch refuses."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scalelab import api
from scalelab.api.programs import check_program
from scalelab.api.sweeps import preview
from scalelab.errors import UsageError
from scalelab.launch.execute import save
from scalelab.launch.folders import requested_execution
from scalelab.launch.programs.source import (
    data_fingerprint,
    folder_version,
    program_version,
    require_same_source,
    saved_program,
)
from scalelab.launch.programs.speed import program_speed
from scalelab.launch.proposal import Proposal
from scalelab.launch.speed import machine_speed
from scalelab.records.sweep_dir import Results
from scalelab.sweep.cost import spec_seconds
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.spec import SweepSpec, sweep_from_mapping

COMMAND = ["{python}", "train.py", "--lr={lr}", "--layers={n_layers}", "--steps={n_steps}",
           "--d_model={d_model}", "--out={out_dir}"]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a program that is not in git."""
    place = tmp_path / "program"
    place.mkdir()
    (place / "train.py").write_text("print('hello')\n")
    return place


def sweep_of(folder: Path, **program: Any) -> SweepSpec:
    own = {"command": COMMAND, "vocab_size": 96, "folder": str(folder)}
    content = {"kind": "isoflop", "budgets": "1e12,4e12", "name": "demo", "sizes": 3}
    return sweep_from_mapping({**content, "program": {**own, **program}}, source="the test")


def propose(sweep: SweepSpec, tmp_path: Path, **options: Any) -> Proposal:
    return api.propose(sweep, results=tmp_path / "results", device="cpu", workers=2, **options)


def test_a_plan_shows_the_smallest_the_middle_and_the_largest_command(folder, tmp_path) -> None:
    proposal = propose(sweep_of(folder), tmp_path)
    sizes = [each.row.flops for each in proposal.commands]
    assert len(sizes) == 3
    assert sizes == sorted(sizes)
    assert sizes[-1] == max(row.flops for row in proposal.plan.rows)
    argv = proposal.commands[0].rendered.argv
    row = proposal.commands[0].row
    assert argv[:2] == (sys.executable, "train.py")
    assert f"--steps={row.spec.n_steps}" in argv
    assert row.spec.run_id in argv[-1]


def test_two_runs_with_one_command_are_refused(folder, tmp_path) -> None:
    sweep = sweep_of(folder, command=["{python}", "train.py", "--steps={n_steps}"])
    propose(sweep, tmp_path)  # different steps
    sweep = sweep_of(folder, command=["{python}", "train.py", "--lr={lr}"])
    for options in ({}, {"is_dry_run": True}):
        with pytest.raises(UsageError, match="two runs with the same command"):
            propose(
                sweep.model_copy(update={"train": sweep.train.model_copy(update={"lr": 1e-3})}),
                tmp_path,
                **options,
            )


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ({"command": ["no-such-program", *COMMAND[2:]]}, "not in PATH"),
        ({"command": ["./missing", *COMMAND[2:]]}, "does not exist"),
        ({"command": ["./train.py", *COMMAND[2:]]}, "not executable"),
        ({"command": ["{python}", "trian.py", *COMMAND[2:]]}, "the script 'trian.py'"),
        ({"python": "/nowhere/bin/python"}, "does not exist"),
        ({"cwd": "missing"}, "not a folder"),
        ({"train_data": "missing.bin"}, "program.train_data"),
        ({"command": [*COMMAND, "{eval_data}"]}, r"\{eval_data\} without program.eval_data"),
    ],
)
def test_what_is_missing_is_refused_by_a_launch_and_said_by_a_dry_run(
    folder, tmp_path, program, words
) -> None:
    sweep = sweep_of(folder, **program)
    with pytest.raises(UsageError, match=words):
        propose(sweep, tmp_path)
    dry = propose(sweep, tmp_path, is_dry_run=True)
    assert any("a launch will fail" in note for note in dry.plan.warnings())
    propose(sweep, tmp_path, is_plan_only=True)  # it runs elsewhere


def test_a_check_says_every_problem(folder, tmp_path) -> None:
    sweep = sweep_of(
        folder, command=["{python}", "trian.py", "--lr={lr}"], train_data="missing.bin"
    )
    train = sweep.train.model_copy(update={"lr": 1e-3})
    found = check_program(sweep.model_copy(update={"train": train}), results=tmp_path / "results")
    text = " ".join(str(problem) for problem in found.problems)
    for words in ("the same command", "trian.py", "missing.bin"):
        assert words in text
    assert found.placeholders["lr"] == 1e-3
    assert not check_program(sweep_of(folder), results=tmp_path / "results").problems
    assert not (tmp_path / "results").exists()


def test_an_unknown_format_is_refused_with_the_likely_one(folder, tmp_path) -> None:
    with pytest.raises(UsageError, match="Did you mean nanogpt"):
        propose(sweep_of(folder, result={"format": "nanogtp"}), tmp_path, is_dry_run=True)


def test_a_program_without_a_vocabulary_is_refused(folder, tmp_path) -> None:
    with pytest.raises(UsageError, match="vocab_size = 50304"):
        propose(sweep_of(folder, vocab_size=0), tmp_path)


def test_the_tokens_of_data_are_prepared_where_the_command_has_them(folder, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a line of text\n" * 20_000)
    sweep = sweep_of(folder, command=[*COMMAND, "--data={train_data}"], vocab_size=0)
    data = sweep.data.model_copy(update={"paths": (str(text),), "eval_tokens": 4096})
    plan = propose(sweep.model_copy(update={"data": data, "allow_repeats": True}), tmp_path).plan
    assert plan.data.vocab_size == 256
    assert plan.data.n_train_tokens > 100_000
    assert (tmp_path / "results" / "data" / plan.data.fingerprint).is_dir()


def test_token_files_are_named_in_program(folder, tmp_path) -> None:
    (tmp_path / "train.bin").write_bytes(bytes(100_000))
    sweep = sweep_of(folder, command=[*COMMAND, "--data={train_data}"], vocab_size=0)
    data = sweep.data.model_copy(update={"paths": (str(tmp_path / "train.bin"),)})
    with pytest.raises(UsageError, match=r"token files .*train.bin in \[data\]") as caught:
        propose(sweep.model_copy(update={"data": data}), tmp_path)
    assert 'train_data = "train.bin"' in caught.value.do


def test_declared_data_is_fingerprinted_and_not_prepared(folder, tmp_path) -> None:
    data = folder / "train.bin"
    data.write_bytes(bytes(range(256)) * 8192)
    sweep = sweep_of(folder, command=[*COMMAND, "{train_data}"], train_data="train.bin")
    plan = propose(sweep, tmp_path).plan
    assert plan.data.fingerprint == data_fingerprint(str(data))
    assert not (tmp_path / "results" / "data").exists()
    data.write_bytes(b"x" + data.read_bytes()[1:])
    assert propose(sweep, tmp_path).plan.data.fingerprint != plan.data.fingerprint
    # Megatron names files by their start.
    (folder / "text_document.bin").write_bytes(b"1")
    prefix = data_fingerprint(str(folder / "text_document"))
    assert prefix is not None
    (folder / "text_document.idx").write_bytes(b"2")
    assert data_fingerprint(str(folder / "text_document")) not in (None, prefix)


def test_unique_tokens_give_the_check_of_epochs(folder, tmp_path) -> None:
    proposal = propose(sweep_of(folder, unique_tokens="100K"), tmp_path)
    with pytest.raises(UsageError, match="epochs over 100K unique tokens"):
        save(proposal, Results(tmp_path / "results"))


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


def test_the_version_is_commit_changes_and_untracked_files(folder, tmp_path) -> None:
    results = tmp_path / "results"
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    versions = [folder_version(folder, {results})]
    (folder / "train.py").write_text("print('changed')\n")
    versions.append(folder_version(folder, {results}))
    (folder / "new.py").write_text("x = 1\n")
    versions.append(folder_version(folder, {results}))
    (folder / "new.py").write_text("x = 2\n")
    versions.append(folder_version(folder, {results}))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "two")
    versions.append(folder_version(folder, {results}))
    assert len(set(versions)) == 5
    assert [("+" in version) for version in versions] == [False, True, True, True, False]
    # Results, the sweep file and its table are not the program.
    inside = folder / "results"
    inside.mkdir()
    (inside / "log.txt").write_text("x")
    (folder / "sweep.toml").write_text("")
    (folder / "other.toml").write_text('kind = "grid"\nprogram = "sweep.toml"\n')
    (folder / "sizes.csv").write_text("depth,n_params\n2,10\n")
    table = {"by": "table", "table": "sizes.csv"}
    command = ["{python}", "train.py", "--depth={size.depth}"]
    sweep = sweep_of(folder, source=str(folder / "sweep.toml"), size=table, command=command)
    assert program_version(sweep.program, inside) == versions[-1]
    assert program_version(sweep.program, results) != versions[-1]


def test_a_sweep_does_not_continue_with_changed_source_unless_told(folder, tmp_path) -> None:
    results = Results(tmp_path / "results")
    sweep = sweep_of(folder)
    first = propose(sweep, tmp_path)
    saved = save(first, results)
    specs = [row.spec for row in first.plan.rows]
    assert require_same_source(results, "demo", specs, allow_change=False) == ""
    (folder / "train.py").write_text("print('changed')\n")
    with pytest.raises(UsageError, match="--allow-source-change"):
        require_same_source(results, "demo", specs, allow_change=False)
    assert "keep their run_ids" in require_same_source(results, "demo", specs, allow_change=True)
    changed = propose(sweep, tmp_path)
    with pytest.raises(UsageError, match="--allow-source-change"):
        save(changed, results)
    told = propose(sweep, tmp_path, allow_source_change=True)
    assert told.allows_source_change
    assert save(told, results) == saved
    # A declared version does not look at files.
    declared = propose(sweep_of(folder, version="v1"), tmp_path)
    assert declared.plan.rows[0].spec.program.version == "v1"


def test_a_saved_sweep_knows_how_to_start_its_program(folder, tmp_path) -> None:
    results = Results(tmp_path / "results")
    proposal = propose(
        sweep_of(folder, checkpoint="{out_dir}/c_{step}", resume=["--resume"], grace_s=7), tmp_path
    )
    save(proposal, results)
    how = saved_program(results, "demo")
    assert how == proposal.execution.program
    assert how is not None
    assert (how.grace_s, how.resume, how.cwd) == (7.0, ("--resume",), str(folder))
    assert requested_execution(results, "demo", "cpu").program == how
    assert saved_program(results, "other") is None


def test_the_time_is_unknown_declared_probed_or_learned(folder, tmp_path) -> None:
    unknown = propose(sweep_of(folder), tmp_path).cost
    assert not unknown.speed.is_known
    assert set(unknown.run_seconds) == {0.0}
    rows = propose(sweep_of(folder, tokens_per_s="10K"), tmp_path)
    for row, seconds in zip(rows.plan.rows, rows.cost.run_seconds, strict=True):
        assert seconds == pytest.approx(row.spec.n_tokens / 10_000 + 0.5)
    base = machine_speed(ExecutionSpec(), 2)
    spec = rows.plan.rows[0].spec
    per_token = rows.plan.rows[0].flops / spec.n_tokens
    learned = program_speed(base, None, (), ((per_token / 2, 4000.0), (per_token * 2, 1000.0)))
    # Log-linear between two sizes, constant FLOP/s beyond them.
    assert spec_seconds(spec, 0, learned) == pytest.approx(spec.n_tokens / 2000 + 0.5)
    one = dataclasses.replace(learned, token_rates=((per_token / 4, 4000.0),))
    assert spec_seconds(spec, 0, one) == pytest.approx(spec.n_tokens / 1000 + 0.5)


def test_a_cap_on_an_unknown_time_is_refused(folder, tmp_path) -> None:
    sweep = sweep_of(folder)
    slurm = sweep.launcher.slurm.model_copy(update={"max_usd": 1.0})
    launcher = sweep.launcher.model_copy(update={"slurm": slurm})
    proposal = propose(sweep.model_copy(update={"launcher": launcher}), tmp_path, is_dry_run=True)
    with pytest.raises(UsageError, match="tokens_per_s"):
        preview(proposal, results=tmp_path / "results")
